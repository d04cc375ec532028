"""Writes formulas as MathML, which browsers draw themselves, from disk as well."""

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert

_MATHML = "http://www.w3.org/1998/Math/MathML"


def inline(latex: str) -> str:
    """A formula within a line."""
    return _tidy(convert(latex))


def block(latex: str) -> str:
    """Formulas of their own: each stays whole, and a narrow page has more lines."""
    lines = []
    for line in re.split(r"\n\s*\n", latex.strip()):
        parts = [part.strip() for part in line.split(r"\qquad")]
        shown = "".join(
            f'<div class="formula">{_tidy(convert(part, display="block"))}</div>'
            for part in parts
            if part
        )
        lines.append(f'<div class="formulas">{shown}</div>')
    return "".join(lines)


def _tidy(mathml: str) -> str:
    """Sets the bars of a norm close to what is within, on both of its sides."""
    ElementTree.register_namespace("", _MATHML)
    root = ElementTree.fromstring(mathml)
    for operator in root.iter(f"{{{_MATHML}}}mo"):
        if operator.text == "|":
            operator.attrib |= {"lspace": "0", "rspace": "0"}
    return ElementTree.tostring(root, encoding="unicode")
