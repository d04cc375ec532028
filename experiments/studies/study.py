"""What a study is, what comes of it, and how that is kept."""

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bench.machine import machine, versions
from experiments.errors import UsageError
from experiments.progress import say
from experiments.report import page
from experiments.report.page import Block, Bullets, Code, Heading, Paragraph, Table
from experiments.report.published import CONTRADICTED, HOLDS, NOT_RUN, Finding
from experiments.report.stats import Sample

RESULTS = Path(__file__).parent.parent / "results" / "studies"
FILE, FIGURES = "results.json", "figures"

YES, NO, NEVER = "holds", "does not hold here", "not run"
"""The verdicts: shown; not shown, or shown to be otherwise; no runs to tell by."""


_ENOUGH = 30.0  # seconds; less is not enough to begin a piece of work


class OutOfTimeError(Exception):
    """The time limit is up; the same command goes on."""


@dataclass(frozen=True)
class Verdict:
    """What came of a claim.

    Attributes:
      claim: what the source says.
      verdict: ``YES``, ``NO`` or ``NEVER``.
      evidence: numbers, with n, mean and deviation.
    """

    claim: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class Outcome:
    """What a study has found: all that its page shows."""

    verdicts: Sequence[Verdict]
    blocks: Sequence[Block]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Clock:
    """Says when the time is up.

    Example:
      >>> Clock(None).left()
      inf
    """

    def __init__(self, limit: float | None) -> None:
        self._end = math.inf if limit is None else time.monotonic() + limit

    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def check(self, needed: float = 0.0) -> None:
        """Raises an OutOfTimeError unless so many seconds are left."""
        if self.left() < max(needed, 0.0):
            raise OutOfTimeError


