"""``step``: seconds of an update, against its reference and its PyTorch counterpart."""

import gc
from typing import Any

from experiments.bench.clock import Budget, alternate, ratio, summary
from experiments.bench.jax_side import jax_step
from experiments.bench.rows import ROWS
from experiments.bench.torch_side import UnavailableError, torch_step
from experiments.bench.trees import Trees

OURS, REFERENCE, TORCH = "jax", "reference", "torch"


def measure_step(
    name: str,
    trees: Trees,
    budget: Budget,
    *,
    donate: bool,
    mu_dtype: str | None,
) -> dict[str, Any]:
    """Measures a row of ``ROWS``: medians and quartiles, and ratios round by round."""
    row = ROWS[name]
    contenders = {OURS: jax_step(row.make(trees.labels, mu_dtype), trees, donate)}
    if row.reference != name:
        other = ROWS[row.reference].make(trees.labels, mu_dtype)
        contenders[REFERENCE] = jax_step(other, trees, donate)
    missing = None
    try:
        if row.torch is not None:
            contenders[TORCH] = torch_step(row.torch, trees)
    except UnavailableError as error:
        missing = str(error)
    times = alternate(contenders, budget)
    times.setdefault(REFERENCE, times[OURS])
    del contenders
    gc.collect()  # hundreds of megabytes, before the next row takes as much
    return {
        "reference": row.reference,
        "torch": row.torch and {"name": row.torch.label, "missing": missing},
        "seconds": {key: summary(values) for key, values in times.items()},
        "ratio": {
            key: ratio(times[OURS], times[key])
            for key in (REFERENCE, TORCH)
            if key in times
        },
    }
