"""Grids of runs within a study: begun, gone on with, kept as numbers, and read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import errors, reproduce
from experiments.drawing import NARROW
from experiments.errors import UsageError
from experiments.report.columns import Column, Setting, columns_of
from experiments.report.figures import (
    TEST_ERROR,
    TRAINING_LOSS,
    draw_accuracies,
    draw_curves,
)
from experiments.report.page import Block, Heading, Picture
from experiments.report.published import Finding, judge_claims
from experiments.report.text import accuracy_blocks, dataset_title
from experiments.results import FINISHED, Run, find_runs
from experiments.stopping import INTERRUPTED, OUT_OF_TIME, TERMINATED, StoppedRun
from experiments.studies.study import FIGURES, Place
from experiments.studies.verdicts import Verdict, in_numbers, verdict_of

_DONE = (errors.EXIT_FINISHED, errors.EXIT_NON_FINITE)
_STOPPED = {
    errors.EXIT_OUT_OF_TIME: OUT_OF_TIME,
    errors.EXIT_TERMINATED: TERMINATED,
    errors.EXIT_INTERRUPTED: INTERRUPTED,
}
_KEPT = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
_CURVE = 3  # epochs; two points are no curve


def run_grid(place: Place, optimizers: Sequence[str]) -> Column:
    """Runs optimizers by seeds, as far as they are not done, and reads them.

    Args:
      place: with the folder of the grid, and settings that name a data set, a model
        and options.
      optimizers: names, each with options of its own, as ``swats:switch=local``.

    Raises:
      StoppedRun: a signal came, or there was no time for all of them.
      UsageError: a run broke; what it said was printed.
    """
    out, settings = place.runs, place.settings
    args = [f"--dataset={settings['dataset']}", f"--model={settings['model']}"]
    args += [f"--seeds=0..{place.seeds - 1}", "--protocol=none", f"--out={out}"]
    args += ["--optimizers", ",".join(optimizers), *settings["options"]]
    if place.clock.left() < float("inf"):
        place.clock.check()
        args.append(f"--time-limit={place.clock.left():.0f}s")
    place.clock.worked = True
    code = reproduce.main(args)
    if code in _STOPPED:
        raise StoppedRun(_STOPPED[code])
    if code not in _DONE:
        raise UsageError(f"{out}: not every run could be finished")
    return read_grid(out, place.seeds)


def read_grid(folder: Path, seeds: int) -> Column:
    """The runs of one grid, those of the first seeds.

    Raises:
      UsageError: there are none, or they are no single grid.
    """
    runs, unreadable = find_runs([folder])
    columns = columns_of(run for run in runs if run.seed < seeds)
    if unreadable or len(columns) != 1:
        raise UsageError(f"{folder}: {len(columns)} grids of runs, where one must be")
    return columns[0]


def to_data(column: Column, *names: str) -> list[dict[str, Any]]:
    """What is kept of every run: its options and its epochs.

    Args:
      column: the runs.
      *names: of more metrics to keep.
    """
    return [
        {
            "config": dict(run.config),
            "finished": run.state == FINISHED,
            "epochs": [
                {name: line[name] for name in (*_KEPT, *names) if name in line}
                for line in run.lines
            ],
        }
        for run in column.runs
    ]


def from_data(data: Sequence[Mapping[str, Any]]) -> Column:
    """The column again, as :func:`to_data` kept it."""
    runs = [
        Run(
            Path(f"run {index}"),
            {"config": record["config"]},
            record["epochs"],
            {"status": FINISHED} if record["finished"] else {},
        )
        for index, record in enumerate(data)
    ]
    (column,) = columns_of(runs)
    return column


def judge_published(
    column: Column, word: str, source: str
) -> tuple[list[Finding], list[Verdict]]:
    """The published claims of a source that have a word in them, judged by runs."""
    findings = [
        f for f in judge_claims(column) if word in f.claim and source in f.source
    ]
    tested = sum(f.contrast is not None for f in findings)
    verdicts = [verdict_of(f, _means(f, column), tested) for f in findings]
    return findings, verdicts


def _means(finding: Finding, column: Column) -> str:
    """Means and deviations of all that takes part in a claim."""
    selectors = [part.rpartition(" n=")[0] for part in finding.note.split(", ")]
    rows = list(zip(column.settings, column.labels, strict=True))
    return "; ".join(
        f"{selector} {in_numbers(setting.accuracy)}"
        for selector in selectors
        for setting, label in rows
        if selector and set(selector.split()) <= set(label.split())
    )


def about(column: Column) -> str:
    """What all runs share, in words: ``small ResNet on Fashion-MNIST, 2 epochs``."""
    config = column.config
    model = str(config["model"]).replace("_", " ").replace("resnet", "ResNet")
    return (
        f"{model} on {dataset_title(config['dataset'])}, {config['epochs']} epochs,"
        f" batches of {config['batch_size']}"
    )


def grid_blocks(column: Column, folder: Path | None, stem: str) -> list[Block]:
    """The table and the figures of a grid, which are drawn into a folder, if any."""
    nothing = [None] * len(column.settings)  # published in other settings
    blocks: list[Block] = [
        Heading(2, "Accuracies"),
        *accuracy_blocks(column, nothing),
    ]
    finished = [s for s in column.settings if s.finished]
    if not finished:
        return blocks
    if folder is not None:
        draw_accuracies(column, nothing, folder / f"{stem}-accuracy", NARROW)
    blocks.append(
        Picture(
            f"{FIGURES}/{stem}-accuracy",
            "Test accuracy of each optimizer; the table has the numbers",
            f"Test accuracy of every seed, mean and standard deviation: a"
            f" {about(column)}.",
        )
    )
    if column.config["epochs"] >= _CURVE and all(map(_is_whole, finished)):
        for quantity, name in ((TEST_ERROR, "error"), (TRAINING_LOSS, "loss")):
            if folder is not None:
                draw_curves(column, quantity, folder / f"{stem}-{name}")
            blocks.append(
                Picture(
                    f"{FIGURES}/{stem}-{name}",
                    f"{quantity} over the epochs, a panel for each optimizer",
                    f"{quantity.capitalize()}, mean and deviation over the seeds; the"
                    f" range of all optimizers in grey. A {about(column)}.",
                )
            )
    return blocks


def _is_whole(setting: Setting) -> bool:
    """Whether every epoch of its runs is on record."""
    return all(len(r.lines) == r.config["epochs"] for r in setting.finished)
