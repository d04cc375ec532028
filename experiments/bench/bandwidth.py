"""``bandwidth``: how much of the speed of a copy an update reaches."""

import gc
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.clock import Budget, Contender, alternate, ratio, summary
from experiments.bench.jax_side import jax_step
from experiments.bench.machine import on_cpu
from experiments.bench.rows import ROWS
from experiments.bench.scaling import missing_memory
from experiments.bench.trees import count, kernels, random_trees, size_in_bytes

COPY = "copy"


def measure_bandwidth(name: str, weights: int, budget: Budget) -> dict[str, Any]:
    """Measures a row of ``ROWS`` on a large tree, alternating with copies of weights.

    The share is the least time for the arrays that the update has to read or write,
    at the speed of the copy, over the time that it takes.
    """
    shapes = kernels(weights, leaves=16)
    found = count(shapes)
    if missing := missing_memory(shapes, [name]):
        return {**found, "missing": missing}
    trees = random_trees(shapes)
    contenders = {
        COPY: _copies(trees.params),
        name: jax_step(ROWS[name].make(trees.labels), trees),
    }
    size = size_in_bytes(trees.params)
    del trees
    times = alternate(contenders, budget)
    del contenders
    gc.collect()
    floor = ROWS[name].floor
    assert floor is not None
    moved = floor * size
    share = ratio([t * moved / (2 * size) for t in times[COPY]], times[name])
    return {
        **found,
        "missing": None,
        "floor": floor,
        "copy_gb_per_second": summary([2 * size / t / 1e9 for t in times[COPY]]),
        "update_gb_per_second": summary([moved / t / 1e9 for t in times[name]]),
        "seconds": {key: summary(values) for key, values in times.items()},
        "ratio": {"share_of_copy": share},
    }


def _copies(params: Any) -> Contender:
    """Copies the weights, each time over the copy before it."""
    source = jax.tree.map(jnp.array, params)
    # A plain copy keeps one core of a CPU busy; a change of sign moves the same bytes.
    move = jnp.negative if on_cpu() else jnp.copy
    step = jax.jit(
        lambda old, new: jax.tree.map(move, new), donate_argnums=0, keep_unused=True
    )
    place = [jax.tree.map(jnp.array, params)]

    def run(calls: int) -> None:
        for _ in range(calls):
            place[0] = step(place[0], source)
        jax.block_until_ready(place)

    return run
