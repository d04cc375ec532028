"""The figures of a report, as PNG and SVG; legible in print and without colours."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.drawing import BLUE, VERMILION, WIDE, drawing, plain
from experiments.report.columns import Column, Setting
from experiments.report.published import UNDECIDED, Figure, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEST_ERROR, TRAINING_LOSS = "test error (%)", "training loss"

_GREY = "#DDDDDD"
_LINE = 0.15  # inches, of text
_LETTERS = 80  # in a line of text as wide as a figure


def draw_accuracies(
    column: Column,
    published: Sequence[Figure | None],
    stem: Path,
    width: float = WIDE,
) -> None:
    """Test accuracy: seeds as circles, mean and deviation, published as diamonds."""
    together = zip(column.settings, column.labels, published, strict=True)
    rows = [row for row in together if row[0].finished]
    # From the bottom, so in the end the reverse of the table, ties included.
    rows.sort(key=lambda row: -row[0].accuracy.mean)
    rows.reverse()
    narrow = width < WIDE
    names = [_wrapped(label, 24 if narrow else 40) for _, label, _ in rows]
    inches = 0.36 if narrow else 0.27  # of a row whose label leaves room
    sizes = [max(1, (0.06 + _LINE * _lines(name)) / inches) for name in names]
    places = np.cumsum(sizes) - np.array(sizes) / 2 - 0.5
    height = 0.75 + inches * sum(sizes)
    with drawing(stem, height=height, width=width) as [axis]:
        for y, (setting, _, figure) in zip(places, rows, strict=True):
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
        names = [plain(name) for name in names]
        axis.set_yticks(places, names, fontsize=8 if narrow else None)
        axis.set(xlabel="test accuracy (%)", ylim=(-0.7, sum(sizes) - 0.3))
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
    longest = max(len(word) for _, label in rows for word in label.split())
    across = min(4, len(rows), max(1, _LETTERS // longest))
    down = -(-len(rows) // across)
    titles = [_wrapped(f"{label}, n={len(c)}", _LETTERS // across) for c, label in rows]
    most = [
        max(map(_lines, titles[i : i + across])) for i in range(0, len(rows), across)
    ]
    height = 0.6 + 1.15 * down + _LINE * sum(most)
    means = np.array([curves.mean(0) for curves, _ in rows])
    epochs = np.arange(1, column.config["epochs"] + 1)
    with drawing(stem, down, across, height=height, sharex=True, sharey=True) as axes:
        canvas: Any = axes[0].get_figure()
        for axis in axes[len(rows) :]:
            axis.remove()
        for axis in axes[len(rows) - across : len(rows)]:
            axis.tick_params(labelbottom=True)
        for axis, (curves, _), title in zip(axes, rows, titles, strict=False):
            axis.fill_between(epochs, means.min(0), means.max(0), color=_GREY, lw=0)
            mean = curves.mean(0)
            if len(curves) > 1:
                std = curves.std(0, ddof=1)
                axis.fill_between(
                    epochs, mean - std, mean + std, color=BLUE, alpha=0.35, lw=0
                )
            axis.plot(epochs, mean, color=BLUE, lw=1.4)
            axis.set_title(plain(title), loc="left")
            axis.grid(lw=0.5)
        _scale(axes[0], [curves for curves, _ in rows])
        canvas.supxlabel("epoch", fontsize=9)
        canvas.supylabel(quantity, fontsize=9)


def draw_findings(findings: Sequence[Finding], stem: Path, width: float = WIDE) -> None:
    """The judged claims: estimates with confidence intervals against 0."""
    judged = [(f, f.contrast) for f in findings if f.contrast][::-1]
    height = 0.6 + 0.36 * len(judged)
    with drawing(stem, height=height, width=width) as [axis]:
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
        between = "\n" if width < WIDE else " "
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


def _wrapped(text: str, width: int) -> str:
    """A text in lines of so many letters; numbers stay whole."""
    return textwrap.fill(text, width, break_on_hyphens=False)


def _lines(text: str) -> int:
    return text.count("\n") + 1


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
