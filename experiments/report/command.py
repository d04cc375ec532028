"""Writes a report of runs: tables, figures, and which published claims hold in them.

    python -m experiments.report RUNS

RUNS are folders with runs in them, at any depth. What is written, into RUNS/report or
``--out``: report.md and report.html (one file, figures included), figures/ (PNG and
SVG), results.json (every number of the tables), runs.csv, curves.csv.

Only finished runs count. Runs with different settings stand in different rows or
tables; what differs is said. Exit codes: 0 written; 1 something broke; 2 an option or
a folder cannot be used.
"""

import datetime
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands import run_command
from experiments.errors import EXIT_FINISHED, UsageError
from experiments.report import text
from experiments.report.columns import Column, columns_of, differing
from experiments.report.figures import (
    TEST_ERROR,
    TRAINING_LOSS,
    draw_accuracies,
    draw_curves,
    draw_findings,
)
from experiments.report.page import (
    Block,
    Heading,
    Paragraph,
    Picture,
    readable,
    to_html,
    to_markdown,
)
from experiments.report.published import judge_claims, published_figure
from experiments.report.tables import Section, write_curves, write_results, write_runs
from experiments.results import Run, find_runs, read_commands
from experiments.values import make_folder

FIGURES = "figures"
_KINDS = ("accuracy", "error", "loss", "claims")


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.report``."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with runs in them, at any depth."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where the report goes; by default the folder report in the first of RUNS."""
    title: str = "Report of runs"
    """Its heading."""


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options = tyro.cli(
        Options, prog="python -m experiments.report", description=__doc__, args=args
    )

    def act() -> int:
        if not options.runs:
            raise UsageError("RUNS: name at least one folder with runs in it")
        out = options.out or options.runs[0] / "report"
        print(readable(write_report(options.runs, out, options.title)))
        return EXIT_FINISHED

    return run_command(act)


def write_report(folders: Sequence[Path], out: Path, title: str) -> str:
    """Reads the runs and writes the report; returns what to tell the user.

    Raises:
      UsageError: a folder is missing, or there is no run in any.
    """
    runs, unreadable = find_runs(folders)
    if not runs and not unreadable:
        raise UsageError(f"RUNS {' '.join(map(str, folders))}: no run in it")
    columns = columns_of(runs)
    make_folder("--out", out)
    _delete_figures(out)
    sections = [_section(column, columns) for column in columns]
    states = text.count_states(columns, len(unreadable))
    day = datetime.datetime.now(datetime.UTC).date()
    blocks: list[Block] = [
        Heading(1, title),
        Paragraph(f"{states}. Written on {day} by python -m experiments.report."),
    ]
    for section in sections:
        blocks += _section_blocks(section, out)
    blocks += [Heading(2, "Runs that do not count")]
    blocks += text.left_out_blocks(columns, unreadable)
    (out / "report.md").write_text(to_markdown(blocks))
    (out / "report.html").write_text(to_html(blocks, out))
    write_results(sections, states, out / "results.json")
    write_runs(runs, out / "runs.csv")
    write_curves(runs, out / "curves.csv")
    return f"{states}\n{out / 'report.html'}\n{out / 'report.md'}"


def _delete_figures(out: Path) -> None:
    """Deletes the figures of an earlier report, and nothing else."""
    for kind in _KINDS:
        for ending in ("png", "svg"):
            for path in (out / FIGURES).glob(f"*-{kind}.{ending}"):
                path.unlink()


def _section(column: Column, columns: Sequence[Column]) -> Section:
    config = column.config
    alike = [
        other.config
        for other in columns
        if (other.config["dataset"], other.config["model"])
        == (config["dataset"], config["model"])
    ]
    different = {name: config.get(name) for name in differing(alike)}
    title = _title(column, columns)
    slugs = [_slug(_title(other, columns)) for other in columns]
    taken = slugs.count(_slug(title)) > 1
    if different:
        title += f", {text.settings_line(different)}"
    return Section(
        column,
        title,
        f"{_slug(title)}-{columns.index(column)}" if taken else _slug(title),
        [published_figure(setting) for setting in column.settings],
        judge_claims(column),
        text.provenance(column.runs, _commands(column.runs)),
    )


def _title(column: Column, columns: Sequence[Column]) -> str:
    """Data set and model, the former in full where others are called alike."""
    dataset, model = column.config["dataset"], column.config["model"]
    short = text.dataset_title(dataset)
    others = {other.config["dataset"] for other in columns} - {dataset}
    clash = any(text.dataset_title(other) == short for other in others)
    return f"{dataset if clash else short}, {model}"


def _slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]


def _section_blocks(section: Section, out: Path) -> list[Block]:
    """One table of the report, with its figures and its claims."""
    column = section.column
    blocks: list[Block] = [
        Heading(2, section.title),
        Paragraph(f"Settings: {text.settings_line(text.chosen(column.config))}."),
        Heading(3, "Test accuracy"),
        *text.accuracy_blocks(column, section.published),
    ]
    if any(setting.finished for setting in column.settings):
        blocks += _figures(section, out)
    blocks += [Heading(3, "Published claims, in these runs")]
    blocks += text.claim_blocks(section.findings)
    if any(finding.contrast for finding in section.findings):
        stem = f"{FIGURES}/{section.slug}-claims"
        draw_findings(section.findings, out / stem)
        alt = "Differences of mean accuracies with intervals; the table has the numbers"
        blocks.append(Picture(stem, alt, _caption(section, "Claims that were judged.")))
    blocks += [Heading(3, "Where these numbers come from")]
    return blocks + text.provenance_blocks(section.origin)


def _figures(section: Section, out: Path) -> list[Block]:
    stem = f"{FIGURES}/{section.slug}"
    draw_accuracies(section.column, section.published, out / f"{stem}-accuracy")
    blocks: list[Block] = [
        Picture(
            f"{stem}-accuracy",
            "Test accuracy of each optimizer, best first; the table has the numbers",
            _caption(section, "Test accuracy of every seed, and mean and deviation."),
        )
    ]
    if section.column.config["epochs"] == 1:
        return blocks
    for quantity, name in ((TEST_ERROR, "error"), (TRAINING_LOSS, "loss")):
        draw_curves(section.column, quantity, out / f"{stem}-{name}")
        words = f"{quantity.split(' (')[0].capitalize()} over the epochs"
        words += ", mean over seeds, in a band of one standard deviation; in grey, the"
        blocks.append(
            Picture(
                f"{stem}-{name}",
                f"{quantity} over the epochs, a panel for each optimizer",
                _caption(section, f"{words} range of all means."),
            )
        )
    return blocks


def _caption(section: Section, what: str) -> str:
    counts = sorted({s.accuracy.n for s in section.column.settings if s.finished})
    seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    origin = section.origin
    return (
        f"{what} {section.title}; n = {seeds} for each optimizer; {origin.hardware};"
        f" {origin.dates}; {origin.commands[0]}"
    )


def _commands(runs: Iterable[Run]) -> list[str]:
    """The commands of the grids that the runs lie in, and of the runs beside them.

    None if there is no grid.
    """
    runs = list(runs)
    grids = {run.path.parent: read_commands(run.path.parent) for run in runs}
    lines = [line for commands in grids.values() for line in commands]
    if lines:
        alone = [run for run in runs if not grids[run.path.parent]]
        lines += [
            shlex.join(map(str, run.record.get("command") or [])) for run in alone
        ]
    return [line for line in dict.fromkeys(lines) if line]
