"""Study 2: which leaf goes over from Adam to SGD, when, and does it help?"""

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.columns import Column, Setting
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.published import judge_claims
from experiments.results import Run
from experiments.runs import SWITCH_POINTS
from experiments.studies.drawing import drawing, line_style
from experiments.studies.grids import grid_blocks, run_grid
from experiments.studies.study import (
    FIGURES,
    NEVER,
    NO,
    YES,
    Outcome,
    Place,
    Study,
    Verdict,
    verdict_of,
)

_THRESHOLD, _OF_THE_PAPER = "1e-05", "1e-09"
_OPTIMIZERS = (
    *(
        f"swats:switch={switch}:threshold={threshold}"
        for threshold in (_THRESHOLD, _OF_THE_PAPER)
        for switch in ("local", "global", "vector")
    ),
    "adabound",
)


def run(place: Place) -> Outcome:
    """SWATS with three switches and two thresholds, and AdaBound."""
    dataset = "digits" if place.small else "fashion_mnist"
    column = run_grid(place, dataset, "small_resnet", _OPTIMIZERS, "--epochs=2")
    switched = {
        label: _points(setting)
        for setting, label in zip(column.settings, column.labels, strict=True)
        if setting.optimizer == "swats"
    }
    claims = [f for f in judge_claims(_at(column, _THRESHOLD)) if "SWATS" in f.claim]
    title = f"small ResNet on {dataset}"
    blocks = [
        *grid_blocks(column, [], place, "local-swats", title),
        *_switch_blocks(column, switched, place, title),
    ]
    verdicts = [*map(verdict_of, claims), _about_threshold(column)]
    return Outcome(verdicts, blocks, {"switch_points": switched})


def _at(column: Column, threshold: str) -> Column:
    """The runs with one threshold, and those of AdaBound."""
    rows = [
        (setting, label)
        for setting, label in zip(column.settings, column.labels, strict=True)
        if setting.optimizer != "swats"
        or setting.hyperparameters["threshold"] == float(threshold)
    ]
    return Column(column.config, [r[0] for r in rows], [r[1] for r in rows])


def _about_threshold(column: Column) -> Verdict:
    """The published experiments had to raise the threshold for any leaf to switch."""
    claim = "At the threshold of the paper, 1e-9, no leaf switches; at 1e-5 some do"
    counts: dict[str, list[int]] = {}
    for setting in column.settings:
        if (
            setting.optimizer == "swats"
            and setting.hyperparameters["switch"] == "local"
        ):
            threshold = f"{setting.hyperparameters['threshold']:.0e}"
            counts[threshold] = [len(_read(run)) for run in setting.finished]
    low, high = counts.get(_OF_THE_PAPER, []), counts.get(_THRESHOLD, [])
    if not low or not high:
        return Verdict(claim, NEVER, "no finished run with a local switch")
    holds = not any(low) and all(high)
    evidence = (
        f"leaves that switched in each run, local switch: {low} at 1e-9, {high} at 1e-5"
    )
    return Verdict(claim, YES if holds else NO, evidence)


def _points(setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """By seed, which leaf switched when."""
    return {str(run.seed): _read(run) for run in setting.finished}


def _read(run: Run) -> list[dict[str, Any]]:
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
    column: Column,
    switched: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    place: Place,
    title: str,
) -> list[Block]:
    rows = [
        [
            label,
            seed,
            point["path"],
            str(point["step"]),
            f"{point['sgd_learning_rate']:.4g}",
        ]
        for label, seeds in switched.items()
        for seed, points in seeds.items()
        for point in _shortened(points)
    ]
    counts = [
        [label, ", ".join(str(len(points)) for points in seeds.values())]
        for label, seeds in switched.items()
    ]
    blocks: list[Block] = [
        Heading(2, "Who switched, and when"),
        Table(["optimizer", "leaves that switched, seed by seed"], counts),
    ]
    if not rows:
        return [*blocks, Paragraph("No leaf switched in any run.")]
    _draw(switched, place, column.runs[0].lines[-1]["step"])
    names = ["optimizer", "seed", "leaf", "step", "SGD learning rate"]
    return [
        *blocks,
        Picture(
            f"{FIGURES}/local-swats-switches",
            "A mark for each leaf that switched: step and SGD learning rate",
            "Each leaf that went over to SGD: at which step, and with which estimated"
            f" learning rate; first seed of each. {title}.",
        ),
        Table(names, rows, numeric=["seed", "step", "SGD learning rate"]),
    ]


def _shortened(points: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """All where each leaf has its own; one where all switched together."""
    together = len(points) > 1 and len({point["step"] for point in points}) == 1
    if together:
        return [{**points[0], "path": f"all {len(points)} leaves"}]
    return points


def _draw(
    switched: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    place: Place,
    last_step: int,
) -> None:
    stem = place.figures / "local-swats-switches"
    firsts = {
        label: next(iter(seeds.values()), []) for label, seeds in switched.items()
    }
    shown = {label: points for label, points in firsts.items() if points}
    height = 0.9 + sum(0.35 + 0.13 * len(_shortened(p)) for p in shown.values())
    sizes = [max(len(_shortened(points)), 2) for points in shown.values()]
    with drawing(
        stem,
        len(shown),
        height=min(height, 11),
        sharex=True,
        gridspec_kw={"height_ratios": sizes},
    ) as axes:
        for index, (axis, (label, points)) in enumerate(
            zip(axes, shown.items(), strict=True)
        ):
            points = _shortened(points)
            colour = line_style(index)["color"]
            for y, point in enumerate(points):
                axis.plot([1, point["step"]], [y, y], color="0.85", lw=1)
                axis.plot(point["step"], y, "o", color=colour, ms=4)
                axis.annotate(
                    f" {point['sgd_learning_rate']:.2g}",
                    (point["step"], y),
                    va="center",
                    fontsize=6,
                )
            axis.set_yticks(range(len(points)), [p["path"] for p in points], fontsize=6)
            axis.set_title(label, loc="left", fontsize=8)
            axis.set(ylim=(-0.7, len(points) - 0.3), xlim=(1, 1.25 * last_step))
            axis.set_xscale("log")
        axes[-1].set_xlabel("step of the switch; beside it the SGD learning rate")


STUDY = Study(
    name="local_swats",
    title="Adam to SGD, leaf by leaf",
    question=(
        "Does SWATS train better when each leaf switches on its own, and which leaf"
        " switches when?"
    ),
    source="AnirudhMaiya's local SWATS; Keskar and Socher 2017",
    about=(
        "SWATS with a local, a global and a joint switch, at the threshold of the paper"
        " (1e-9) and at that of the local experiments (1e-5), and AdaBound, on a small"
        " ResNet with batch norm, Fashion-MNIST, 2 epochs of batches of 64, two seeds."
        " The published runs are 200 epochs of ResNet-18 and DenseNet-121 on CIFAR-10."
    ),
    full_scale=tuple(
        "python -m experiments.reproduce --dataset cifar10 --model"
        f" {model} --protocol swats --optimizers all --seeds 0..2"
        for model in ("resnet18", "densenet121")
    ),
    seeds=2,
    run=run,
)
