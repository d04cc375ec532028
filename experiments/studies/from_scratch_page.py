"""What follows from the numbers of the fifth study: verdicts, tables, figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.drawing import NARROW, drawing
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.stats import contrast, describe
from experiments.report.text import dataset_title
from experiments.studies.lesson import KINDS, RATES, ROWS, Row
from experiments.studies.settings import Settings
from experiments.studies.study import FIGURES, Outcome
from experiments.studies.styles import line_style
from experiments.studies.verdicts import (
    NEVER,
    NO,
    YES,
    Claim,
    Verdict,
    count,
    in_numbers,
    judge,
)

_POINTS = 2.0  # seeds and initial weights are others: as near as this is the same
_ROUNDING = 1e-3  # of what decay moves in a step; float32 has 1e-7 of the weights
_ALIKE = 0.01  # ratio of norms that pass for the same, less 1
_USED = 0.4  # the lesson's learning rate for SGD


def tell(settings: Settings, data: Mapping[str, Any], folder: Path | None) -> Outcome:
    """Judges the lesson's table and what it says of weight decay."""
    accuracy, decays = data["accuracy"], data["weight_decay"]
    if folder is not None:
        _draw_gradients(data["gradients"], folder)
        _draw_finder(data["finder"], folder)
    rows = [_judge(row, accuracy[name]["test"]) for name, row in ROWS.items()]
    verdicts = [*rows, *_judge_decays(decays)]
    blocks = [
        *_table_blocks(accuracy),
        *_figure_blocks(data["finder"]),
        *_decay_blocks(settings, decays),
    ]
    follows = _follows(verdicts, accuracy, data["finder"], decays)
    return Outcome(verdicts, follows, blocks)


def _judge(row: Row, tests: Sequence[float]) -> Verdict:
    """Whether the whole interval of the mean is within two points."""
    claim = (
        f"{row.title}: {100 * row.test:.1f} % on the test images after {row.epochs}"
        f" epoch{'s' * (row.epochs > 1)}, to {_POINTS:g} points"
    )
    if not tests:
        return Verdict(claim, NEVER, "no runs")
    sample = describe(100 * test for test in tests)
    apart = sample.mean - 100 * row.test
    evidence = f"here {in_numbers(sample)}: {apart:+.2f} points"
    found = contrast([(1.0, sample)])
    if found is None:
        return Verdict(claim, NO, f"undecided: {evidence}; needs two seeds")
    low, high = found.low - 100 * row.test, found.high - 100 * row.test
    evidence += f", 95 % interval {low:+.2f} to {high:+.2f}"
    if low >= -_POINTS and high <= _POINTS:
        return Verdict(claim, YES, evidence)
    why = "undecided" if low <= _POINTS and high >= -_POINTS else "the opposite"
    return Verdict(claim, NO, f"{why}: {evidence}")


def _judge_decays(decays: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Verdict]:
    claims = [
        Claim(
            f"{name}: L2 shrinks the kernels more than decoupled weight decay of the"
            " same size",
            ("mean norm, decoupled", [one["decoupled"]["norm"] for one in runs]),
            ("L2", [one["L2"]["norm"] for one in runs]),
        )
        for name, runs in decays.items()
        if name != "sgd"
    ]
    same = [_judge_same(decays["sgd"])] if "sgd" in decays else []
    return [*same, *judge(claims)]


def _judge_same(runs: Sequence[Mapping[str, Any]]) -> Verdict:
    claim = "SGD without momentum: L2 and decoupled weight decay are the same step"
    if not runs:
        return Verdict(claim, NEVER, "no runs")
    apart = [one["first_step"] for one in runs]
    norms = ", ".join(
        f"{kind} {in_numbers(describe(one[kind]['norm'] for one in runs), 3)}"
        for kind in ("L2", "decoupled")
    )
    evidence = (
        f"their first steps differ by at most {max(apart):.1g} of what decay moved (n ="
        f" {len(apart)}; rounding explains up to {_ROUNDING:g}); mean norm in the end:"
        f" {norms}"
    )
    return Verdict(claim, YES if max(apart) < _ROUNDING else NO, evidence)


