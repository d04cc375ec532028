"""Shows results: on the terminal, as Markdown, in the README."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.bench.jax_side import IN_PLACE
from experiments.bench.options import DEFAULT_MODELS
from experiments.bench.rows import ROWS
from experiments.bench.step import REFERENCE, REFERENCE_NEW, TORCH
from experiments.bench.tables import Record, spread, tables
from experiments.errors import UsageError

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""The lines between which a file takes the table."""
_WIDTH = 160  # of tables that go into a file


def show(records: Sequence[Record]) -> None:
    """Prints the tables."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    for title, columns, some in tables(records):
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for number, name in enumerate(columns.header):
            table.add_column(name, justify="right" if number else "left")
        for record in some:
            table.add_row(*columns.row(record))
        console.print(table)
        for line in columns.notes(some):
            console.print(line)


def to_markdown(document: Mapping[str, Any]) -> str:
    """All results, table by table."""
    parts = []
    for title, columns, records in tables(document["records"]):
        rows = [columns.row(record) for record in records]
        parts.append(f"### {title}\n\n{_table(columns.header, rows)}")
        if notes := columns.notes(records):
            parts.append("\n".join(f"* {line}" for line in notes))
    return "\n\n".join([*parts, provenance(document)]) + "\n"


def summary_markdown(document: Mapping[str, Any]) -> str:
    """One table of all optimizers, one of training, and where they come from."""
    found = {
        (record["bench"], record["row"]): record["result"]
        for record in _of_one_model(document["records"])
    }
    rows = []
    for name in ROWS:
        if step := found.get(("step", name)):
            # Of SWATS both phases are one program.
            program = re.sub("_sgd$", "_adam", name)
            rows.append(
                [
                    f"`{name}`",
                    f"`{step['reference']}`",
                    spread(step["ratio"][REFERENCE]),
                    spread(step["ratio"].get(REFERENCE_NEW)),
                    spread(step["ratio"].get(TORCH)),
                    *_compile_and_memory(found, program),
                ]
            )
    header = (
        "update",
        "against Optax's",
        "time in place, ratio",
        "time into new arrays, ratio",
        "time, ratio to PyTorch's",
        "compile time, to Adam's",
        "state, to Adam's",
        "peak memory, to weights + gradients + state",
    )
    parts = [_table(header, rows)]
    trained = [r for r in document["records"] if r["bench"] == "train"]
    for title, columns, records in tables(trained):
        lines = [columns.row(record) for record in records]
        parts.append(f"{title}:\n\n{_table(columns.header, lines)}")
    return "\n\n".join([*parts, provenance(document)]) + "\n"


def provenance(document: Mapping[str, Any]) -> str:
    """Machines, versions, dates, load and commands of all records."""
    lines = ["Medians; in brackets quartiles."]
    for key, environment in document["environments"].items():
        records = [r for r in document["records"] if r["environment"] == key]
        days = sorted({record["date"][:10] for record in records})
        commands = dict.fromkeys(f"`{record['command']}`" for record in records)
        loads = [r["load"]["before"][0] for r in records if r["load"]["before"]]
        parts = [
            f"{len(records)} row{'s' * (len(records) != 1)}",
            _place(environment["machine"]),
            _versions(environment["versions"]),
            " to ".join(dict.fromkeys((days[0], days[-1]))),
            f"load average {min(loads)} to {max(loads)}" if loads else "",
            ", ".join(commands),
        ]
        lines.append("; ".join(part for part in parts if part) + ".")
    return "\n\n".join(lines)


def put_into(path: Path, text: str) -> None:
    """Replaces the table of a file, which stands between two marks."""
    put_between(path, text, BEGIN, END)


def put_between(path: Path, text: str, begin_mark: str, end_mark: str) -> None:
    """Replaces what stands between two marks in a file.

    Raises:
      UsageError: the file cannot be read, or has no marks.
    """
    try:
        old = path.read_text()
    except OSError as error:
        raise UsageError(f"--readme {path}: {error.strerror}") from None
    before, begin, rest = old.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise UsageError(
            f"--readme {path}: no lines {begin_mark!r} and {end_mark!r} in it"
        )
    path.write_text(f"{before}{begin_mark}\n\n{text}\n{end_mark}{after}")


def _place(machine: Mapping[str, Any]) -> str:
    place = f"{machine['cpu']}, {machine['cores']} cores"
    if machine["accelerator"]:
        place += f", {machine['devices']} x {machine['accelerator']}"
    return place


def _versions(versions: Mapping[str, Any]) -> str:
    """All that is installed; the source of the library by its digest."""
    names = [f"{name} {v}" for name, v in versions.items() if v and name != "source"]
    return f"{', '.join(names)}, source {versions['source']}"


def _is_standard(settings: Mapping[str, Any]) -> bool:
    """Whether they are those of a command without options."""
    return (
        settings.get("dtype", "float32") == "float32"
        and settings.get("mu_dtype") is None
    )


def _of_one_model(records: Sequence[Record]) -> list[Record]:
    """Standard ones; of each measurement its own model's, else those of the last."""
    standard = [record for record in records if _is_standard(record["settings"])]
    models: dict[str, str | None] = {}
    for record in standard:
        bench, model = record["bench"], record["settings"].get("model")
        own = DEFAULT_MODELS.get(bench)
        if models.get(bench) != own or model == own:
            models[bench] = model
    return [r for r in standard if r["settings"].get("model") == models[r["bench"]]]


def _compile_and_memory(found: Mapping[Any, Any], name: str) -> list[str]:
    compiled, memory = found.get(("compile", name)), found.get(("memory", name))
    cells = [spread(compiled["ratio"]["compile"]) if compiled else ""]
    if memory is None:
        return [*cells, "", ""]
    peak = memory[IN_PLACE]["peak_to_needed"]
    cells.append(f"{memory['ratio']['state_to_adam']:.2f}")
    return [*cells, "not known" if peak is None else f"{peak:.3f}"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *rows))
