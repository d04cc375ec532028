"""Study 2: which leaf goes over from Adam to SGD, when, and does it help?"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.drawing import NARROW, drawing
from experiments.report.columns import Column
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.text import dataset_title
from experiments.results import Run
from experiments.runs import SWITCH_POINTS
from experiments.studies.grids import (
    about,
    from_data,
    grid_blocks,
    judge_published,
    run_grid,
    to_data,
)
from experiments.studies.settings import Settings
from experiments.studies.study import FIGURES, Outcome, Place, Study
from experiments.studies.styles import style_of
from experiments.studies.verdicts import NEVER, NO, YES, Verdict, count, in_numbers

_OF_THE_PAPER = 1e-9
Point = Mapping[str, Any]
Switched = dict[str, dict[str, list[Point]]]
"""By label of the optimizer and by seed: which leaf switched, when, to which rate."""


def run(place: Place) -> dict[str, Any]:
    """SWATS with three switches and two thresholds, and AdaBound."""
    settings = place.settings
    optimizers = [
        f"swats:switch={switch}:threshold={threshold:g}"
        for threshold in settings["thresholds"]
        for switch in settings["switches"]
    ]
    column = run_grid(place, [*optimizers, "adabound"])
    switched = {
        label: {str(run.seed): _read(run) for run in setting.finished}
        for setting, label in zip(column.settings, column.labels, strict=True)
        if setting.optimizer == "swats"
    }
    steps = max(run.lines[-1]["step"] for run in column.runs if run.lines)
    return {"runs": to_data(column), "switch_points": switched, "steps": steps}


def tell(settings: Settings, data: Mapping[str, Any], folder: Path | None) -> Outcome:
    """Judges the claims, and shows who switched."""
    column, switched = from_data(data["runs"]), data["switch_points"]
    high = max(settings["thresholds"])
    _, verdicts = judge_published(_at(column, high), "SWATS", "AnirudhMaiya")
    verdicts.append(_about_threshold(column, switched, high))
    blocks = [
        *grid_blocks(column, folder, "local-swats"),
        *_switch_blocks(column, switched, data["steps"], folder),
    ]
    return Outcome(verdicts, _follows(verdicts, column, switched, high), blocks)


def _at(column: Column, threshold: float) -> Column:
    """The runs with one threshold, and those of AdaBound."""
    rows = [
        (setting, label)
        for setting, label in zip(column.settings, column.labels, strict=True)
        if setting.hyperparameters.get("threshold", threshold) == threshold
    ]
    return Column(column.config, [r[0] for r in rows], [r[1] for r in rows])


def _counts(
    column: Column, switched: Switched, threshold: float, switch: str
) -> list[int]:
    """How many leaves switched in each run."""
    return [
        len(points)
        for setting, label in zip(column.settings, column.labels, strict=True)
        if setting.hyperparameters.get("switch") == switch
        and setting.hyperparameters.get("threshold") == threshold
        for points in switched[label].values()
    ]


def _about_threshold(column: Column, switched: Switched, high: float) -> Verdict:
    """The published experiments had to raise the threshold for any leaf to switch."""
    raised_to = _short(high)
    claim = (
        f"At the threshold of the paper, 1e-9, no leaf switches; at {raised_to} some do"
    )
    low, raised = (
        _counts(column, switched, threshold, "local")
        for threshold in (_OF_THE_PAPER, high)
    )
    if not low or not raised:
        return Verdict(claim, NEVER, "no finished run with a local switch")
    evidence = (
        f"leaves that switched in each run, local switch: {_list(low)} at 1e-9 (n ="
        f" {len(low)}), {_list(raised)} at {raised_to} (n = {len(raised)}); a count,"
        " no mean"
    )
    return Verdict(claim, YES if not any(low) and all(raised) else NO, evidence)


def _short(threshold: float) -> str:
    """``1e-5``, where Python writes a zero more."""
    return f"{threshold:g}".replace("e-0", "e-")


def _list(counts: Sequence[int]) -> str:
    return " and ".join(map(str, counts))


def _read(run: Run) -> list[Point]:
    with (run.path / SWITCH_POINTS).open(newline="") as file:
        return [
            {
                "path": row["path"],
                "step": int(row["step"]),
                "sgd_learning_rate": float(row["sgd_learning_rate"]),
            }
            for row in csv.DictReader(file)
        ]


def _switch_blocks(
    column: Column, switched: Switched, steps: int, folder: Path | None
) -> list[Block]:
    counts = [
        [label, ", ".join(str(len(points)) for points in seeds.values())]
        for label, seeds in switched.items()
    ]
    blocks: list[Block] = [
        Heading(2, "Who switched, and when"),
        Table(["optimizer", "leaves that switched, seed by seed"], counts),
    ]
    rows = [
        [label, seed, p["path"], str(p["step"]), f"{p['sgd_learning_rate']:.4g}"]
        for label, seeds in switched.items()
        for seed, points in seeds.items()
        for p in _shortened(points)
    ]
    if not rows:
        return [*blocks, Paragraph("No leaf switched in any run.")]
    if folder is not None:
        _draw(switched, folder / "local-swats-switches", steps)
    names = ["optimizer", "seed", "leaf", "step", "SGD learning rate"]
    return [
        *blocks,
        Picture(
            f"{FIGURES}/local-swats-switches",
            "For each leaf that switched, a line from Adam's phase to the switch",
            "Every leaf that went over to SGD, in order: grey under Adam, in colour"
            " under SGD, whose estimated learning rate stands at the right. The lines"
            f" end at step {steps}, the last. Every seed; a {about(column)}.",
        ),
        Table(names, rows, numeric=["seed", "step", "SGD learning rate"]),
    ]


def _shortened(points: Sequence[Point]) -> Sequence[Point]:
    """In order; one where all switched together."""
    if len(points) > 1 and len({point["step"] for point in points}) == 1:
        return [{**points[0], "path": f"all {len(points)} leaves"}]
    return sorted(points, key=lambda point: point["step"])


def _draw(switched: Switched, stem: Path, steps: int) -> None:
    panels = [
        (f"{label.removeprefix('swats ')}, seed {seed}", _shortened(points))
        for label, seeds in switched.items()
        for seed, points in seeds.items()
        if points
    ]
    sizes = [max(len(points), 1.4) for _, points in panels]
    with drawing(
        stem,
        len(panels),
        height=0.6 + 0.38 * len(panels) + 0.2 * sum(sizes),
        width=NARROW,
        sharex=True,
        gridspec_kw={"height_ratios": sizes},
    ) as axes:
        for axis, (title, points) in zip(axes, panels, strict=True):
            colour = style_of("global" if "global" in title else "local")["color"]
            for y, point in enumerate(points):
                step = point["step"]
                axis.plot([1, step], [y, y], color="0.8", lw=2)
                axis.plot([step, steps], [y, y], color=colour, lw=2)
                axis.plot(step, y, "o", color=colour, ms=4)
                axis.text(
                    1.15 * steps,
                    y,
                    f"{point['sgd_learning_rate']:.2g}",
                    va="center",
                    fontsize=7.5,
                )
            axis.set_yticks(range(len(points)), [p["path"] for p in points])
            axis.tick_params("y", labelsize=7.5)
            axis.set_title(title, loc="left", fontsize=8)
            axis.set_xscale("log")
            axis.set(ylim=(len(points) - 0.4, -0.6), xlim=(1, steps))
        axes[-1].set_xlabel("step of the switch; at the right the SGD learning rate")


def _follows(
    verdicts: Sequence[Verdict], column: Column, switched: Switched, high: float
) -> list[str]:
    never = [
        label for label, seeds in switched.items() if not any(map(any, seeds.values()))
    ]
    lines = [f"Of {count(verdicts)}."]
    accuracy = {
        label: setting.accuracy
        for setting, label in zip(column.settings, column.labels, strict=True)
    }
    reached = {
        run.accuracy
        for setting, label in zip(column.settings, column.labels, strict=True)
        if label in never and setting.finished
        for run in setting.finished[:1]
    }
    if never and len(reached) == 1:
        lines.append(
            f"Where no leaf switches SWATS is Adam:"
            f" {', '.join(never)}, all {in_numbers(accuracy[never[0]])}. So these rows"
            " are what Adam reaches here."
        )
    lines += _moved(column, switched, high)
    n = min(sample.n for sample in accuracy.values())
    lines.append(
        f"{n} seeds and {column.config['epochs']} epochs are little: the published"
        " runs are of 200 epochs, in which 20 of 62 leaves of ResNet-18 switched."
    )
    return lines


def _moved(column: Column, switched: Switched, high: float) -> list[str]:
    """How many leaves a local and a global switch moved."""
    local = _counts(column, switched, high, "local")
    together = _counts(column, switched, high, "global")
    if not local or not together or not all(together):
        return []
    first = [
        points[0]["step"]
        for label, seeds in switched.items()
        if "global" in label
        for points in seeds.values()
        if points
    ]
    return [
        f"At {_short(high)} the local switch moved {_list(local)} leaves, the global"
        f" one {_list(together)}: with it the first leaf that meets the threshold, at"
        f" step {_list(first)}, takes all others along."
    ]


def _about(settings: Settings) -> str:
    return (
        f"SWATS with a switch that is {', '.join(settings['switches'])}, at thresholds"
        f" {' and '.join(map(_short, settings['thresholds']))} (the paper's is 1e-9,"
        " that of the local experiments 1e-5), and AdaBound, on a small ResNet with"
        f" batch norm (77,754 weights) and {dataset_title(settings['dataset'])}:"
        f" {' '.join(settings['options'])}, batches of 64, {settings['seeds']} seeds."
        " The published runs are 200 epochs of ResNet-18 and DenseNet-121 on CIFAR-10."
    )


STUDY = Study(
    name="local_swats",
    title="Adam to SGD, leaf by leaf",
    question=(
        "Does SWATS train better when each leaf switches on its own, and which leaf"
        " switches when?"
    ),
    source="AnirudhMaiya's local SWATS; Keskar and Socher 2017",
    about=_about,
    run=run,
    tell=tell,
)
