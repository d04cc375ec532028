"""What follows from the numbers of the fourth study: verdicts, tables, figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.drawing import NARROW, drawing
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.stats import describe
from experiments.report.text import dataset_title
from experiments.studies import dinh
from experiments.studies.settings import Settings
from experiments.studies.study import FIGURES, Outcome
from experiments.studies.styles import COLOURS, legend_above
from experiments.studies.verdicts import YES, Claim, Verdict, count, in_numbers, judge

_QUANTITIES = {
    "test_accuracy": "test accuracy (%)",
    "train_loss": "training loss",
    "box": "(a) box (%)",
    "sphere": "(b) spheres (%)",
    "eigenvalue": "(c) eigenvalue",
}
_MARGIN = 0.1  # share of the small batch's training loss that counts as the same
Found = Mapping[tuple[str, bool], Sequence[Mapping[str, Any]]]
"""Runs by optimizer, and whether the batch is the large one."""


def tell(settings: Settings, data: Mapping[str, Any], folder: Path | None) -> Outcome:
    """Judges Keskar's claims for every optimizer, and Dinh's objection."""
    found = {
        (optimizer, large): [
            r
            for r in data["runs"]
            if (r["optimizer"], r["large"]) == (optimizer, large)
        ]
        for optimizer in settings["learning_rates"]
        for large in (False, True)
    }
    if folder is not None:
        _draw(found, settings, folder / "large-batch")
    claims = [
        claim
        for optimizer in settings["learning_rates"]
        for claim in _claims(optimizer, found, settings)
    ]
    verdicts = judge(claims)
    told = [*verdicts, dinh.judge_objection(data["dinh"])]
    blocks = [*_blocks(settings, found), *dinh.blocks(data["dinh"], folder)]
    return Outcome(told, _follows(verdicts, settings, found), blocks)


def _claims(optimizer: str, found: Found, settings: Settings) -> list[Claim]:
    large, small = settings["large_batch"], settings["small_batch"]

    def values(quantity: str, is_large: bool) -> tuple[str, list[float]]:
        runs = found[optimizer, is_large]
        name = f"batch {large if is_large else small}"
        return name, [run[quantity] for run in runs]

    losses = values("train_loss", False)[1]
    margin = _MARGIN * float(np.mean(losses)) if losses else 0.0
    told = f"{optimizer}: batches of {large}"
    return [
        Claim(
            f"{told} reach the training loss of {small}, or at most"
            f" {100 * _MARGIN:.0f} % above",
            values("train_loss", False),
            values("train_loss", True),
            margin=margin,
        ),
        Claim(
            f"{told} end in a worse test accuracy",
            values("test_accuracy", False),
            values("test_accuracy", True),
            unit=" points",
            digits=2,
        ),
        *(
            Claim(
                f"{told} end in a sharper minimum {_QUANTITIES[quantity][:3]}",
                values(quantity, True),
                values(quantity, False),
                digits=2,
            )
            for quantity in ("box", "sphere", "eigenvalue")
        ),
    ]


def _draw(found: Found, settings: Settings, stem: Path) -> None:
    optimizers = list(settings["learning_rates"])
    with drawing(stem, 3, 2, height=6.2, width=NARROW) as axes:
        for axis, (name, words) in zip(axes, _QUANTITIES.items(), strict=False):
            for index, optimizer in enumerate(optimizers):
                for large, mark in ((False, "o"), (True, "s")):
                    values = [r[name] for r in found[optimizer, large]]
                    x = np.full(len(values), index + (0.17 if large else -0.17))
                    size = settings["large_batch" if large else "small_batch"]
                    axis.plot(
                        x,
                        values,
                        mark,
                        color=COLOURS[int(large)],
                        mfc="none",
                        label=f"batch {size}" if not index else None,
                    )
            axis.set_xticks(range(len(optimizers)), optimizers)
            axis.set_title(words, loc="left")
            axis.set_xlim(-0.5, len(optimizers) - 0.5)
            if name != "test_accuracy":
                axis.set_ylim(bottom=0)
            axis.grid(axis="y", lw=0.5)
        axes[-1].remove()
        legend_above(axes)


def _blocks(settings: Settings, found: Found) -> list[Block]:
    rows = []
    for (optimizer, _), group in found.items():
        if not group:
            continue
        cells = [
            in_numbers(describe(r[name] for r in group), 2 if "acc" in name else 3)
            for name in _QUANTITIES
        ]
        how = f"{optimizer}, batch {group[0]['batch_size']},"
        how += f" rate {group[0]['learning_rate']:g}, {group[0]['epochs']} epochs"
        rows.append([how, *(cell.rpartition(", n = ")[0] for cell in cells)])
        rows[-1].append(str(len(group)))
    header = ["runs", *_QUANTITIES.values(), "n"]
    return [
        Heading(2, "Small and large batches"),
        Paragraph(
            "Mean (standard deviation) over n seeds. (a) is Keskar's sharpness in a box"
            f" of epsilon {settings['box']:g}. (b) is sharpness on spheres: the"
            f" perturbation of a group is at most {settings['ball']:g} of its norm. (c)"
            " is the largest eigenvalue of the Hessian, by"
            f" {settings['lanczos_steps']} steps of Lanczos. All on the first"
            f" {settings['images']:,} training images, with batch statistics, as is the"
            " training loss."
        ),
        Table(header, rows, numeric=header[1:]),
        Picture(
            f"{FIGURES}/large-batch",
            "Accuracy, training loss and three measures of sharpness, by optimizer",
            "Every seed; circles are small batches, squares large ones.",
        ),
    ]


def _follows(
    verdicts: Sequence[Verdict], settings: Settings, found: Found
) -> list[str]:
    lines = [f"Of {count(verdicts)}; besides, Dinh's objection is an experiment below."]
    for optimizer in settings["learning_rates"]:
        mine = [v for v in verdicts if v.claim.startswith(f"{optimizer}:")]
        words = ("training loss", "test accuracy", "(a)", "(b)", "(c)")
        parts = [
            f"{word} {'as claimed' if v.verdict == YES else _why(v)}"
            for word, v in zip(words, mine, strict=True)
        ]
        lines.append(f"{optimizer}: {', '.join(parts)}.")
    disagreeing = [
        optimizer
        for optimizer in settings["learning_rates"]
        if found[optimizer, True]
        and found[optimizer, False]
        and (_ratio(found, optimizer, "eigenvalue") > 1)
        != (_ratio(found, optimizer, "sphere") > 1)
    ]
    for optimizer in disagreeing:
        box, ball, top = (
            _ratio(found, optimizer, name) for name in ("box", "sphere", "eigenvalue")
        )
        lines.append(
            f"With {optimizer} the measures disagree: large over small batch is"
            f" {box:.2f} in (a), {ball:.2f} in (b), {top:.2f} in (c). Where weights are"
            " of another size, (a) and (c) compare perturbations of another relative"
            " size; (b) does not."
        )
    lines.append(
        "The large batches have other learning rates and four times the epochs, and"
        " were not tuned for accuracy: what is compared is two ways to train, not the"
        " batch size alone."
        if settings["large_epochs"] != settings["small_epochs"]
        else "Both see the same images; learning rates differ and were not tuned."
    )
    return lines


def _why(verdict: Verdict) -> str:
    return verdict.evidence.split(":")[0] if ":" in verdict.evidence else "not run"


def _ratio(found: Found, optimizer: str, quantity: str) -> float:
    large, small = (
        np.mean([run[quantity] for run in found[optimizer, is_large]])
        for is_large in (True, False)
    )
    return float(large / small)


def about(settings: Settings) -> str:
    """What is run, and with what."""
    return (
        f"The five-convolution network with batch norm on"
        f" {dataset_title(settings['dataset'])}, {settings['small_epochs']} epochs with"
        f" batches of {settings['small_batch']} and {settings['large_epochs']} epochs"
        f" with batches of {settings['large_batch']}, cosine schedule, no augmentation,"
        f" {settings['seeds']} seeds. With more images the large batches still make far"
        " fewer steps: the column of the training loss says how far they get."
    )
