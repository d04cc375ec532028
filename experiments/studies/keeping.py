"""What is kept of a study: its numbers as data, and the page that follows from them."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.bench.machine import machine, versions
from experiments.errors import UsageError
from experiments.report import page
from experiments.report.page import Block, Bullets, Code, Heading, Paragraph, Table
from experiments.studies import full_scale
from experiments.studies.settings import Settings
from experiments.studies.study import FIGURES, Outcome, Study, save_json
from experiments.studies.verdicts import RULE

RESULTS = Path(__file__).parent.parent / "results" / "studies"
FILE = "results.json"


def keep(
    study: Study,
    settings: Settings,
    data: Mapping[str, Any],
    seconds: float,
    command: str,
) -> None:
    """Writes what a study has come to: its numbers, and all that makes them."""
    record = {
        "study": study.name,
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "command": command,
        "seconds": round(seconds),
        "machine": machine(),
        "versions": versions(),
        "settings": {k: v for k, v in settings.items() if k != "full_scale"},
        "data": data,
    }
    save_json(RESULTS / study.name / FILE, record)


def tell(study: Study, *, draw: bool = False) -> tuple[dict[str, Any], Outcome] | None:
    """What is kept of a study, and what follows from it; None where it was never run.

    Args:
      study: one of the catalogue.
      draw: its figures, too.

    Raises:
      UsageError: what is kept is damaged.
    """
    folder = RESULTS / study.name
    try:
        record = json.loads((folder / FILE).read_text())
        provenance(record)
        figures = folder / FIGURES if draw else None
        return record, study.tell(record["settings"], record["data"], figures)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder / FILE}: damaged ({type(error).__name__}: {error}); run"
            f" `{study.command}` again"
        ) from None


def write_page(study: Study) -> None:
    """Draws the figures of a study, and writes its README, if it was ever run."""
    if tell(study, draw=True) is not None:
        path = RESULTS / study.name / "README.md"
        path.write_text(page.to_markdown(blocks_of(study)))


def blocks_of(study: Study) -> list[Block]:
    """The page of a study; without results, how to get them."""
    in_full = full_scale.blocks(
        study.settings()["full_scale"], full_scale.read_begun(RESULTS / study.name)
    )
    blocks: list[Block] = [
        Heading(1, study.title),
        Paragraph(f"{study.question} ({study.source})"),
    ]
    told = tell(study)
    if told is None:
        blocks += [Paragraph("Not run yet. This makes the results:")]
        return [*blocks, Code([study.command]), *in_full]
    record, outcome = told
    return [
        *blocks,
        Heading(2, "Verdicts"),
        Table(
            ["claim", "verdict", "evidence"],
            [[v.claim, v.verdict, v.evidence] for v in outcome.verdicts],
        ),
        Paragraph(RULE),
        Heading(2, "What follows"),
        Bullets(outcome.follows),
        Heading(2, "What was run"),
        Paragraph(study.about(record["settings"])),
        Code([record["command"]]),
        Bullets(
            [
                f"Settings: experiments/studies/configs/{study.config.name}",
                *provenance(record),
            ]
        ),
        *outcome.blocks,
        *in_full,
    ]


def provenance(record: Mapping[str, Any]) -> list[str]:
    """Hardware, software, time, date, and what else has to be known."""
    where, what = record["machine"], record["versions"]
    names = ("python", "spherical_optax", "jax", "optax", "flax")
    accelerator = f", {where['accelerator']}" if where["accelerator"] else ""
    lines = [
        f"Hardware: {where['cpu']}, {where['cores']} cores{accelerator}",
        "Software: " + ", ".join(f"{name} {what[name]}" for name in names),
        f"Time: {_span(record['seconds'])}; date: {record['date']}",
    ]
    return [*lines, record["note"]] if "note" in record else lines


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
