"""What an optimizer does to weights on spheres, layer by layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import spherical_optax as so
from experiments.distributed import to_host
from experiments.drawing import plain

SPHERES = "spheres"
"""Where a line of ``metrics.jsonl`` has the numbers: by path, then by quantity."""

_QUANTITIES = {
    "norm": "norm of the weights",
    "angle": "angle of a step (rad)",
    "effective_learning_rate": "effective learning rate",
    "radial_share": "radial share of a step",
}


def sphere_metrics(opt_state: Any) -> dict[str, dict[str, float]]:
    """The last step of an optimizer under :func:`so.monitor_sphere`.

    Every process calls it: each may have a part of the numbers.

    Returns:
      For each leaf on a sphere, by its path, means over its groups: ``norm`` after the
      step, ``angle`` of it in radians, ``effective_learning_rate``, ``radial_share``.
    """
    found = jax.device_get(to_host(so.sphere_statistics(opt_state)))
    return {
        path: {
            "norm": float(np.mean(leaf.norm_after)),
            "angle": float(np.mean(leaf.angle)),
            "effective_learning_rate": float(np.mean(leaf.effective_learning_rate)),
            "radial_share": float(np.mean(leaf.radial_share)),
        }
        for path, leaf in found.items()
    }


def plot_spheres(metrics: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws norm, angle and effective learning rate: layers by epochs, by colour.

    Args:
      metrics: the lines of ``metrics.jsonl``; those without spheres are left out.
      title: what was run.
      path: where the picture goes.
    """
    import matplotlib  # slow to import, and of use only at the end

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in metrics if line.get(SPHERES)]
    layers = list(lines[0][SPHERES])
    epochs = [line["epoch"] for line in lines]
    shown = list(_QUANTITIES)[:3]
    height = min(2.2 + 0.16 * len(layers), 12)
    figure, row = plt.subplots(
        1, len(shown), figsize=(13, height), layout="constrained", sharey=True
    )
    for axes, quantity in zip(row, shown, strict=True):
        values = np.array(
            [[line[SPHERES][layer][quantity] for line in lines] for layer in layers]
        )
        positive = values[np.isfinite(values) & (values > 0)]
        spread = quantity != "norm" and positive.size
        scale = LogNorm(positive.min(), positive.max()) if spread else None
        image = axes.imshow(
            np.where(values > 0, values, np.nan),
            aspect="auto",
            interpolation="nearest",
            norm=scale,
            cmap="viridis",
            extent=(epochs[0] - 0.5, epochs[-1] + 0.5, len(layers) - 0.5, -0.5),
        )
        figure.colorbar(image, ax=axes)
        axes.set(title=_QUANTITIES[quantity], xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    row[0].set_yticks(range(len(layers)), layers, fontsize=7)
    title = plain(title)
    figure.suptitle(f"{title}: weights on spheres, means over the groups of a layer")
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
