"""The words and tables of a report, as the blocks of a page."""

import datetime
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import ADDED_LATER
from experiments.data import dataset_label
from experiments.report.columns import Column, Setting, row_options
from experiments.report.page import Block, Bullets, Code, Paragraph, Table
from experiments.report.published import Figure, Finding
from experiments.report.stats import Sample
from experiments.results import FINISHED, Run
from experiments.runs import METRICS

_TITLES = {
    "digits": "Digits (scikit-learn)",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn_cropped": "SVHN",
    "imagenet2012": "ImageNet",
}
CIFAR10_JPEG = "CIFAR-10 (JPEG)"


@dataclass(frozen=True)
class Provenance:
    """Where numbers come from, with what they share in one place.

    Attributes:
      commands: that made the runs.
      hardware: of all machines.
      software: versions of the packages.
      dates: of the first and the last run.
    """

    commands: Sequence[str]
    hardware: str
    software: str
    dates: str


def dataset_title(name: str) -> str:
    """How a data set is called in a report; of a folder or an archive, its name."""
    if not name.startswith("folder:"):
        return _TITLES.get(name, name)
    stem = dataset_label(name)
    if re.fullmatch(r"cifar-?_?10[-_ ]?jpe?g", stem, re.IGNORECASE):
        return CIFAR10_JPEG
    return f"Folder {stem}"


def settings_line(config: Mapping[str, Any]) -> str:
    """All options that runs share, as ``epochs 30, batch_size 64, ...``."""
    names = [
        n for n in config if n not in ("dataset", "model") and config[n] is not None
    ]
    return ", ".join(f"{name} {_value(config[name])}" for name in names)


def chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those of a later version that change nothing here."""
    return {
        n: v for n, v in config.items() if n not in ADDED_LATER or v != ADDED_LATER[n]
    }


def mean_and_std(sample: Sample) -> str:
    """``97.25 (0.31)``, of one seed ``97.25 (-)``."""
    if sample.n == 0:
        return "-"
    std = "-" if math.isnan(sample.std) else f"{sample.std:.2f}"
    return f"{sample.mean:.2f} ({std})"


def accuracy_blocks(column: Column, published: Sequence[Figure | None]) -> list[Block]:
    """The table of accuracies, and what has to be known to read it."""
    rows = sorted(
        zip(column.settings, column.labels, published, strict=True),
        key=lambda row: -row[0].accuracy.mean if row[0].finished else math.inf,
    )
    names = ["optimizer", "n", "test accuracy", "published", "difference", "options"]
    lines = [_accuracy_row(*row) for row in rows]
    if not any(published):  # then there is nothing in two of the columns
        names, *lines = [[*line[:3], *line[5:]] for line in [names, *lines]]
    table = Table(names, lines, numeric=names[1:-1])
    counted = [run for run in column.runs if run.state == FINISHED]
    chosen = "that of the last epoch"
    if counted and counted[0].validated:
        chosen = "that of the epoch with the best validation accuracy"
    note = (
        "In percent: mean (standard deviation) over n seeds, best first; the test"
        f" accuracy of a run is {chosen}."
    )
    blocks: list[Block] = [Paragraph(note), table]
    if any(published):
        blocks.append(Paragraph(_about_published(rows)))
    if dataset_title(column.config["dataset"]) == CIFAR10_JPEG:
        blocks.append(
            Paragraph(
                "JPEG has cost these images some detail: accuracies on CIFAR-10 (JPEG)"
                " compare with each other and not with published CIFAR-10 figures."
            )
        )
    return blocks


def claim_blocks(findings: Sequence[Finding]) -> list[Block]:
    """The table of claims."""
    rows = []
    for finding in findings:
        found = finding.contrast
        numbers = ["-", "-", "-"]
        if found:
            numbers = [
                f"{found.estimate:+.2f}",
                f"{found.low:+.2f} to {found.high:+.2f}",
                _p(finding.p),
            ]
        source = finding.source.split(",")[0]
        rows.append(
            [finding.claim, source, finding.verdict, *numbers, finding.note],
        )
    explanation = (
        "Differences of mean test accuracies in points, with Welch's 95 % confidence"
        " interval, and two-sided p-values with Holm's adjustment for the number of"
        " claims that could be judged here. A claim holds, or is contradicted, where"
        " the adjusted p is below 0.05; it is undecided where these seeds cannot tell."
    )
    names = ["claim", "source", "verdict", "difference", "95 % interval", "p", "runs"]
    return [
        Paragraph(explanation),
        Table(names, rows, numeric=["difference", "95 % interval", "p"]),
    ]


def left_out_blocks(
    columns: Sequence[Column], unreadable: Sequence[tuple[Path, str]]
) -> list[Block]:
    """Every run that no number above counts, and why."""
    rows = [
        [str(run.path), run.state, run.detail]
        for column in columns
        for run in column.runs
        if run.state != FINISHED
    ]
    for column in columns:
        for setting in column.settings:
            for run in setting.repeats:
                rows.append([str(run.path), "repeat", f"seed {run.seed} is in already"])
    rows += [[str(path), "unreadable", why] for path, why in unreadable]
    if not rows:
        return [Paragraph("None: every run that was found is finished and counts.")]
    return [Table(["run", "state", "how far it came, or why"], rows)]


def provenance(runs: Sequence[Run], commands: Sequence[str]) -> Provenance:
    """Sums up what the runs say of where they come from.

    Args:
      runs: at least one.
      commands: of the grids that the runs are part of; without any, the command of
        the first run stands for all.
    """
    if not commands:
        commands = [shlex.join(map(str, runs[0].record.get("command") or []))]
        if len(runs) > 1:
            commands.append(f"# and {len(runs) - 1} more; see each config.json")
    versions = [_table(run, "versions") for run in runs]
    names = ("spherical_optax", "jax", "optax", "flax", "python")
    software = [
        f"{n} {' and '.join(_distinct(v.get(n) for v in versions))}" for n in names
    ]
    commits = _distinct((run.record.get("commit") or "")[:10] for run in runs)
    if commits:
        software.append("commit " + " and ".join(commits))
    if any(run.record.get("uncommitted_changes") for run in runs):
        software.append("with uncommitted changes")
    days = sorted({_day(run) for run in runs})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    hardware = _distinct(_machine(_table(run, "machine")) for run in runs)
    return Provenance(commands, "; ".join(hardware), ", ".join(software), dates)


def provenance_blocks(origin: Provenance) -> list[Block]:
    """The commands to paste, hardware, software, dates."""
    return [
        Code(origin.commands),
        Bullets(
            [
                f"Hardware: {origin.hardware}",
                f"Software: {origin.software}",
                f"Date of the runs: {origin.dates}",
            ]
        ),
    ]


def count_states(columns: Sequence[Column], unreadable: int) -> str:
    """``51 runs: 50 finished, 1 incomplete``."""
    states = Counter(run.state for column in columns for run in column.runs)
    repeats = sum(len(s.repeats) for column in columns for s in column.settings)
    counts = {**states, "repeated": repeats, "unreadable": unreadable}
    total = sum(counts.values())
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{total} run{'s' if total != 1 else ''}: {', '.join(parts)}"


def _accuracy_row(setting: Setting, label: str, figure: Figure | None) -> list[str]:
    published = difference = "-"
    if figure:
        std = "" if figure.std is None else f" ({figure.std:.2f})"
        published = f"{figure.mean:.2f}{std}"
        if not figure.departures and setting.finished:
            difference = f"{setting.accuracy.mean - figure.mean:+.2f}"
    count = str(setting.accuracy.n)
    if len(setting.runs) > setting.accuracy.n:
        count += f" of {len(setting.runs)}"
    options = ", ".join(
        f"{n} {_value(v)}" for n, v in row_options(setting.config).items()
    )
    accuracy = mean_and_std(setting.accuracy)
    return [label, count, accuracy, published, difference, options]


def _about_published(rows: Iterable[tuple[Setting, str, Figure | None]]) -> str:
    """Whose the published figures are, and where the runs depart from them."""
    figures = [(label, figure) for _, label, figure in rows if figure]
    sources = _distinct(f"{f.source} ({f.measure})" for _, f in figures)
    text = f"Published: {'; '.join(sources)}."
    who: dict[str, list[str]] = {}
    for label, figure in figures:
        for departure in figure.departures:
            who.setdefault(departure, []).append(label)
    if not who:
        return f"{text} These runs have its settings."
    everyone = len(figures)
    parts = [
        departure + ("" if len(labels) == everyone else f" ({', '.join(labels)})")
        for departure, labels in who.items()
    ]
    return (
        f"{text} The difference is given only where a run has its settings. Departures"
        f" here: {'; '.join(parts)}."
    )


def _machine(machine: Mapping[str, Any]) -> str:
    listed = machine.get("devices")
    devices = Counter(map(str, listed if isinstance(listed, list) else []))
    names = [f"{n} x {d}" if n > 1 else d for d, n in devices.items()]
    cpus = machine.get("cpus", "unknown number of")
    processor = machine.get("processor")
    cores = f"{cpus} CPU cores" + (f" ({processor})" if processor else "")
    # The rest of it, down to the build of the kernel, is in config.json.
    system = str(machine.get("system", "unknown system")).split("-")[0]
    return f"{', '.join(names) or 'unknown device'}, {cores}, {system}"


def _table(run: Run, name: str) -> Mapping[str, Any]:
    """A table of ``config.json`` that is only there to be read by people."""
    table = run.record.get(name)
    return table if isinstance(table, dict) else {}


def _day(run: Run) -> str:
    """The day a run was begun, or what its files say."""
    if began := run.record.get("began"):
        return str(began)[:10]
    file = run.path / METRICS
    seconds = (file if file.exists() else run.path).stat().st_mtime
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def _p(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " ".join(map(_value, value))
    return str(value)


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))
