"""Colours and legends of the studies' figures: the same look for the same thing."""

from typing import TYPE_CHECKING, Any

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
