"""Programs compiled for many devices, and the collectives in their text."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4}
_BYTES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
      kind: one of ``KINDS``.
      largest: how many numbers its largest result has, on one device.
      bytes: of all its results, on one device.
    """

    kind: str
    largest: int
    bytes: int


def collectives(compiled: str) -> list[Collective]:
    """Finds the collectives in the text of a compiled program.

    Example:
      >>> collectives("%r = (f32[8]{0}, f32[]) all-reduce(%a, %b), channel_id=1")
      [Collective(kind='all-reduce', largest=8, bytes=36)]
    """
    found = []
    for result, kind in _INSTRUCTION.findall(compiled):
        shapes = [
            (_BYTES.get(dtype, 4), math.prod(map(int, filter(None, dims.split(",")))))
            for dtype, dims in _SHAPE.findall(result)
        ]
        sizes = [size for _, size in shapes]
        total = sum(width * size for width, size in shapes)
        found.append(Collective(kind, max(sizes, default=0), total))
    return found


def split(shape: Sequence[int], layout: str, mesh: Any) -> Any:
    """How a leaf lies on a mesh with the axes ``"in"`` and ``"out"``.

    Leaves of one axis, and axes that the devices cannot share evenly, are replicated.
    """
    from jax.sharding import NamedSharding, PartitionSpec

    axes: list[Any] = [None] * len(shape)
    if len(shape) >= 2:
        devices = math.prod(mesh.shape.values())
        wanted = {
            "replicated": {},
            "input channels": {-2: (("in", "out"), devices)},
            "output channels": {-1: (("in", "out"), devices)},
            "both": {
                -2: ("in", mesh.shape["in"]),
                -1: ("out", mesh.shape["out"]),
            },
        }[layout]
        for axis, (names, parts) in wanted.items():
            if shape[axis] % parts == 0:
                axes[axis] = names
    return NamedSharding(mesh, PartitionSpec(*axes))


def compile_update(
    optimizer: Any, shapes: Mapping[str, Any], layout: str, mesh: Any
) -> str:
    """The text of an update's program, for parameters that lie so on a mesh."""
    import jax

    def lay(x: Any) -> Any:
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=split(x.shape, layout, mesh)
        )

    params = jax.tree.map(lay, shapes)
    state = jax.eval_shape(optimizer.init, params)
    by_shape = {x.shape: x.sharding for x in jax.tree.leaves(params)}
    groups = {
        (*(1 for _ in shape[:-1]), shape[-1]): split_groups(sharding, mesh, len(shape))
        for shape, sharding in by_shape.items()
        if len(shape) > 1
    }
    whole = split((), "replicated", mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape,
            x.dtype,
            sharding=by_shape.get(x.shape, groups.get(x.shape, whole)),
        ),
        state,
    )
    compiled = jax.jit(optimizer.update).lower(params, state, params).compile()
    return compiled.as_text() or ""


def split_groups(sharding: Any, mesh: Any, ndim: int) -> Any:
    """How the numbers of a kernel's filters lie: as its last axis."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec(*[None] * (ndim - 1), sharding.spec[-1]))


def build(name: str, shapes: Any) -> Any:
    """An optimizer of the command line, or another of the library, by its name."""
    import optax

    import spherical_optax as so
    from experiments.models import label_spheres
    from experiments.optimizers import make_optimizer, resolve_options

    labels = label_spheres(shapes)
    wrappers = {
        "hyperball": lambda: so.hyperball(optax.trace(0.9), 1e-2, labels=labels),
        "monitor_sphere": lambda: so.monitor_sphere(optax.adam(1e-3), labels=labels),
        "project_to_norm": lambda: optax.chain(
            optax.sgd(0.1, 0.9), so.project_to_norm(labels=labels)
        ),
    }
    if name in wrappers:
        return wrappers[name]()
    name, _, switch = name.partition("-")
    options = resolve_options(name, {"switch": switch} if switch else {})
    return make_optimizer(name, options, lambda _: 1.0, label_spheres, shapes)


def compile_step(
    model: str, optimizer: str, mesh: str, batch_norm: str, batch_size: int
) -> str:
    """The text of the program of a whole step of training.

    Args:
      model: by its name, for images of 32 x 32 pixels.
      optimizer: by its name.
      mesh: as ``--mesh`` takes it.
      batch_norm: as ``--batch-norm`` takes it.
      batch_size: images on all devices together.
    """
    import jax
    import numpy as np

    from experiments.data.recipes import RECIPES
    from experiments.feeds import StreamFeed
    from experiments.mesh import make_layout
    from experiments.models import MODELS, normalize_apart
    from experiments.steps import Tally, make_train_step, plan

    layout = make_layout(mesh, batch_size)
    parts = layout.devices if batch_norm == "local" else 1
    make = partial(normalize_apart(MODELS[model], parts), channels=3, num_classes=10)
    key = jax.random.key(0)
    graph, transformation, init = plan(make, partial(build, optimizer), key)
    step = make_train_step(
        graph,
        transformation,
        _Bytes(*RECIPES["cifar10"].in_bytes()),
        StreamFeed.pick,
        layout=layout,
    )
    images = layout.shape((batch_size, 32, 32, 3), np.uint8)
    labels = layout.shape((batch_size,), np.int32)
    state = layout.shapes(jax.eval_shape(init, key))
    tally = layout.shapes(Tally.zero())
    compiled = jax.jit(step, donate_argnums=0).lower(state, tally, (images, labels))
    return compiled.compile().as_text() or ""


class _Bytes(NamedTuple):
    """Mean and deviation of each channel, which the normalization takes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
