"""Figures of the studies, in the style of the reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.figures import STYLE, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which stays apart for every kind of colour vision.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
    *("#999999", "#882255"),
)
DASHES = ("-", "--", ":", "-.")


@contextmanager
def drawing(
    stem: Path, down: int = 1, across: int = 1, *, height: float, **options: Any
) -> Iterator[list["Axes"]]:
    """A figure of several panels, saved in the end as ``stem.png`` and ``stem.svg``."""
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        canvas, axes = plt.subplots(
            down,
            across,
            figsize=(7.0, height),
            layout="constrained",
            squeeze=False,
            **options,
        )
        try:
            yield list(axes.flat)
            save(canvas, stem)
        finally:
            plt.close(canvas)


def line_style(index: int) -> dict[str, Any]:
    """A colour and a dash that stay apart in print, for one of several curves."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "ls": DASHES[index % len(DASHES)],
        "lw": 1.3,
    }
