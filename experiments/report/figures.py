"""The figures of a report, as PNG and SVG; legible in print and without colours."""

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.report.columns import Column, Setting
from experiments.report.published import UNDECIDED, Figure, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

TEST_ERROR, TRAINING_LOSS = "test error (%)", "training loss"

# Of Okabe and Ito's palette, which stays apart for every kind of colour vision; shape
# and position say the same as colour everywhere.
BLUE, VERMILION, _GREY = "#0072B2", "#D55E00", "#DDDDDD"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "svg.fonttype": "path",  # the same letters wherever it is opened
    "svg.hashsalt": "spherical_optax",  # the same file from the same numbers
}
_WIDTH = 7.0  # inches: a text width


def draw_accuracies(
    column: Column,
    published: Sequence[Figure | None],
    stem: Path,
    width: float = _WIDTH,
) -> None:
    """Test accuracy: seeds as circles, mean and deviation, published as diamonds."""
    together = zip(column.settings, column.labels, published, strict=True)
    rows = [row for row in together if row[0].finished]
    # From the bottom, so in the end the reverse of the table, ties included.
    rows.sort(key=lambda row: -row[0].accuracy.mean)
    rows.reverse()
    narrow = width < _WIDTH
    height = 0.75 + (0.36 if narrow else 0.27) * len(rows)
    with _canvas(stem, height=height, width=width) as (_, [axis]):
        for y, (setting, _, figure) in enumerate(rows):
            sample = setting.accuracy
            seeds = [run.accuracy for run in setting.finished]
            axis.plot(
                seeds, y + _aside(seeds), "o", mfc="none", mec=BLUE, ms=5, mew=0.9
            )
            std = sample.std if sample.n > 1 else None
            axis.errorbar(
                sample.mean, y, xerr=std, fmt="|", color="black", ms=11, capsize=3
            )
            if figure:
                std, y = figure.std, y - 0.28
                axis.errorbar(figure.mean, y, xerr=std, fmt="D", color=VERMILION, ms=4)
        names = [textwrap.fill(label, 22 if narrow else 88) for _, label, _ in rows]
        axis.set_yticks(range(len(rows)), names, fontsize=8 if narrow else None)
        axis.set(xlabel="test accuracy (%)", ylim=(-0.7, len(rows) - 0.3))
        axis.grid()
        _accuracy_legend(axis, any(figure for _, _, figure in rows))


