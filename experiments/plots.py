"""Figures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.drawing import plain


def plot_learning_curves(
    metrics: Sequence[Mapping[str, Any]], title: str, path: Path
) -> None:
    """Draws loss and accuracy of both splits over the epochs.

    Args:
      metrics: the lines of ``metrics.jsonl``; a loss may be None.
      title: what was run.
      path: where the picture goes.
    """
    import matplotlib  # slow to import, and of use only at the end

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    epochs = [line["epoch"] for line in metrics]
    figure, (losses, errors) = plt.subplots(
        1, 2, figsize=(9, 3.6), layout="constrained"
    )
    for split, style in (("train", "--"), ("test", "-")):
        loss = [_number(line.get(f"{split}_loss")) for line in metrics]
        accuracy = [100 * _number(line.get(f"{split}_accuracy")) for line in metrics]
        losses.plot(epochs, loss, style, label=split, marker=".")
        errors.plot(epochs, accuracy, style, label=split, marker=".")
    losses.set(ylabel="cross entropy", yscale="log")
    errors.set(ylabel="accuracy (%)")
    for axes in (losses, errors):
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(plain(title))
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
