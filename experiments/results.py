"""Reads run folders: what was run, and what came of it."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from experiments.config import ADDED_LATER
from experiments.errors import UsageError
from experiments.runs import CONFIG, METRICS, SUMMARY

FINISHED, NOT_FINITE, INCOMPLETE = "finished", "not finite", "incomplete"
COMMANDS = "commands.txt"
"""Beside the runs of a grid: the commands that made them, one a line."""
_ALWAYS = {
    "dataset": str,
    "model": str,
    "optimizer": str,
    "epochs": int,
    "seed": int,
    "hyperparameters": dict,
}
"""Options that every run has."""
_OF_THE_RECORD = {"command": list, "commit": str, "versions": dict, "machine": dict}
"""What config.json says besides, as far as it is known."""
_OF_THE_SUMMARY = {"status": str, "message": str, "timing": dict}
"""What summary.json says, as far as it is known."""


class UnreadableRunError(Exception):
    """A run folder that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
      path: the folder.
      record: all of ``config.json``.
      lines: of ``metrics.jsonl``, for the epochs 1, 2, ...
      summary: ``summary.json``; empty where the run never ended.
    """

    path: Path
    record: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The options of the run, with those that its version did not have yet."""
        return {**ADDED_LATER, **self.record["config"]}

    @property
    def seed(self) -> int:
        """The seed."""
        return self.config["seed"]

    @property
    def state(self) -> str:
        """``FINISHED`` only if the last epoch is finite as well."""
        status = self.summary.get("status")
        if status == FINISHED:
            return FINISHED if math.isfinite(self.accuracy) else NOT_FINITE
        return NOT_FINITE if status == NOT_FINITE else INCOMPLETE

    @property
    def detail(self) -> str:
        """What to say of a run that is not finished."""
        reached = f"{len(self.lines)} of {self.config['epochs']} epochs"
        message = self.summary.get("message")
        return f"{reached}; {message}" if message else reached

    @property
    def images_per_second(self) -> float | None:
        """Over all epochs, as far as it is known."""
        return (self.summary.get("timing") or {}).get("images_per_second")

    @cached_property
    def selected(self) -> Mapping[str, Any]:
        """The epoch that counts: best on the validation split; without one, the last.

        The test is never what an epoch is chosen by.
        """
        if all(is_number(line.get("validation_accuracy")) for line in self.lines):
            return max(self.lines, key=lambda line: line["validation_accuracy"])
        return self.lines[-1]

    @property
    def accuracy(self) -> float:
        """Test accuracy of the selected epoch, in percent; NaN where there is none."""
        value = self.selected["test_accuracy"] if self.lines else None
        return 100 * value if is_number(value) else math.nan

    @property
    def validated(self) -> bool:
        """Whether a validation split chose the epoch."""
        return "validation_accuracy" in self.selected


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """All runs in and under the folders, and what could not be read, with the reason.

    Raises:
      UsageError: a folder does not exist.
    """
    runs, unreadable = [], []
    for path in _run_folders(folders):
        try:
            runs.append(read_run(path))
        except UnreadableRunError as error:
            unreadable.append((path, str(error)))
    return runs, unreadable


def read_run(path: Path) -> Run:
    """Reads a run folder.

    Raises:
      UnreadableRunError: it is damaged.
    """
    record = _read_json(path / CONFIG)
    check_record(record)
    config = record["config"]
    summary = _read_json(path / SUMMARY) if (path / SUMMARY).exists() else {}
    _check_kinds(SUMMARY, summary, _OF_THE_SUMMARY)
    lines = _read_lines(path / METRICS)
    if summary.get("status") == FINISHED and len(lines) != config["epochs"]:
        raise UnreadableRunError(
            f"{METRICS} has {len(lines)} of {config['epochs']} epochs, and {SUMMARY}"
            " says that the run is finished"
        )
    return Run(path, record, lines, summary)


def check_record(record: Mapping[str, Any]) -> None:
    """Raises an UnreadableRunError if a config.json is not that of a run."""
    config = record.get("config")
    if not isinstance(config, dict) or any(
        not isinstance(config.get(name), kind) for name, kind in _ALWAYS.items()
    ):
        raise UnreadableRunError(f"{CONFIG} is not that of a run")
    _check_kinds(CONFIG, record, _OF_THE_RECORD)


def read_commands(folder: Path) -> list[str]:
    """The commands that made the runs in a folder, as far as they can be read."""
    file = folder / COMMANDS
    return file.read_text(errors="replace").splitlines() if file.is_file() else []


def _run_folders(folders: Iterable[Path]) -> Iterator[Path]:
    """Folders with a file of a run in them, each once, in the order of their names."""
    seen = set()
    for top in folders:
        if not top.is_dir():
            raise UsageError(f"RUNS {top}: not a folder")
        for path, subfolders, files in os.walk(top):
            subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
            if not {CONFIG, METRICS, SUMMARY}.isdisjoint(files):
                subfolders.clear()
                if (place := Path(path).resolve()) not in seen:
                    seen.add(place)
                    yield Path(path)


def _check_kinds(
    file: str, record: Mapping[str, Any], kinds: Mapping[str, type]
) -> None:
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind | None):
            raise UnreadableRunError(f"{file}: {name} cannot be {record[name]!r:.20}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UnreadableRunError(f"{path.name} is missing") from None
    except OSError as error:
        raise UnreadableRunError(f"{path.name}: {error.strerror}") from None
    except ValueError:
        raise UnreadableRunError(f"{path.name} is not JSON") from None
    if not isinstance(record, dict):
        raise UnreadableRunError(f"{path.name} is not a JSON object")
    return record


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The epochs so far; a last line that a kill cut short is left out."""
    try:
        texts = path.read_text().split("\n") if path.exists() else [""]
    except (OSError, ValueError):
        raise UnreadableRunError(f"{path.name} cannot be read") from None
    lines = []
    for number, text in enumerate(texts[:-1], 1):  # what follows the last newline
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not _is_epoch(line, number):
            raise UnreadableRunError(f"{path.name}: line {number} is not that epoch's")
        lines.append(line)
    return lines


def _is_epoch(line: Any, number: int) -> bool:
    """Whether it is the line of an epoch; a number that was not finite is None."""
    if not isinstance(line, dict) or line.get("epoch") != number:
        return False
    names = ("train_loss", "test_accuracy")
    return all(n in line and (line[n] is None or is_number(line[n])) for n in names)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, as it comes from JSON."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)
