"""The figures: ratios of all updates, and time against size; as PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.bench.scaling import OPTIMIZERS
from experiments.bench.step import REFERENCE, TORCH
from experiments.bench.tables import Record, fits, scaling_points, tables
from experiments.drawing import BLUE, VERMILION, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

STEP, SCALING = "step_ratios", "scaling"
_MARKS = ("o", "s", "^")
_COLORS = ("black", BLUE, VERMILION)


def draw(records: Sequence[Record], folder: Path) -> None:
    """Draws what there are records for."""
    steps = [record for record in records if record["bench"] == "step"]
    for number, (title, _, some) in enumerate(tables(steps)):
        draw_steps(some, title, folder / (f"{STEP}_{number + 1}" if number else STEP))
    if any(len(scaling_points(records, axis)) > 1 for axis in ("weights", "leaves")):
        draw_scaling(records, folder / SCALING)


def draw_steps(records: Sequence[Record], title: str, stem: Path) -> None:
    """Each update's time over its reference's and its counterpart's, on a log axis."""
    rows = list(reversed(records))
    kinds = (
        (REFERENCE, "to Optax's, named after the stroke", "o", BLUE, 0.13),
        (TORCH, "to its PyTorch counterpart", "D", VERMILION, -0.13),
    )
    with drawing(stem, height=0.9 + 0.24 * len(rows)) as [axis]:
        for key, label, mark, color, aside in kinds:
            points = [
                (y + aside, row["result"]["ratio"][key])
                for y, row in enumerate(rows)
                if key in row["result"]["ratio"]
            ]
            _quartiles(axis, points, label=label, fmt=mark, color=color)
        axis.axvline(1, color="black", lw=0.8)
        names = [f"{row['row']} / {row['result']['reference']}" for row in rows]
        axis.set_yticks(range(len(rows)), names)
        axis.set(xscale="log", xlabel="ratio of seconds, median and quartiles")
        axis.set(ylim=(-0.6, len(rows) - 0.4))
        _plain_ticks(axis.xaxis)
        axis.grid(axis="x", which="both")
        axis.set_title(title, loc="left", pad=20)
        axis.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderpad=0
        )


def draw_scaling(records: Sequence[Record], stem: Path) -> None:
    """Seconds against weights and against leaves, with the fitted lines."""
    with drawing(stem, across=2, height=3.0) as axes:
        for axis, along in zip(axes, ("weights", "leaves"), strict=True):
            points = scaling_points(records, along)
            lines = fits(records, along)
            for name, mark, color in zip(OPTIMIZERS, _MARKS, _COLORS, strict=True):
                if not points:
                    continue
                sizes = np.array([size for size, _ in points], float)
                times = [1e3 * seconds[name]["median"] for _, seconds in points]
                axis.plot(sizes, times, mark, color=color, ms=4, mfc="none", label=name)
                if name in lines:
                    constant, slope = lines[name]
                    x = np.geomspace(sizes[0], sizes[-1])
                    axis.plot(x, 1e3 * (constant + slope * x), color=color, lw=0.9)
            axis.set(xscale="log", yscale="log", xlabel=f"number of {along}")
            _plain_ticks(axis.yaxis)
            axis.grid()
        axes[0].set_ylabel("an update (ms)")
        axes[0].legend(frameon=False)


def _quartiles(
    axis: "Axes", points: Sequence[tuple[float, Any]], **options: Any
) -> None:
    if points:
        y = [place for place, _ in points]
        middle = np.array([sample["median"] for _, sample in points])
        low, high = np.array([sample["quartiles"] for _, sample in points]).T
        reach = [middle - low, high - middle]
        axis.errorbar(middle, y, xerr=reach, ms=4, lw=1, capsize=2, **options)


def _plain_ticks(axis: "Axis") -> None:
    """Numbers as they are spoken, on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
