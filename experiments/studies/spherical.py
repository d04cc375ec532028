"""Study 1: do optimizers that know of spheres train a normalized network better?"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.drawing import NARROW
from experiments.report.columns import Column
from experiments.report.figures import draw_findings
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.published import Finding
from experiments.report.stats import Sample, contrast
from experiments.report.text import dataset_title
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
from experiments.studies.verdicts import Verdict, count


def run(place: Place) -> dict[str, Any]:
    """Seven optimizers on a batch-normalized ResNet."""
    return {"runs": to_data(run_grid(place, place.settings["optimizers"]))}


def tell(settings: Settings, data: Mapping[str, Any], folder: Path | None) -> Outcome:
    """Judges the paper's claims by the runs."""
    column = from_data(data["runs"])
    findings, verdicts = judge_published(column, "", "Roburin")
    blocks = [
        *grid_blocks(column, folder, "spherical"),
        Paragraph(
            "For AdamG the learning rate is the angle of a step, in radians, for the"
            " weights on spheres; for all others it is a length."
        ),
        *_claims(column, findings, folder),
        *_distances(column),
    ]
    return Outcome(verdicts, _follows(verdicts, findings, column), blocks)


def _claims(
    column: Column, findings: Sequence[Finding], folder: Path | None
) -> list[Block]:
    if not any(finding.contrast for finding in findings):
        return []
    if folder is not None:
        draw_findings(findings, folder / "spherical-claims", NARROW)
    return [
        Heading(2, "The claimed ordering"),
        Picture(
            f"{FIGURES}/spherical-claims",
            "Differences of mean accuracies with intervals",
            f"What is claimed to be above 0, with 95 % intervals: a {about(column)}.",
        ),
    ]


def _distances(column: Column) -> list[Block]:
    """How far each optimizer stays below SGD, and how much of Adam's gap it closes."""
    samples = {
        s.optimizer: s.accuracy for s in column.settings if s.accuracy.n and s.finished
    }
    if "sgd" not in samples:
        return []
    rows = [
        _distance(name, samples)
        for name in sorted(samples, key=lambda name: -samples[name].mean)
        if name != "sgd"
    ]
    header = ["optimizer", "below SGD (points)", "95 % interval"]
    header += ["of the gap between Adam and SGD closed"]
    return [
        Heading(2, "Distance to SGD with momentum"),
        Table(header, rows, numeric=header[1:]),
    ]


def _distance(name: str, samples: Mapping[str, Sample]) -> list[str]:
    sgd, mine = samples["sgd"], samples[name]
    found = contrast([(1.0, sgd), (-1.0, mine)])
    interval = f"{found.low:+.2f} to {found.high:+.2f}" if found else "-"
    closed = "-"
    if "adam" in samples and sgd.mean > samples["adam"].mean and name != "adam":
        adam = samples["adam"].mean
        closed = f"{100 * (mine.mean - adam) / (sgd.mean - adam):.0f} %"
    return [name, f"{sgd.mean - mine.mean:+.2f}", interval, closed]


def _follows(
    verdicts: Sequence[Verdict], findings: Sequence[Finding], column: Column
) -> list[str]:
    lines = [f"Of {count(verdicts)}."]
    found = [f.contrast for f in findings if f.contrast]
    if found:
        reach = statistics.median((f.high - f.low) / 2 for f in found)
        lines.append(
            f"The intervals reach {reach:.2f} points to either side (median). The"
            " published differences for ResNet-20 on CIFAR-10 are 0.17 (AdamS over"
            " Adam, AdamSRT over AdamG) to 1.62 points (AdamSRT over AdamW), so the"
            " smaller ones could not have been seen with so few seeds, whichever way"
            " they are."
        )
    lines.append(
        f"{column.config['epochs']} epochs show who starts fast; the paper's ordering"
        " is that after 405, on other images. It is neither confirmed nor refuted by"
        " these runs; the commands below are what would."
    )
    return lines


def _about(settings: Settings) -> str:
    return (
        "A small ResNet with batch norm (77,754 weights) on"
        f" {dataset_title(settings['dataset'])}: {' '.join(settings['options'])}, a"
        f" cosine schedule, batches of 64 and {settings['seeds']} seeds, as much as two"
        " CPU cores do in about an hour, which is the budget. Hyperparameters are those"
        " published for ResNet-20 on CIFAR-10 and were not tuned here; the paper trains"
        " for 405 epochs on larger networks."
    )


STUDY = Study(
    name="spherical",
    title="Optimizers on spheres",
    question="Does AdamSRT train better than AdamS, and AdamS better than Adam?",
    source="Roburin et al. 2020",
    about=_about,
    run=run,
    tell=tell,
)