def _table_blocks(accuracy: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Block]:
    rows = []
    for name, row in ROWS.items():
        here = {
            part: in_numbers(describe(100 * x for x in accuracy[name][part]), 1)
            for part in ("train", "test")
        }
        rows.append(
            [
                row.title,
                str(row.epochs),
                f"{100 * row.train:.1f}",
                here["train"].rpartition(",")[0],
                f"{100 * row.test:.1f}",
                here["test"].rpartition(",")[0],
                str(len(accuracy[name]["test"])),
            ]
        )
    header = ["optimizer", "epochs", "train, lesson", "train, here"]
    header += ["test, lesson", "test, here", "n"]
    return [
        Heading(2, "The lesson's table"),
        Paragraph(
            "Accuracies in percent, here as mean (standard deviation) over n seeds;"
            " that on training images is the mean over the last epoch, as they were"
            " trained on. The lesson's figures are of one run."
        ),
        Table(header, rows, numeric=header[1:]),
    ]


def _figure_blocks(finder: Mapping[str, Any]) -> list[Block]:
    suggestion = finder["suggestion"]
    told = "none" if suggestion is None else f"{suggestion:.2g}"
    return [
        Heading(2, "Gradients, layer by layer"),
        Picture(
            f"{FIGURES}/gradient-mean",
            "Mean of each layer's gradient over the steps, a column an optimizer",
            "Mean of the gradient of each convolution kernel at every step, first seed:"
            " a row for each layer, with a scale of its own. Gradients of the head sum"
            " to zero over the classes: its mean is rounding.",
        ),
        Picture(
            f"{FIGURES}/gradient-std",
            "Deviation of each layer's gradient over the steps, a column an optimizer",
            "Standard deviation of the same gradients.",
        ),
        Heading(2, "The learning-rate finder"),
        Paragraph(
            f"For SGD without momentum it suggests {told}; the lesson uses {_USED:g}."
        ),
        Picture(
            f"{FIGURES}/finder",
            "Loss over the learning rate, with the suggestion",
            "The learning rate grows by 1.3 at every batch, until the smoothed loss is"
            " 3 times its lowest; dots are single batches.",
        ),
    ]


def _decay_blocks(
    settings: Settings, decays: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Block]:
    rows = [
        [
            f"{name}, {kind}",
            f"{RATES[name]:g}",
            in_numbers(describe(100 * one[kind]["test"] for one in runs)),
            in_numbers(describe(one[kind]["norm"] for one in runs), 3),
        ]
        for name, runs in decays.items()
        for kind in KINDS
    ]
    header = ["optimizer, decay", "learning rate", "test accuracy (%)"]
    header += ["mean norm of the kernels"]
    return [
        Heading(2, "Weight decay and L2"),
        Paragraph(
            f"{settings['decay_epochs']} epoch{'s' * (settings['decay_epochs'] > 1)} at"
            f" decay {settings['decay']:g}. L2 is added to the gradient, and what"
            " divides the gradient divides it too; decoupled decay shrinks the weights"
            " by the learning rate times the decay, whatever the gradient is. The norm"
            " is that of the kernels before a batch norm, where it changes nothing but"
            " the effective learning rate."
        ),
        Table(header, rows, numeric=header[1:]),
    ]