def draw_curves(column: Column, quantity: str, stem: Path) -> None:
    """Small multiples: a panel for each setting, the range of all in grey.

    Args:
      column: of two epochs or more, and with a finished run.
      quantity: ``TEST_ERROR`` or ``TRAINING_LOSS``.
      stem: where the figure goes, without ending.
    """
    pairs = zip(column.settings, column.labels, strict=True)
    rows = [(_curves(s, quantity), label) for s, label in pairs if s.finished]
    across = min(4, len(rows))
    down = -(-len(rows) // across)
    means = np.array([curves.mean(0) for curves, _ in rows])
    epochs = np.arange(1, column.config["epochs"] + 1)
    with _canvas(stem, down, across, height=0.6 + 1.3 * down) as (canvas, axes):
        for axis in axes[len(rows) :]:
            axis.remove()
        for axis in axes[len(rows) - across : len(rows)]:
            axis.tick_params(labelbottom=True)
        for axis, (curves, label) in zip(axes, rows, strict=False):
            axis.fill_between(epochs, means.min(0), means.max(0), color=_GREY, lw=0)
            mean = curves.mean(0)
            if len(curves) > 1:
                std = curves.std(0, ddof=1)
                axis.fill_between(
                    epochs, mean - std, mean + std, color=BLUE, alpha=0.35, lw=0
                )
            axis.plot(epochs, mean, color=BLUE, lw=1.4)
            title = textwrap.fill(f"{label}, n={len(curves)}", 88 // across)
            axis.set_title(title, loc="left")
            axis.grid(lw=0.5)
        _scale(axes[0], [curves for curves, _ in rows])
        canvas.supxlabel("epoch", fontsize=9)
        canvas.supylabel(quantity, fontsize=9)


def draw_findings(
    findings: Sequence[Finding], stem: Path, width: float = _WIDTH
) -> None:
    """The judged claims: estimates with confidence intervals against 0."""
    judged = [(f, f.contrast) for f in findings if f.contrast][::-1]
    height = 0.6 + 0.36 * len(judged)
    with _canvas(stem, height=height, width=width) as (_, [axis]):
        for y, (finding, found) in enumerate(judged):
            reach = [[found.estimate - found.low], [found.high - found.estimate]]
            axis.errorbar(
                found.estimate,
                y,
                xerr=reach,
                fmt="o",
                mfc="white" if finding.verdict == UNDECIDED else BLUE,
                color=BLUE,
                capsize=3,
            )
        axis.axvline(0, color="black", lw=0.8)
        names = [_shortened(f.claim) + f"\n{f.verdict}" for f, _ in judged]
        axis.set_yticks(range(len(judged)), names, fontsize=8)
        between = "\n" if width < _WIDTH else " "
        axis.set(
            xlabel=f"difference of means (points),{between}95 % interval",
            ylim=(-0.6, len(judged) - 0.4),
        )
        axis.grid(axis="x")


def _aside(values: Sequence[float]) -> np.ndarray:
    """How far to move each mark up or down: equal ones would look like one."""
    moved = np.zeros(len(values))
    for value in set(values):
        same = [n for n, other in enumerate(values) if other == value]
        moved[same] = np.linspace(-0.25, 0.25, len(same) + 2)[1:-1]
    return moved


def _shortened(claim: str) -> str:
    """A claim without what explains it."""
    return re.split(r":| \(", claim)[0]


def _curves(setting: Setting, quantity: str) -> np.ndarray:
    """A row for each finished run, a column for each epoch."""
    if quantity == TRAINING_LOSS:
        values = [[line["train_loss"] for line in r.lines] for r in setting.finished]
        return np.array(values, float)
    values = [[line["test_accuracy"] for line in r.lines] for r in setting.finished]
    return 100 * (1 - np.array(values, float))


def _scale(axis: "Axes", curves: Sequence[np.ndarray]) -> None:
    """A logarithmic axis down to the smallest value that is not 0."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    values = np.concatenate([curve.ravel() for curve in curves])
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size:
        axis.set_yscale("log")
        axis.set_ylim(0.8 * positive.min(), 1.25 * positive.max())
        # As many labels as there is room for, and a decade apart if need be.
        subs = (1.0, 2.0, 5.0) if positive.max() < 300 * positive.min() else (1.0,)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


def _accuracy_legend(axis: "Axes", with_published: bool) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, color: str, label: str, **options: Any) -> Line2D:
        return Line2D(
            [], [], ls="none", marker=marker, color=color, label=label, **options
        )

    marks = [
        mark("o", BLUE, "a seed", mfc="none"),
        mark("|", "black", "mean ± standard deviation", ms=9),
    ]
    if with_published:
        marks.append(mark("D", VERMILION, "published", ms=4))
    axis.legend(
        handles=marks,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        handletextpad=0.1,
        borderpad=0,
    )


@contextmanager
def _canvas(
    stem: Path,
    down: int = 1,
    across: int = 1,
    *,
    height: float,
    width: float = _WIDTH,
) -> Iterator[tuple["Canvas", list["Axes"]]]:
    """A figure to draw on, its size in inches; in the end it is saved."""
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        canvas, axes = plt.subplots(
            down,
            across,
            figsize=(width, height),
            layout="constrained",
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        try:
            yield canvas, list(axes.flat)
            save(canvas, stem)
        finally:
            plt.close(canvas)


def save(canvas: "Canvas", stem: Path) -> None:
    """Saves a figure as PNG and SVG; ``stem`` is its path without ending."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    _save_png(canvas, Path(f"{stem}.png"))
    canvas.savefig(f"{stem}.svg", metadata={"Date": None})
    shorten(Path(f"{stem}.svg"))


def _save_png(canvas: "Canvas", path: Path) -> None:
    """With a palette of 256 colours: a third of the size, and no difference to see."""
    from PIL import Image

    file = io.BytesIO()
    canvas.savefig(file, format="png", dpi=200)
    image = Image.open(file).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True, dpi=(200, 200)
    )


def shorten(svg: Path) -> None:
    """Rounds the coordinates of paths to hundredths of a point: half the size."""

    def round_all(path: re.Match[str]) -> str:
        return re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", path[0])

    svg.write_text(re.sub(r'(?<= )d="[^"]*"', round_all, svg.read_text()))