@dataclass(frozen=True)
class Place:
    """Where a study works.

    Attributes:
      runs: folder of its runs, kept from call to call.
      figures: where its figures go.
      clock: says when to stop.
      seeds: how many seeds.
      small: whether to do it in little, on the digits: to try it out.
    """

    runs: Path
    figures: Path
    clock: Clock
    seeds: int
    small: bool

    def once(
        self, name: str, settings: Sequence[str], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Does a piece of work, or reads what it came to with the same settings.

        Args:
          name: of the file that keeps it, in the folder of runs.
          settings: what it depends on; with other ones it is done again.
          make: does it; its result goes through JSON.

        Raises:
          OutOfTimeError: it is still to be done, and there is hardly any time.
        """
        path = self.runs / f"{name}.json"
        try:
            record = json.loads(path.read_text())
            if record["settings"] == list(settings):
                return record["found"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not done, or not to the end
        self.clock.check(0.0 if self.small else _ENOUGH)
        say(f"{name}: {' '.join(settings)}")
        record = {"settings": list(settings), "found": make()}
        self.runs.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(record) + "\n")
        unfinished.replace(path)
        return json.loads(path.read_text())["found"]


@dataclass(frozen=True)
class Study:
    """One source's headline result, as something to run.

    Attributes:
      name: on the command line.
      title: of its page.
      question: that it answers.
      source: whose claim it is.
      about: what is run here, and how it differs from the source.
      full_scale: commands for who has an accelerator.
      seeds: how many seeds it runs with.
      run: does it, or goes on with it.
    """

    name: str
    title: str
    question: str
    source: str
    about: str
    full_scale: Sequence[str]
    seeds: int
    run: Callable[[Place], Outcome]

    @property
    def command(self) -> str:
        """What to type to repeat it."""
        return f"python -m experiments.studies {self.name}"


def verdict_of(finding: Finding) -> Verdict:
    """A published claim judged by runs, in the words of the studies."""
    found, note = finding.contrast, finding.note
    if finding.verdict == NOT_RUN:
        return Verdict(finding.claim, NEVER, note)
    if found is None:
        return Verdict(finding.claim, NO, f"{finding.verdict}: {note}")
    numbers = (
        f"difference {found.estimate:+.2f} points, 95 % interval {found.low:+.2f} to"
        f" {found.high:+.2f}, p = {finding.p:.3f}; {note}"
    )
    if finding.verdict == HOLDS:
        return Verdict(finding.claim, YES, numbers)
    why = "the opposite" if finding.verdict == CONTRADICTED else "undecided"
    return Verdict(finding.claim, NO, f"{why}: {numbers}")


def in_numbers(sample: Sample, digits: int = 2) -> str:
    """``98.12 (0.30), n = 3``."""
    if not sample.n:
        return "-"
    std = "-" if math.isnan(sample.std) else f"{sample.std:.{digits}f}"
    return f"{sample.mean:.{digits}f} ({std}), n = {sample.n}"


def keep(study: Study, outcome: Outcome, seconds: float, command: str) -> None:
    """Writes what a study has found, as data and as a page."""
    folder = RESULTS / study.name
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "study": study.name,
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "command": command,
        "seconds": round(seconds),
        "machine": machine(),
        "versions": versions(),
        "verdicts": [dataclasses.asdict(verdict) for verdict in outcome.verdicts],
        "data": outcome.data,
        "blocks": [_block_to_json(block) for block in outcome.blocks],
    }
    (folder / FILE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    (folder / "README.md").write_text(page.to_markdown(blocks_of(study, record)))


def read(study: Study) -> dict[str, Any] | None:
    """What is kept of a study; None where it was never run.

    Raises:
      UsageError: the file is damaged.
    """
    path = RESULTS / study.name / FILE
    try:
        record = json.loads(path.read_text())
        record["verdicts"] = [Verdict(**verdict) for verdict in record["verdicts"]]
        record["blocks"] = [_block_from_json(block) for block in record["blocks"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: damaged ({error}); run `{study.command}` again"
        ) from None
    return record


def blocks_of(study: Study, record: Mapping[str, Any] | None) -> list[Block]:
    """The page of a study; without results, how to get them."""
    blocks: list[Block] = [
        Heading(1, study.title),
        Paragraph(f"{study.question} ({study.source})"),
    ]
    if record is None:
        blocks += [Paragraph("Not run yet. This makes the results:")]
        return [*blocks, Code([study.command]), *_full_scale(study)]
    return [
        *blocks,
        Heading(2, "Verdicts"),
        verdict_table(read_verdicts(record)),
        Heading(2, "What was run"),
        Paragraph(study.about),
        Code([record["command"]]),
        Bullets(provenance(record)),
        *(_as_block(block) for block in record["blocks"]),
        *_full_scale(study),
    ]


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row a claim."""
    rows = [[v.claim, v.verdict, v.evidence] for v in verdicts]
    return Table(["claim", "verdict", "evidence"], rows)


def read_verdicts(record: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts of a record, as it was made or as it was read."""
    return [v if isinstance(v, Verdict) else Verdict(**v) for v in record["verdicts"]]


def provenance(record: Mapping[str, Any]) -> list[str]:
    """Hardware, software, time and date."""
    where, what = record["machine"], record["versions"]
    names = ("python", "spherical_optax", "jax", "optax", "flax")
    accelerator = f", {where['accelerator']}" if where["accelerator"] else ""
    return [
        f"Hardware: {where['cpu']}, {where['cores']} cores{accelerator}",
        "Software: " + ", ".join(f"{name} {what[name]}" for name in names),
        f"Time: {_span(record['seconds'])}; date: {record['date']}",
    ]


def _full_scale(study: Study) -> list[Block]:
    return [
        Heading(2, "In full"),
        Paragraph("For an accelerator; each goes on where it was stopped:"),
        Code(study.full_scale),
    ]


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _block_to_json(block: Block) -> dict[str, Any]:
    return {"kind": type(block).__name__, **dataclasses.asdict(block)}


def _block_from_json(record: Mapping[str, Any]) -> Block:
    fields = dict(record)
    kinds = {kind.__name__: kind for kind in Block.__args__}
    return kinds[fields.pop("kind")](**fields)


def _as_block(block: Block | Mapping[str, Any]) -> Block:
    return _block_from_json(block) if isinstance(block, Mapping) else block
