"""One page with every study, and its summary for the README."""

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
from experiments.studies.study import RESULTS, Study, blocks_of, read, read_verdicts

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"
PAGE = RESULTS / "index.html"


def write_page() -> Path:
    """Writes the page of all studies; returns where it is."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(to_html(page_blocks(), RESULTS))
    return PAGE


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
        blocks += [_placed(block, study) for block in blocks_of(study, read(study))]
    return blocks


def overview() -> list[Block]:
    """A row for each study."""
    rows = []
    for study in STUDIES.values():
        record = read(study)
        verdict, date = "not run", "-"
        if record is not None:
            verdicts = [v.verdict for v in read_verdicts(record)]
            counts = {v: verdicts.count(v) for v in dict.fromkeys(verdicts)}
            verdict = ", ".join(f"{count} {v}" for v, count in counts.items())
            date = record["date"]
        rows.append([study.title, study.question, verdict, date, study.command])
    return [Table(["study", "question", "claims", "run on", "command"], rows)]


def summary() -> str:
    """The overview and every verdict as Markdown, for the README."""
    parts = [to_markdown(overview()).strip()]
    for study in STUDIES.values():
        record = read(study)
        if record is None:
            continue
        lines = [
            f"* **{v.verdict}**: {to_markdown([Paragraph(v.claim)]).strip()}"
            for v in read_verdicts(record)
        ]
        place = f"experiments/results/studies/{study.name}/README.md"
        parts.append("\n".join([f"[{study.title}]({place}):", "", *lines]))
    return "\n\n".join(parts) + "\n"


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
