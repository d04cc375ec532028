"""What an update says to other devices, read off the compiled program.

    python -m experiments.collectives --devices 8

compiles the update of a model's weights for a mesh of virtual CPU devices, with the
weights replicated, split along their input channels, along their output channels, and
along both, and prints for each optimizer how many collectives of each kind it has and
how many bytes they move. Nothing is run. From the bytes follows what a step costs on a
network: a ring all-reduce of ``B`` bytes over ``N`` devices moves ``2 B (N - 1) / N``
of them through every link.

Exit codes: 0 done; 2 an option cannot be used.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from experiments import errors

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
LAYOUTS = ("replicated", "input channels", "output channels", "both")
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


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.collectives``."""

    model: str = "resnet18"
    """Model whose weights are updated."""
    devices: int = 8
    """Virtual devices; an even number."""
    optimizers: tuple[str, ...] = (
        *("sgd", "adam", "adamw", "adams", "adamsrt", "adamg", "sgdmrt", "adamp"),
        *("sgdp", "swats", "adabound", "lamb"),
    )
    """Optimizers."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the figures here as well."""


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


def measure(options: Options, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Counts the collectives of every optimizer in every layout."""
    import jax

    from experiments.bench.trees import model_shapes
    from experiments.models import label_spheres
    from experiments.optimizers import make_optimizer, resolve_options

    mesh = jax.make_mesh(
        (options.devices // 2, 2),
        ("in", "out"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    shapes = model_shapes(options.model)
    records = []
    for name in options.optimizers:
        optimizer = make_optimizer(
            name, resolve_options(name, {}), lambda _: 1.0, label_spheres, shapes
        )
        for layout in LAYOUTS:
            found = collectives(compile_update(optimizer, shapes, layout, mesh))
            counts = {kind: sum(c.kind == kind for c in found) for kind in KINDS}
            record = {
                "optimizer": name,
                "layout": layout,
                "counts": {kind: n for kind, n in counts.items() if n},
                "bytes": sum(c.bytes for c in found),
                "largest": max((c.largest for c in found), default=0),
            }
            records.append(record)
            told = ", ".join(f"{n} {kind}" for kind, n in record["counts"].items())
            say(f"{name:10} {layout:16} {told or 'nothing':32} {record['bytes']:9,} B")
    return records


def ring_seconds(
    count: int, size: float, devices: int, *, latency: float, bandwidth: float
) -> float:
    """What all-reduces over a ring take.

    Args:
      count: how many.
      size: bytes of all of them, on one device.
      devices: in the ring.
      latency: seconds from a device to the next.
      bandwidth: bytes a second between them.

    Example:
      >>> ring_seconds(1, 1e9, 2, latency=0.0, bandwidth=1e9)
      1.0
    """
    hops = 2 * (devices - 1)
    return hops * (count * latency + size / devices / bandwidth)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """A row an optimizer, as Markdown: collectives and bytes of each layout."""
    lines = [
        f"| optimizer | {' | '.join(LAYOUTS)} |",
        "|---|" + "---|" * len(LAYOUTS),
    ]
    for name in dict.fromkeys(record["optimizer"] for record in records):
        cells = {r["layout"]: _cell(r) for r in records if r["optimizer"] == name}
        lines.append(f"| `{name}` | {' | '.join(cells[at] for at in LAYOUTS)} |")
    return "\n".join(lines)


def _cell(record: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in record["counts"].items())
    return f"{counts}, {record['bytes'] / 1e3:.1f} kB" if counts else "-"


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.collectives",
        description=__doc__,
        args=args,
    )
    if options.devices < 2 or options.devices % 2:
        print(
            f"error: --devices must be an even number, got {options.devices}",
            file=sys.stderr,
        )
        return errors.EXIT_USAGE
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", options.devices)
    records = measure(options, lambda line: print(line, flush=True))
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n")
    return errors.EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
