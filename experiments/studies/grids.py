"""Grids of runs within a study: begun, gone on with, and read."""

from collections.abc import Sequence
from pathlib import Path

from experiments import errors, reproduce
from experiments.errors import UsageError
from experiments.report.columns import Column, columns_of
from experiments.report.figures import (
    TEST_ERROR,
    TRAINING_LOSS,
    draw_accuracies,
    draw_curves,
    draw_findings,
)
from experiments.report.page import Block, Heading, Picture
from experiments.report.published import Finding, published_figure
from experiments.report.text import accuracy_blocks, settings_line
from experiments.results import find_runs
from experiments.studies.study import FIGURES, OutOfTimeError, Place

_DONE = (errors.EXIT_FINISHED, errors.EXIT_NON_FINITE)


def run_grid(
    place: Place, dataset: str, model: str, optimizers: Sequence[str], *options: str
) -> Column:
    """Runs optimizers by seeds, as far as they are not done, and reads them.

    Args:
      place: with the folder of the grid.
      dataset: of all runs.
      model: of all runs.
      optimizers: names, each with options of its own, as ``swats:switch=local``.
      *options: of all runs.

    Raises:
      OutOfTimeError: there was no time for all of them.
      UsageError: a run broke; what it said was printed.
    """
    out = place.runs
    args = [f"--dataset={dataset}", f"--model={model}", f"--seeds=0..{place.seeds - 1}"]
    args += ["--protocol=none", f"--out={out}", "--optimizers", ",".join(optimizers)]
    if place.clock.left() < float("inf"):
        place.clock.check(1.0)
        args.append(f"--time-limit={place.clock.left():.0f}s")
    code = reproduce.main([*args, *options])
    if code == errors.EXIT_OUT_OF_TIME:
        raise OutOfTimeError
    if code in (errors.EXIT_TERMINATED, errors.EXIT_INTERRUPTED):
        raise KeyboardInterrupt
    if code not in _DONE:
        raise UsageError(f"{out}: not every run could be finished")
    return read_grid(out)


def read_grid(folder: Path) -> Column:
    """The runs of one grid.

    Raises:
      UsageError: there are none, or they are no single grid.
    """
    runs, unreadable = find_runs([folder])
    columns = columns_of(runs)
    if unreadable or len(columns) != 1:
        raise UsageError(f"{folder}: {len(columns)} grids of runs, where one must be")
    return columns[0]


def grid_blocks(
    column: Column, findings: Sequence[Finding], place: Place, stem: str, title: str
) -> list[Block]:
    """The table of accuracies and the figures of a grid."""
    published = [published_figure(setting) for setting in column.settings]
    about = f"{title}; {settings_line(column.config)}"
    blocks: list[Block] = [
        Heading(2, "Accuracies"),
        *accuracy_blocks(column, published),
    ]

    def picture(name: str, alt: str, caption: str) -> Picture:
        return Picture(f"{FIGURES}/{stem}-{name}", alt, f"{caption} {about}.")

    if not any(setting.finished for setting in column.settings):
        return blocks
    draw_accuracies(column, published, place.figures / f"{stem}-accuracy")
    blocks.append(
        picture(
            "accuracy",
            "Test accuracy of each optimizer; the table has the numbers",
            "Test accuracy of every seed, mean and deviation.",
        )
    )
    if column.config["epochs"] > 1:
        for quantity, name in ((TEST_ERROR, "error"), (TRAINING_LOSS, "loss")):
            draw_curves(column, quantity, place.figures / f"{stem}-{name}")
            words = f"{quantity} over the epochs, a panel for each optimizer"
            blocks.append(picture(name, words, f"{words}."))
    if any(finding.contrast for finding in findings):
        draw_findings(findings, place.figures / f"{stem}-claims")
        blocks.append(
            picture(
                "claims",
                "Differences of mean accuracies with intervals",
                "The claims that could be judged.",
            )
        )
    return blocks
