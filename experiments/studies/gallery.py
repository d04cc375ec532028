"""One page with every study, and its summary for the README."""

from collections.abc import Sequence
from pathlib import Path

from experiments.bench.show import put_between
from experiments.report.page import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from experiments.studies.catalogue import STUDIES
from experiments.studies.keeping import RESULTS, blocks_of, tell
from experiments.studies.study import Study
from experiments.studies.verdicts import NEVER, NO, YES

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"
PAGE = RESULTS / "index.html"
# Tables as lists on narrow screens, lines of code that break: nothing is out of sight.
_STYLE = """
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
td:last-child.n { min-width: 0; }
figure img { min-width: 0; max-width: 44rem; }
@media (max-width: 40rem) {
  table, tbody, tr, td { display: block; width: auto; }
  thead { display: none; }
  tr { border-bottom: 1px solid #888; padding: .4rem 0; }
  td, td.n, td:first-child, td:last-child { border: 0; position: static;
    max-width: none; min-width: 0; padding: .1rem 0; overflow-wrap: anywhere;
    white-space: normal; text-align: left; }
  td:first-child { font-weight: 600; }
  td:not(:first-child)::before { content: attr(data-name) ": "; color: #555; }
}
"""


def write_page() -> Path:
    """Writes the page of all studies; returns where it is."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
    return PAGE


def page() -> str:
    """The page of all studies, in one file."""
    return to_html(page_blocks(), RESULTS, style=_STYLE)


def page_blocks() -> list[Block]:
    """The overview, then every study."""
    blocks: list[Block] = [
        Heading(1, "What the sources claim, tried again"),
        Paragraph(
            "Five works stand behind this library. Here is the headline result of each,"
            " repeated with one command: what was run, where and for how long, what"
            " came of it, and what would have to be run to repeat it in full."
        ),
        *overview(),
    ]
    for study in STUDIES.values():
        blocks += [_placed(block, study) for block in blocks_of(study)]
    return blocks


def overview() -> list[Block]:
    """A row for each study."""
    rows = []
    for study in STUDIES.values():
        told = tell(study)
        counts, date = ["-", "-", "all"], "-"
        if told is not None:
            record, outcome = told
            verdicts = [v.verdict for v in outcome.verdicts]
            counts = [str(verdicts.count(word)) for word in (YES, NO, NEVER)]
            date = record["date"]
        rows.append([study.title, study.question, *counts, date, study.command])
    header = ["study", "question", YES, NO, NEVER, "run on", "command"]
    return [
        Table(header, rows),
        Paragraph(
            "How many claims hold. One that does not hold here may be contradicted by"
            " these runs, or undecided by them: the tables say which."
        ),
    ]


def summary() -> str:
    """The overview and every verdict as Markdown, for the README."""
    parts = [to_markdown(overview()).strip()]
    for study in STUDIES.values():
        told = tell(study)
        if told is None:
            continue
        place = f"experiments/results/studies/{study.name}/README.md"
        lines = [_line(v.verdict, v.claim, v.evidence) for v in told[1].verdicts]
        parts.append("\n".join([f"[{study.title}]({place}):", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _line(verdict: str, claim: str, evidence: str) -> str:
    """A verdict in a line; where it does not hold, whether that is undecided."""
    why = ""
    if verdict == NO:
        known: Sequence[str] = ("undecided", "the opposite")
        why = next((f" ({w})" for w in known if evidence.startswith(w)), "")
    return f"* **{verdict}**{why}: {to_markdown([Paragraph(claim)]).strip()}"


def write_summary(path: Path) -> None:
    """Puts the summary between its marks in a file."""
    put_between(path, summary(), BEGIN, END)


def _placed(block: Block, study: Study) -> Block:
    """A block of a study within the page of all: one level down, figures found."""
    match block:
        case Heading(level, text):
            return Heading(min(level + 1, 4), text)
        case Picture(file, alt, caption):
            return Picture(f"{study.name}/{file}", alt, caption)
    return block
