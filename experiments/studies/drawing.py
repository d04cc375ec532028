"""Figures of the studies, in the style of the reports, and narrow enough for phones."""

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
# The same look for the same thing in all figures.
_KNOWN = {
    name: index
    for index, names in enumerate(
        (
            ("sgd", "local"),
            ("sgd, momentum", "global"),
            ("sgdp",),
            ("sgdmrt",),
            ("adam",),
            ("adamp",),
            ("adamsrt",),
        )
    )
    for name in names
}
WIDE, NARROW = 7.0, 5.4  # inches: of a text; such that letters stay legible on a phone


@contextmanager
def drawing(
    stem: Path,
    down: int = 1,
    across: int = 1,
    *,
    height: float,
    width: float = WIDE,
    **options: Any,
) -> Iterator[list["Axes"]]:
    """A figure of several panels, saved in the end as ``stem.png`` and ``stem.svg``."""
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        canvas, axes = plt.subplots(
            down,
            across,
            figsize=(width, height),
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


def style_of(name: str) -> dict[str, Any]:
    """The style of an optimizer, the same in every figure."""
    return line_style(_KNOWN[name])


def legend_above(axes: list["Axes"], columns: int = 4) -> None:
    """One legend over a row of panels, where it covers no curve."""
    handles, labels = axes[0].get_legend_handles_labels()
    figure: Any = axes[0].get_figure()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )
