"""``step``: seconds of an update, against its reference and its PyTorch counterpart."""

import gc
from typing import Any

from experiments.bench.clock import Budget, alternate, ratio, summary
from experiments.bench.jax_side import IN_PLACE, NEW, jax_steps
from experiments.bench.machine import on_cpu
from experiments.bench.rows import ROWS
from experiments.bench.torch_side import UnavailableError, torch_step
from experiments.bench.trees import Trees

OURS, REFERENCE, TORCH = "jax", "reference", "torch"
OURS_NEW, REFERENCE_NEW = "jax_new", "reference_new"
"""Into new arrays, on a CPU; the others, PyTorch too, write over weights and state."""


_RATIOS = ((OURS, REFERENCE), (OURS_NEW, REFERENCE_NEW), (OURS, TORCH))


def measure_step(
    name: str,
    trees: Trees,
    budget: Budget,
    *,
    mu_dtype: str | None,
) -> dict[str, Any]:
    """Measures a row of ``ROWS``: medians and quartiles, and ratios round by round."""
    row = ROWS[name]
    ours = row.make(trees.labels, mu_dtype)
    other = ROWS[row.reference].make(trees.labels, mu_dtype)
    optimizers = {OURS: (ours, IN_PLACE), REFERENCE: (other, IN_PLACE)}
    if on_cpu():
        optimizers |= {OURS_NEW: (ours, NEW), REFERENCE_NEW: (other, NEW)}
    if row.reference == name:
        optimizers = {k: v for k, v in optimizers.items() if v[0] is ours}
    contenders = jax_steps(optimizers, trees)
    missing = None
    try:
        if row.torch is not None:
            contenders[TORCH] = torch_step(row.torch, trees)
    except UnavailableError as error:
        missing = str(error)
    times = alternate(contenders, budget)
    times.setdefault(REFERENCE, times[OURS])
    if OURS_NEW in times:
        times.setdefault(REFERENCE_NEW, times[OURS_NEW])
    del contenders
    gc.collect()  # hundreds of megabytes, before the next row takes as much
    return {
        "reference": row.reference,
        "torch": row.torch and {"name": row.torch.label, "missing": missing},
        "seconds": {key: summary(values) for key, values in times.items()},
        "ratio": {
            key: ratio(times[above], times[key])
            for above, key in _RATIOS
            if key in times
        },
    }
