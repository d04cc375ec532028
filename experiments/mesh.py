"""How a run lies on the devices, of this process or of several.

Images of a batch are split over all devices, and each process handles only those that
its own devices need. Weights, and what the optimizer keeps for
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
        return jax.lax.with_sharding_constraint(x, self._rows_sharding())

    def keep(self, tree: T) -> T:
        """Within a compiled step: what comes out lies as :meth:`place` has put it."""
        if self._mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def place(self, tree: T) -> T:
        """Puts arrays where they belong; those that are there stay."""
        if self._mesh is None:
            return jax.device_put(tree)
        return jax.tree.map(_put, tree, self._shardings(tree))

    def share(self, tree: Any) -> Any:
        """Puts arrays on the devices of all processes, each of them whole."""
        if self._mesh is None:
            return jax.device_put(tree)
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda x: _put(x, everywhere), tree)

    def shareable(self, size: int, most: int) -> int:
        """A number of rows, enough for ``size`` or about ``most``, that can be shared.

        Example:
          >>> Layout.alone().shareable(355, 1000)
          355
        """
        devices = self.devices
        whole = -(-size // devices) * devices
        return min(whole, max(most // devices, 1) * devices)

    def rows(self, size: int) -> np.ndarray:
        """The rows of a batch that lie on devices of this process, in rising order.

        Args:
          size: of the batch, which the devices have to share evenly.

        Example:
          >>> Layout.alone().rows(3)
          array([0, 1, 2])
        """
        if self._mesh is None:
            return np.arange(size)
        places = self._rows_sharding().addressable_devices_indices_map((size,))
        return np.unique([np.arange(size)[place] for place in places.values()])

    def spread(self, rows: Any, size: int, axis: int = 0) -> Any:
        """Arrays over all devices, from the rows of each process.

        Args:
          rows: arrays with what belongs to :meth:`rows` along an axis.
          size: of that axis, over all processes.
          axis: which one it is.
        """
        if self._mesh is None:
            return jax.device_put(rows)
        sharding, mine = self._rows_sharding(axis), self.rows(size)

        def put(x: np.ndarray) -> jax.Array:
            shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])

            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                first, last, _ = index[axis].indices(size)
                begin = int(np.searchsorted(mine, first))
                here = slice(begin, begin + last - first)
                return x[(*index[:axis], here, *index[axis + 1 :])]

            return jax.make_array_from_callback(shape, sharding, part)

        return jax.tree.map(put, rows)

    def shape(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """The shape of a batch as :meth:`spread` makes it, to compile for."""
        sharding = None if self._mesh is None else self._rows_sharding()
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def _rows_sharding(self, axis: int = 0) -> NamedSharding:
        assert self._mesh is not None
        return NamedSharding(self._mesh, PartitionSpec(*[None] * axis, AXES))

    def shapes(self, tree: Any) -> Any:
        """The shapes of arrays as :meth:`place` puts them, to compile for."""
        return jax.tree.map(self._shape_of, tree)

    def _shape_of(self, x: Any) -> jax.ShapeDtypeStruct:
        sharding = None if self._mesh is None else self._of_leaf(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

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
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
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
