"""The full-scale commands of the studies: written down, and begun.

``python -m experiments.studies local_swats --begin folder:cifar10-jpeg.tar.xz`` takes
each full-scale command of a study through its first steps, on the data set given, and
puts down what came of it: that the command is right is then more than a belief.
"""

import contextlib
import dataclasses
import datetime
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments import reproduce
from experiments.bench.machine import machine, versions
from experiments.config import Config
from experiments.data import check_dataset_name, load_dataset
from experiments.data.imagefolder import PREFIX
from experiments.errors import UsageError
from experiments.progress import say
from experiments.report.page import Block, Code, Heading, Paragraph, Table
from experiments.report.text import dataset_title
from experiments.steps import Means
from experiments.studies.study import Clock, save_json
from experiments.trainer import Trainer
from experiments.values import make_folder

FILE = "begun.json"


class _EnoughError(Exception):
    """So many steps are done."""


def first_run(options: str, dataset: str) -> Config:
    """The first run of a grid, as ``python -m experiments.reproduce`` would do it.

    Args:
      options: of that command.
      dataset: in place of a folder or an archive that the options name.

    Raises:
      UsageError: an option cannot be used.
    """
    known, rest = tyro.cli(
        reproduce.Options, args=shlex.split(options), return_unknown_args=True
    )
    if known.dataset.startswith(PREFIX):
        known = dataclasses.replace(known, dataset=dataset)
    return reproduce.plan_runs(known, rest, Path("runs/full-scale"))[0].config


def begin(options: str, dataset: str, steps: int, clock: Clock) -> dict[str, Any]:
    """Takes the first run of a grid through its first steps.

    Args:
      options: of ``python -m experiments.reproduce``.
      dataset: to do it with.
      steps: how many.
      clock: says when to stop before.

    Raises:
      UsageError: an option or the data set cannot be used.
      StoppedRun: a signal came, or the time limit is up.
    """
    config = dataclasses.replace(first_run(options, dataset), dataset=dataset)
    data = load_dataset(dataset, image_size=config.image_size)
    trainer = Trainer(config, data)
    clock.check()
    losses: list[float] = []
    began = time.perf_counter()

    def pause(seconds: float) -> None:
        clock.check()
        if trainer.step >= steps:
            raise _EnoughError

    def note(epoch: int, means: Means, speed: float) -> None:
        losses.append(means.loss)

    with contextlib.suppress(_EnoughError):
        trainer.train_epoch(1, note, pause)
    seconds = time.perf_counter() - began
    return {
        "options": options,
        "dataset": dataset_title(dataset),
        "loss": losses[-1],
        "seconds_per_step": seconds / trainer.step,
        **_facts(config, trainer),
    }


def _failed(options: str, dataset: str, error: Exception) -> dict[str, Any]:
    """The record of a command that this machine is too small for."""
    config = first_run(options, dataset)
    return {
        "options": options,
        "dataset": dataset_title(dataset),
        "model": config.model,
        "optimizer": config.optimizer,
        "batch_size": config.batch_size,
        "steps": 0,
        "failed": str(error).splitlines()[0],
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "machine": machine(),
        "versions": versions(),
    }


def _facts(config: Config, trainer: Trainer) -> dict[str, Any]:
    """What was begun, how far it came, and where."""
    return {
        "model": config.model,
        "optimizer": config.optimizer,
        "weights": trainer.parameter_count(),
        "batch_size": config.batch_size,
        "steps": trainer.step,
        "steps_in_full": config.epochs * trainer.steps_per_epoch,
        "compile_seconds": trainer.compile_seconds,
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "machine": machine(),
        "versions": versions(),
    }


def begin_all(
    commands: Sequence[str], dataset: str, steps: int, clock: Clock, folder: Path
) -> None:
    """Begins every command that is not begun yet on a data set, and keeps a record.

    Raises:
      UsageError: the data set is unknown, or the folder cannot be made.
    """
    check_dataset_name(dataset, "--begin")
    make_folder("--runs", folder)
    done = {record["options"]: record for record in read_begun(folder)}
    for options in commands:
        there = done.get(options, {"dataset": None})
        if there["dataset"] != dataset_title(dataset) or there["steps"] < steps:
            say(f"begins: {command(options)}")
            try:
                done[options] = begin(options, dataset, steps, clock)
            except jax.errors.JaxRuntimeError as error:  # no memory, in the main
                done[options] = _failed(options, dataset, error)
            kept = [done[known] for known in commands if known in done]
            save_json(folder / FILE, kept)
        say(_line(done[options]))


def read_begun(folder: Path) -> list[dict[str, Any]]:
    """What is on record of the full-scale commands of a study.

    Raises:
      UsageError: the file is damaged.
    """
    path = folder / FILE
    try:
        records = json.loads(path.read_text())
        for record in records:
            _row(record)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: damaged ({error}); delete it") from None
    return records


def command(options: str) -> str:
    """What to type."""
    return f"python -m experiments.reproduce {options}"


def blocks(commands: Sequence[str], begun: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The commands, whether they have run, and how far they were begun here."""
    if not commands:
        return [
            Heading(2, "In full"),
            Paragraph("What was run is in full: nothing larger was published."),
        ]
    found: list[Block] = [
        Heading(2, "In full"),
        Paragraph("Not run: for an accelerator. Each goes on where it was stopped:"),
        *(Code([command(options)]) for options in commands),
    ]
    known = [record for record in begun if record["options"] in commands]
    if not known:
        return [*found, Paragraph("None of them has been begun here.")]
    header = ["command", "begun on", "network", "steps", "loss", "seconds a step"]
    rows = [
        [str(1 + list(commands).index(record["options"])), *_row(record)]
        for record in known
    ]
    return [
        *found,
        Paragraph(
            "Begun, to see that they work: the first run of each, its first steps on"
            " real data; the loss is the mean over these batches, and the seconds are"
            " no measurement of speed. Commands by their number in the list."
        ),
        Table(header, rows, numeric=header[3:]),
    ]


def _row(record: Mapping[str, Any]) -> list[str]:
    where = record["machine"]
    place = f"{record['dataset']}, {record['date']}, {where['cpu']}"
    place += f", {where['cores']} cores"
    if "failed" in record:
        what = f"{record['model']}, {record['optimizer']}, batch {record['batch_size']}"
        return [place, f"{what}: {record['failed']}", "0", "-", "-"]
    return [
        place,
        f"{record['model']} ({record['weights']:,} weights), {record['optimizer']},"
        f" batch {record['batch_size']}",
        f"{record['steps']} of {record['steps_in_full']:,}",
        f"{record['loss']:.3f}",
        f"{record['seconds_per_step']:.1f}",
    ]


def _line(record: Mapping[str, Any]) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    return (
        f"{record['model']}, {record['optimizer']}, {record['dataset']}:"
        f" {record['steps']} of {record['steps_in_full']:,} steps, loss"
        f" {record['loss']:.3f}, {record['seconds_per_step']:.1f} s a step"
    )
