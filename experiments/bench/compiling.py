"""``compile``: seconds to trace and to compile an update, against Adam's."""

import gc
import time
from collections.abc import Sequence
from typing import Any

import jax
import optax

from experiments.bench.clock import ratio, summary
from experiments.bench.jax_side import DONATED, IN_PLACE, step_of
from experiments.bench.rows import ROWS

_PARTS = ("trace", "compile")
_REFERENCE = "adam"


def measure_compile(
    names: Sequence[str], shapes: Any, labels: Any, rounds: int
) -> dict[str, dict[str, Any]]:
    """Measures rows of ``ROWS`` in one alternating run with ``optax.adam``.

    Caches are cleared before each. ``trace`` is all from Python to what the compiler
    takes in, lowering included.
    """
    # The first one pays for what is imported on demand.
    _trace_and_compile(optax.adam(1e-3), jax.ShapeDtypeStruct((8,), "float32"))
    seconds: dict[str, list[tuple[float, float]]] = {
        name: [] for name in (_REFERENCE, *names)
    }
    for _ in range(rounds):
        for name, samples in seconds.items():
            optimizer = ROWS[name].make(labels)
            samples.append(_trace_and_compile(optimizer, shapes))
    times = {
        name: dict(zip(_PARTS, zip(*samples, strict=True), strict=True))
        for name, samples in seconds.items()
    }
    return {
        name: {
            "reference": _REFERENCE,
            "seconds": {part: summary(times[name][part]) for part in _PARTS},
            "ratio": {
                part: ratio(times[name][part], times[_REFERENCE][part])
                for part in _PARTS
            },
        }
        for name in names
    }


def _trace_and_compile(
    optimizer: optax.GradientTransformation, shapes: Any
) -> tuple[float, float]:
    state = jax.eval_shape(optimizer.init, shapes)
    step = jax.jit(step_of(optimizer), donate_argnums=DONATED[IN_PLACE])
    jax.clear_caches()
    config: Any = jax.config
    kept = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)
    gc.collect()
    gc.disable()  # it would have all rows before this one to look through
    try:
        began = time.perf_counter()
        lowered = step.lower(shapes, state, shapes)
        traced = time.perf_counter()
        lowered.compile()
        return traced - began, time.perf_counter() - traced
    finally:
        gc.enable()
        config.update("jax_enable_compilation_cache", kept)