def _follows(
    verdicts: Sequence[Verdict],
    accuracy: Mapping[str, Mapping[str, Sequence[float]]],
    finder: Mapping[str, Any],
    decays: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[str]:
    near = sum(
        abs(100 * (np.mean(accuracy[name]["test"]) - row.test)) <= _POINTS
        for name, row in ROWS.items()
        if accuracy[name]["test"]
    )
    lines = [
        f"Of {count(verdicts)}.",
        f"The mean of our seeds is within {_POINTS:g} points of the lesson's figure in"
        f" {near} of {len(ROWS)} rows. The verdicts ask for more: that the whole"
        " interval of the mean is.",
    ]
    if finder["suggestion"] is not None:
        lines.append(
            f"The finder's suggestion for SGD, {finder['suggestion']:.2g}, is"
            f" {finder['suggestion'] / _USED:.1f} times what the lesson uses; the loss"
            f" is lowest at {finder['lowest']:.2g}."
        )
    shrunk = [
        f"{name} {_shrunk(runs, 'L2'):.1f} % and {_shrunk(runs, 'decoupled'):.1f} %"
        for name, runs in decays.items()
    ]
    lines.append(
        "L2 and decoupled decay of the same size shrink the kernels, against none, by:"
        f" {'; '.join(shrunk)}."
    )
    if runs := decays.get("sgdmrt"):
        apart = max(abs(r["L2"]["norm"] / r["decoupled"]["norm"] - 1) for r in runs)
        lines.append(
            f"With SGD-MRT the two norms are at most {100 * apart:.2g} % apart in any"
            " run: transport takes out of the momentum what points"
            " along the weights, so the pull of L2 acts in its own step and no other."
            if apart < _ALIKE
            else f"With SGD-MRT the two norms are up to {100 * apart:.2g} % apart."
        )
    return lines


def _shrunk(runs: Sequence[Mapping[str, Any]], kind: str) -> float:
    """By how many percent the norm is below that without decay."""
    ratios = [one[kind]["norm"] / one["none"]["norm"] for one in runs]
    return 100 * (1 - float(np.mean(ratios)))


def _draw_gradients(gradients: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """A row a layer, a column an optimizer."""
    layers = next(iter(gradients.values()))["layers"]
    for part in ("mean", "std"):
        with drawing(
            folder / f"gradient-{part}",
            len(layers),
            len(gradients),
            height=0.5 + 1.05 * len(layers),
            width=NARROW,
            sharex="col",
            sharey="row",
        ) as axes:
            grid = np.array(axes).reshape(len(layers), -1)
            for column, (name, found) in enumerate(gradients.items()):
                values = np.array(found[part])
                steps = np.arange(1, len(values) + 1)
                for row, layer in enumerate(layers):
                    axis = grid[row, column]
                    axis.plot(steps, values[:, row], **{**line_style(0), "lw": 0.8})
                    axis.axhline(0, color="0.7", lw=0.6)
                    axis.ticklabel_format(axis="y", scilimits=(-2, 2))
                    axis.yaxis.get_offset_text().set_fontsize(6.5)
                    axis.tick_params(labelsize=7)
                    if not column:
                        axis.set_ylabel(layer, fontsize=8)
                grid[0, column].set_title(ROWS[name].short, fontsize=8.5)
                grid[-1, column].set_xlabel("step", fontsize=8)


def _draw_finder(finder: Mapping[str, Any], folder: Path) -> None:
    top = 1.15 * max(finder["smoothed"][0], finder["smoothed"][-1])
    with drawing(folder / "finder", height=2.7, width=NARROW) as (axis,):
        axis.plot(finder["rates"], finder["losses"], ".", color="0.6", ms=4)
        axis.plot(finder["rates"], finder["smoothed"], **line_style(0))
        if finder["suggestion"]:
            axis.axvline(finder["suggestion"], **line_style(1))
            axis.annotate(
                f"falls fastest: {finder['suggestion']:.2g} ",
                (finder["suggestion"], 0.95 * top),
                ha="right",
                va="top",
            )
        axis.set(xscale="log", xlabel="learning rate", ylabel="loss of the batch")
        axis.set_ylim(0, top)


def about(settings: Settings) -> str:
    """What is run, and with what."""
    return (
        f"The lesson's network of five convolutions with batch norm on"
        f" {dataset_title(settings['dataset'])}, batches of {settings['batch_size']},"
        f" constant learning rate, no augmentation; {settings['seeds']} seeds for the"
        f" table, {settings['decay_seeds']} for weight decay. Seeds and initial weights"
        " are not the lesson's."
    )
