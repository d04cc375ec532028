"""The numbers of a report, for programs: JSON and CSV."""

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report.columns import Column
from experiments.report.page import readable
from experiments.report.published import Figure, Finding
from experiments.report.text import Provenance, dataset_title
from experiments.results import FINISHED, Run

_RUN_FIELDS = (
    "dataset",
    "model",
    "optimizer",
    "seed",
    "state",
    "epochs",
    "selected_epoch",
    "test_accuracy",
    "train_loss",
    "images_per_second",
    "run",
)
_METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
_CURVE_FIELDS = ("run", "optimizer", "seed", "epoch", *_METRICS)


@dataclass(frozen=True)
class Section:
    """A column with all that is said of it."""

    column: Column
    title: str
    slug: str
    published: Sequence[Figure | None]
    findings: Sequence[Finding]
    origin: Provenance


def write_results(sections: Sequence[Section], runs: str, path: Path) -> None:
    """Writes every number of the tables as JSON; ``runs`` says how many there are."""
    results = {"runs": runs, "tables": [_record(section) for section in sections]}
    path.write_text(json.dumps(_readable(results), indent=1) + "\n")


def write_runs(runs: Sequence[Run], path: Path) -> None:
    """Writes a line for each run, finished or not."""
    rows = zip(runs, _names(runs), strict=True)
    _write_csv(path, _RUN_FIELDS, (_run_row(run, name) for run, name in rows))


def write_curves(runs: Sequence[Run], path: Path) -> None:
    """Writes a line for each epoch of each run."""
    _write_csv(path, _CURVE_FIELDS, _curve_rows(runs))


def _record(section: Section) -> dict[str, Any]:
    """The numbers of a section, for programs."""
    column = section.column
    rows = []
    for setting, label, figure in zip(
        column.settings, column.labels, section.published, strict=True
    ):
        rows.append(
            {
                "label": label,
                "optimizer": setting.optimizer,
                "hyperparameters": setting.hyperparameters,
                "test_accuracy": _plain(setting.accuracy),
                "seeds": {run.seed: run.accuracy for run in setting.finished},
                "published": _plain(figure),
            }
        )
    return {
        "title": section.title,
        "config": column.config,
        "rows": rows,
        "claims": [_plain(finding) for finding in section.findings],
        "provenance": _plain(section.origin),
    }


def _plain(value: Any) -> dict[str, Any] | None:
    """A dataclass for JSON: what is not a number becomes None."""
    if value is None:
        return None
    fields = dataclasses.asdict(value)
    return {
        name: None if isinstance(item, float) and math.isnan(item) else item
        for name, item in fields.items()
    }


def _readable(value: Any) -> Any:
    """The same with readable texts, the keys of tables excepted."""
    match value:
        case str():
            return readable(value)
        case Mapping():
            return {name: _readable(item) for name, item in value.items()}
        case list() | tuple():
            return [_readable(item) for item in value]
    return value


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' folders, seen from the one that has all of them in it."""
    folders = [run.path.resolve() for run in runs]
    top = os.path.commonpath([folder.parent for folder in folders]) if runs else ""
    return [folder.relative_to(top).as_posix() for folder in folders]


def _run_row(run: Run, name: str) -> list[Any]:
    last = run.selected if run.lines else {}
    return [
        dataset_title(run.config["dataset"]),
        run.config["model"],
        run.config["optimizer"],
        run.seed,
        run.state,
        len(run.lines),
        last.get("epoch"),
        f"{run.accuracy:.4f}" if run.state == FINISHED else None,
        last.get("train_loss"),
        run.images_per_second,
        name,
    ]


def _curve_rows(runs: Sequence[Run]) -> Iterator[list[Any]]:
    for run, name in zip(runs, _names(runs), strict=True):
        head = [name, run.config["optimizer"], run.seed]
        for line in run.lines:
            yield [*head, line["epoch"], *(_short(line.get(name)) for name in _METRICS)]


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    with open(path, "w", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
