"""``traffic``: what a compiled update reads and writes, here or on an accelerator.

It is counted in the compiled program, so nothing has to run, and an accelerator need
not be here.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from experiments.bench.jax_side import DONATED, IN_PLACE, step_of
from experiments.bench.rows import ROWS
from experiments.bench.targets import HERE, compiler_of, device_of
from experiments.bench.trees import size_in_bytes
from experiments.compiling import compile_ahead

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
_HIDING = ("while", "conditional", "call", "async-start")
_JOINED = 'custom_call_target="ConcatBitcast"'  # on a TPU, of parts side by side
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?")
_FAST = re.compile(r"S\([1-9]\d*\)")


class Traffic(NamedTuple):
    """What a program does to the main memory.

    Attributes:
      kernels: loops, sums and the like that run one after the other.
      read_or_written: bytes; None where the program has parts of its own, of which it
        is not known how often they run.
    """

    kernels: int
    read_or_written: int | None


def measure_traffic(
    name: str, shapes: Any, labels: Any, mu_dtype: str | None, target: str
) -> dict[str, Any]:
    """Counts for a row of ``ROWS`` and for its reference, compiled to work in place.

    ``arrays`` are bytes read or written in main memory in units of the weights: each
    array once for each kernel that has it, and not where it lies in a faster memory
    which the compiler manages, as on a TPU. Caches are not known to it, and count as
    memory. ``peak`` is what is alive at once, over weights, gradients and state.
    """
    device = device_of(target)
    sharding = SingleDeviceSharding(device)

    def place(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def count(row: str) -> dict[str, Any]:
        optimizer = ROWS[row].make(labels, mu_dtype)
        state = jax.eval_shape(optimizer.init, shapes)
        step, donate = step_of(optimizer), DONATED[IN_PLACE]
        weights = place(shapes)
        compiled = compile_ahead(step, weights, place(state), weights, donate=donate)
        traffic = traffic_of(compiled.as_text() or "")
        sizes, needed = compiled.memory_analysis(), 2 * unit + size_in_bytes(state)
        moved = traffic.read_or_written
        return {
            "kernels": traffic.kernels,
            "arrays": None if moved is None else moved / unit,
            "peak_to_needed": sizes and 1 + sizes.temp_size_in_bytes / needed,
        }

    unit = size_in_bytes(shapes)
    config: Any = jax.config
    kept = config.jax_enable_compilation_cache
    # What is compiled for a device that is not here cannot be read back.
    config.update("jax_enable_compilation_cache", kept and target == HERE)
    try:
        ours, reference = count(name), count(ROWS[name].reference)
    finally:
        config.update("jax_enable_compilation_cache", kept)
    known = ours["arrays"] is not None and reference["arrays"]
    return {
        **ours,
        "reference": ROWS[name].reference,
        "ratio": {"arrays": ours["arrays"] / reference["arrays"] if known else None},
        "floor": ROWS[name].floor,
        "device": device.device_kind or target,
        "compiler": compiler_of(target),
    }


def traffic_of(program: str) -> Traffic:
    """Counts in the text of a compiled program of one device.

    Example:
      >>> traffic_of('''
      ... ENTRY %main (x.1: f32[8]) -> f32[8] {
      ...   %x.1 = f32[8]{0} parameter(0)
      ...   ROOT %add = f32[8]{0} fusion(%x.1), kind=kLoop, calls=%computation
      ... }
      ... ''')
      Traffic(kernels=1, read_or_written=64)
    """
    types: dict[str, str] = {}
    kernels, total, hidden = 0, 0, False
    for name, kind, operation, operands, rest in _instructions(program):
        types[name] = kind
        if operation in _FREE or operation.endswith("-done") or _JOINED in rest:
            continue
        if operation in ("copy-start", "slice-start"):
            total += _copied(kind, types[operands[0]])
            continue
        kernels += 1
        hidden |= operation in _HIDING
        total += sum(_bytes(types[operand]) for operand in operands) + _bytes(kind)
    return Traffic(kernels, None if hidden else total)


def _copied(kind: str, source: str) -> int:
    """Bytes of a copy of an array, or of a part of it, that runs beside the kernels.

    The type has the copy first, or first after a tuple of what it is a part of.
    """
    start = _closing(kind, 1) if kind.startswith("((") else 0
    found = _ARRAY.search(kind, start)
    target = found.group() if found else ""
    memories = [array for array in (source, target) if _bytes(array)]
    return len(memories) * _bytes(target, everywhere=True)


def _bytes(kind: str, everywhere: bool = False) -> int:
    """Of all arrays of a type, in main memory or in any."""
    total = 0
    for letters, bits, shape, layout in _ARRAY.findall(kind):
        if everywhere or not _FAST.search(layout):
            size = 8 if letters == "pred" else int(bits or 0)
            for length in filter(None, shape.split(",")):
                size *= int(length)
            total += (size + 7) // 8
    return total


def _instructions(program: str) -> Iterator[tuple[str, str, str, list[str], str]]:
    """Name, type, operation, names of operands and what follows, in order."""
    _, _, entry = program.partition("\nENTRY ")
    for line in entry.partition("\n}")[0].splitlines():
        name, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
        if not equals or not name.startswith("%"):
            continue
        end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
        operation, _, _ = rest[end:].strip().partition("(")
        start = rest.index("(", end)
        close = _closing(rest, start)
        operands = re.findall(r"%[\w.\-]+", rest[start:close])
        yield name, rest[:end], operation, operands, rest[close:]


def _closing(text: str, start: int) -> int:
    """Where the bracket closes that opens there."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"no closing bracket in {text!r}")
