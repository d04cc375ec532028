"""How a run lies on the devices, of this process or of several.

Images of a batch are split over all devices. Weights, and what the optimizer keeps for
them, are on each (``data``) or split too (``fsdp``), along output channels where those
can be shared: filters that lie whole need no word from other devices. The compiler adds
what has to be said between devices, so that a step means the same on one and on many,
batch norm's statistics of the whole batch included.
"""

import math
import re
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.distributed import several
from experiments.errors import UsageError

AXES = ("data", "fsdp")
_PART = re.compile(r"(\w+)=(\d+)")

T = TypeVar("T")


class Layout:
    """Where batches and weights lie.

    Attributes:
      sizes: of the axes ``data`` and ``fsdp``.

    Example:
      >>> Layout.alone().devices
      1
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self._mesh = None
        if self.devices > 1:
            self._mesh = jax.make_mesh(
                tuple(sizes.values()),
                tuple(sizes),
                axis_types=(AxisType.Auto,) * len(sizes),
                devices=jax.devices()[: self.devices],
            )

    @classmethod
    def alone(cls) -> "Layout":
        """One device."""
        return cls({"data": 1, "fsdp": 1})

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.sizes.values())

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.sizes.items())

    def batch(self, x: jax.Array) -> jax.Array:
        """Within a compiled step: splits the first axis over all devices."""
        if self._mesh is None:
            return x
        sharding = NamedSharding(self._mesh, PartitionSpec(AXES))
        return jax.lax.with_sharding_constraint(x, sharding)

    def keep(self, tree: T) -> T:
        """Within a compiled step: what comes out lies as :meth:`place` has put it."""
        if self._mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def place(self, tree: T) -> T:
        """Puts arrays where they belong."""
        if self._mesh is None:
            return jax.device_put(tree)
        return jax.tree.map(_put, tree, self._shardings(tree))

    def share(self, tree: Any) -> Any:
        """Puts arrays on the devices of all processes, each of them whole."""
        if self._mesh is None or not several():
            return jax.device_put(tree)
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda x: _put(x, everywhere), tree)

    def _shardings(self, tree: Any) -> Any:
        return jax.tree.map(self._of_leaf, tree)

    def _of_leaf(self, x: Any) -> NamedSharding:
        assert self._mesh is not None
        parts = self.sizes["fsdp"]
        axes: list[str | None] = [None] * x.ndim
        for axis in reversed(range(x.ndim)):
            if parts > 1 and x.shape[axis] % parts == 0:
                axes[axis] = "fsdp"
                break
        return NamedSharding(self._mesh, PartitionSpec(*axes))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array, the same in every process, on the devices of all."""
    if not several():
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda at: whole[at])


def make_layout(mesh: str | None, batch_size: int) -> Layout:
    """Reads ``--mesh``.

    Args:
      mesh: as ``"data=4,fsdp=2"``; None for as many devices as can share the batch.
      batch_size: images of a batch, or of a part of it.

    Raises:
      UsageError: it cannot be read, there are too few devices, or the batch cannot be
        shared evenly.
    """
    there = len(jax.devices())
    if mesh is None:
        data = max(n for n in range(1, there + 1) if batch_size % n == 0)
        if several() and data < there:
            raise UsageError(
                f"the {there} devices of {jax.process_count()} processes cannot share"
                f" {batch_size} images evenly"
            )
        return Layout({"data": data, "fsdp": 1})
    parts = [_PART.fullmatch(part.strip()) for part in mesh.split(",")]
    found = {part[1]: int(part[2]) for part in parts if part}
    unknown = None in parts or not set(found) <= set(AXES) or len(found) != len(parts)
    if unknown or 0 in found.values():
        raise UsageError(
            f"--mesh must be as data=4,fsdp=2, with numbers of at least 1, got {mesh}"
        )
    sizes = {name: found.get(name, 1) for name in AXES}
    needed = math.prod(sizes.values())
    if needed > there or (several() and needed < there):
        raise UsageError(f"--mesh {mesh} needs {needed} devices, and there are {there}")
    if batch_size % needed:
        raise UsageError(
            f"--mesh {mesh}: {needed} devices cannot share {batch_size} images evenly"
        )
    return Layout(sizes)
