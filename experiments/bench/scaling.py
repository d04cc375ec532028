"""``scaling``: seconds of an update against the number of weights, and of leaves."""

import gc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from experiments.bench.clock import Budget, alternate, ratio, summary
from experiments.bench.jax_side import IN_PLACE, jax_steps
from experiments.bench.machine import free_bytes
from experiments.bench.rows import ROWS
from experiments.bench.trees import count, kernels, random_trees, size_in_bytes

OPTIMIZERS = ("adam", "adamsrt", "adamp")
LEAVES_OF_WEIGHTS = 16
WEIGHTS_OF_LEAVES = 1_000_000
_SHARE_OF_MEMORY = 0.6


def measure_scaling(weights: int, leaves: int, budget: Budget) -> dict[str, Any]:
    """Measures ``OPTIMIZERS`` in one alternating run, on equal convolution kernels."""
    shapes = kernels(weights, leaves)
    found = count(shapes)
    if missing := missing_memory(shapes, OPTIMIZERS):
        return {**found, "missing": missing}
    trees = random_trees(shapes)
    trees = trees._replace(grads=jax.tree.map(jnp.asarray, trees.grads))  # for all
    optimizers = {n: (ROWS[n].make(trees.labels), IN_PLACE) for n in OPTIMIZERS}
    contenders = jax_steps(optimizers, trees)
    times = alternate(contenders, budget)
    del contenders, trees
    gc.collect()
    return {
        **found,
        "missing": None,
        "seconds": {name: summary(values) for name, values in times.items()},
        "ratio": {name: ratio(times[name], times["adam"]) for name in OPTIMIZERS[1:]},
    }


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Constant and slope of seconds against size, with the least relative errors.

    Neither is negative, since no time is.
    """
    x, y = np.asarray(sizes, float), np.asarray(seconds, float)
    rows = np.stack([1 / y, x / y], axis=1)
    (constant, slope), _ = nnls(rows, np.ones_like(y))
    return float(constant), float(slope)


def missing_memory(shapes: Any, names: Sequence[str]) -> str | None:
    """Why rows of ``ROWS`` cannot be measured side by side; None if they can."""
    weights = size_in_bytes(shapes)
    sizes = []
    for name in names:
        state = jax.eval_shape(ROWS[name].make("filter").init, shapes)
        sizes.append(weights + size_in_bytes(state))
    # Gradients, all in numpy and on the device; what a step returns beside all that.
    needed = 4 * weights + sum(sizes) + max(sizes)
    free = free_bytes()
    if free is None or needed < _SHARE_OF_MEMORY * free:
        return None
    return f"needs {needed / 1e9:.1f} GB, free are {free / 1e9:.1f}"
