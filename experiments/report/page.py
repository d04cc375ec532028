"""A page as a list of blocks, written as Markdown or as HTML in a single file."""

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the page's own, and comes once."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to paste."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; ``numeric`` names the columns to align at the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A figure: ``file`` without its ending, beside it a .png and an .svg.

    Attributes:
      file: relative to the page.
      alt: what there is to see, for who cannot.
      caption: what it shows, of what.
    """

    file: str
    alt: str
    caption: str


Block = Heading | Paragraph | Bullets | Code | Table | Picture


def readable(text: str) -> str:
    r"""A text that files can hold, whatever is in it that is no UTF-8.

    Example:
      >>> print(readable("caf\udce9"))
      caf\udce9
    """
    return text.encode(errors="backslashreplace").decode()


def to_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; its figures stay in files of their own."""
    return readable("\n\n".join(_markdown(block) for block in blocks) + "\n")


def to_html(blocks: Sequence[Block], folder: Path, style: str = "") -> str:
    """The page as HTML that needs no other file.

    Args:
      blocks: the page; its first heading is the title.
      folder: where the figures lie.
      style: more rules for how it looks.
    """
    title = next(b.text for b in blocks if isinstance(b, Heading))
    body = "\n".join(_html(block, folder) for block in blocks)
    page = _PAGE.format(title=html.escape(title), style=_STYLE + style, body=body)
    return readable(page)


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_escape(text)}"
        case Paragraph(text):
            return _escape(text)
        case Bullets(items):
            return "\n".join(f"* {_escape(item)}" for item in items)
        case Code(lines):
            return "\n".join(["```sh", *lines, "```"])
        case Table():
            return _markdown_table(block)
        case Picture(file, alt, caption):
            return f"![{_escape(alt)}]({file}.png)\n\n*{_escape(caption)}*"


def _markdown_table(table: Table) -> str:
    rules = ["---:" if name in table.numeric else "---" for name in table.header]
    rows = [[_escape(cell) for cell in row] for row in [table.header, *table.rows]]
    rows.insert(1, rules)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text.replace("\n", " "))


def _html(block: Block, folder: Path) -> str:
    text: Callable[[str], str] = html.escape
    match block:
        case Heading(level, words):
            return f"<h{level}>{text(words)}</h{level}>"
        case Paragraph(words):
            return f"<p>{text(words)}</p>"
        case Bullets(items):
            rows = "".join(f"<li>{text(item)}</li>" for item in items)
            return f"<ul>{rows}</ul>"
        case Code(lines):
            joined = text("\n".join(lines))
            return f'<pre tabindex="0"><code>{joined}</code></pre>'
        case Table():
            return _html_table(block)
        case Picture(file, alt, caption):
            svg = (folder / f"{file}.svg").read_bytes()
            source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
            return (
                f'<figure><div class="wide" tabindex="0"><img src="{source}"'
                f' alt="{text(alt)}"></div>'
                f"<figcaption>{text(caption)}</figcaption></figure>"
            )


def _html_table(table: Table) -> str:
    kinds = [' class="n"' if name in table.numeric else "" for name in table.header]

    def row(cells: Sequence[str], tag: str) -> str:
        names = table.header if tag == "td" else [""] * len(kinds)
        return "".join(
            f"<{tag}{kind}{_data(name)}>{html.escape(cell)}</{tag}>"
            for cell, kind, name in zip(cells, kinds, names, strict=True)
        )

    head = f"<thead><tr>{row(table.header, 'th')}</tr></thead>"
    rows = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    return (
        f'<div class="wide" tabindex="0"><table>{head}<tbody>{rows}</tbody></table>'
        "</div>"
    )


def _data(name: str) -> str:
    """The name of a column at a cell, for where its head is out of sight."""
    return f' data-name="{html.escape(name)}"' if name else ""


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 2px solid #1a1a1a; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-spacing: 0; font-size: .9rem; margin: .5rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #d0d0d0; }
thead th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; }
td:last-child { min-width: 20rem; }
@media (max-width: 40rem) { th:first-child, td:first-child { position: sticky; left: 0;
  background: #fff; } td:first-child { max-width: 9rem; } }
.n { text-align: right; white-space: nowrap; }
pre { background: #f4f4f4; padding: .75rem; overflow-x: auto; font-size: .85rem; }
figure { margin: 1.25rem 0; }
figure img { display: block; width: 100%; min-width: 40rem; max-width: 56rem; }
figcaption { font-size: .85rem; color: #444; max-width: 46rem;
  overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10pt; }
  figure, tr { break-inside: avoid; } figure img { min-width: 0; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
