"""``memory``: bytes that a compiled update needs and moves, by its own analysis."""

from typing import Any

import jax
import optax

from experiments.bench.jax_side import DONATED, IN_PLACE, NEW, step_of
from experiments.bench.rows import ROWS
from experiments.bench.trees import size_in_bytes
from experiments.compiling import compile_ahead


def measure_memory(
    name: str, shapes: Any, labels: Any, mu_dtype: str | None
) -> dict[str, Any]:
    """Analyses a row of ``ROWS``, compiled to write over weights and state, or not.

    All sizes are in units of the weights. ``needed`` are weights, gradients and state,
    ``peak`` is what is alive at once, new arrays included, ``temporary`` is what the
    update needs beside all these, and ``moved`` is read or written by the compiler's
    estimate, which counts what stays in a cache too.
    """
    row = ROWS[name]
    optimizer = row.make(labels, mu_dtype)
    state = jax.eval_shape(optimizer.init, shapes)
    adam = jax.eval_shape(ROWS["adam"].make(labels, mu_dtype).init, shapes)
    return {
        "weights_bytes": size_in_bytes(shapes),
        "state_bytes": size_in_bytes(state),
        "ratio": {"state_to_adam": size_in_bytes(state) / size_in_bytes(adam)},
        IN_PLACE: _analyse(optimizer, shapes, state, IN_PLACE),
        NEW: _analyse(optimizer, shapes, state, NEW),
        "floor": row.floor,
    }


def _analyse(
    optimizer: optax.GradientTransformation, shapes: Any, state: Any, place: str
) -> dict[str, float | None]:
    """What the compiler says; None for what it does not."""
    step = step_of(optimizer)
    compiled = compile_ahead(step, shapes, state, shapes, donate=DONATED[place])
    weights = size_in_bytes(shapes)
    needed = 2 * weights + size_in_bytes(state)
    costs, sizes = compiled.cost_analysis(), compiled.memory_analysis()
    moved = costs.get("bytes accessed") if costs else None
    peak = temporary = None
    if sizes is not None:
        temporary = sizes.temp_size_in_bytes
        outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        peak = sizes.argument_size_in_bytes + outputs + temporary
    return {
        "needed": needed / weights,
        "peak": peak and peak / weights,
        "peak_to_needed": peak and peak / needed,
        "temporary": None if temporary is None else temporary / weights,
        "moved": moved and moved / weights,
    }
