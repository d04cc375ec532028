"""Verdicts on claims, from numbers: no claim holds on a difference within noise."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.report.published import (
    CONTRADICTED,
    HOLDS,
    NOT_RUN,
    SIGNIFICANCE,
    Finding,
)
from experiments.report.stats import Contrast, Sample, contrast, describe, holm

YES, NO, NEVER = "holds", "does not hold here", "not run"
"""The verdicts: shown; not shown, or shown to be otherwise; no runs to tell by."""
RULE = (
    "A claim holds where the numbers bear it out and, with several seeds, chance is"
    " ruled out as the reason: two-sided p below 0.05 by Welch's test, after Holm's"
    " adjustment for all claims of the table that were tested. A claim that these runs"
    " cannot tell is undecided, which is no evidence against it. Intervals are 95 %"
    " intervals of the one difference, without adjustment."
)


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
class Claim:
    """That one quantity has a larger mean than another.

    Attributes:
      text: of the claim.
      larger: what is claimed to be larger: its name, and a value for each seed.
      smaller: the other.
      unit: of the difference.
      digits: to show.
      margin: how much smaller ``larger`` may yet be.
    """

    text: str
    larger: tuple[str, Sequence[float]]
    smaller: tuple[str, Sequence[float]]
    unit: str = ""
    digits: int = 3
    margin: float = 0.0


def judge(claims: Sequence[Claim]) -> list[Verdict]:
    """Judges the claims of a table together.

    Example:
      >>> claim = Claim("b > a", ("b", [3.0, 3.1, 3.2]), ("a", [1.0, 1.1]), digits=1)
      >>> judge([claim])[0].verdict
      'holds'
    """
    contrasts = [_contrast(claim) for claim in claims]
    tested = [found.p for found in contrasts if found]
    adjusted = iter(holm(tested))
    return [
        _decide(claim, found, next(adjusted) if found else None, len(tested))
        for claim, found in zip(claims, contrasts, strict=True)
    ]


def verdict_of(finding: Finding, means: str, tested: int) -> Verdict:
    """A published claim judged by runs, in the words of the studies.

    Args:
      finding: of the report.
      means: of the settings that take part.
      tested: how many claims its p is adjusted for.
    """
    found = finding.contrast
    if finding.verdict == NOT_RUN:
        return Verdict(finding.claim, NEVER, finding.note)
    if found is None or finding.p is None:
        return Verdict(finding.claim, NO, f"{finding.verdict}: {finding.note}")
    numbers = f"{means}; {_difference(found, ' points', 2, finding.p, tested)}"
    if finding.verdict == HOLDS:
        return Verdict(finding.claim, YES, numbers)
    why = "the opposite" if finding.verdict == CONTRADICTED else "undecided"
    return Verdict(finding.claim, NO, f"{why}: {numbers}")


def in_numbers(sample: Sample, digits: int = 2) -> str:
    """``98.12 (0.30), n = 3``: mean, deviation and number."""
    if not sample.n:
        return "-"
    std = "-" if math.isnan(sample.std) else f"{sample.std:.{digits}f}"
    return f"{sample.mean:.{digits}f} ({std}), n = {sample.n}"


def count(verdicts: Iterable[Verdict]) -> str:
    """``7 claims 2 hold, 1 is contradicted, 4 are undecided``."""
    verdicts = list(verdicts)
    opposite = sum(v.evidence.startswith("the opposite") for v in verdicts)
    undecided = sum(v.evidence.startswith("undecided") for v in verdicts)
    holding = sum(v.verdict == YES for v in verdicts)
    never = sum(v.verdict == NEVER for v in verdicts)
    numbers = (
        (holding, "holds", "hold"),
        (opposite, "is contradicted", "are contradicted"),
        (undecided, "is undecided", "are undecided"),
        (
            len(verdicts) - holding - opposite - undecided - never,
            "is not as claimed",
            "are not as claimed",
        ),
        (never, "was not run", "were not run"),
    )
    parts = [f"{n} {one if n == 1 else many}" for n, one, many in numbers if n]
    return f"{len(verdicts)} claims {', '.join(parts)}"


def p_value(p: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _contrast(claim: Claim) -> Contrast | None:
    larger, smaller = (describe(part[1]) for part in (claim.larger, claim.smaller))
    found = contrast([(1.0, larger), (-1.0, smaller)])
    if found is None or not claim.margin:
        return found
    # Welch's test of the difference against minus the margin.
    moved = Sample(larger.n, larger.mean + claim.margin, larger.std)
    against = contrast([(1.0, moved), (-1.0, smaller)])
    assert against is not None
    return Contrast(found.estimate, found.low, found.high, against.p)


def _decide(
    claim: Claim, found: Contrast | None, p: float | None, tested: int
) -> Verdict:
    if not claim.larger[1] or not claim.smaller[1]:
        absent = [name for name, values in (claim.larger, claim.smaller) if not values]
        return Verdict(claim.text, NEVER, f"no finished run: {', '.join(absent)}")
    means = "; ".join(
        f"{name} {in_numbers(describe(values), claim.digits)}"
        for name, values in (claim.larger, claim.smaller)
    )
    if found is None or p is None:
        few = min(len(claim.larger[1]), len(claim.smaller[1])) < 2
        why = "needs two seeds each" if few else "no variation between seeds"
        return Verdict(claim.text, NO, f"undecided: {means}; {why}")
    numbers = f"{means}; {_difference(found, claim.unit, claim.digits, p, tested)}"
    if claim.margin:
        numbers += f", against a margin of {claim.margin:.{claim.digits}f}"
    if p < SIGNIFICANCE:
        if found.estimate > -claim.margin:
            return Verdict(claim.text, YES, numbers)
        return Verdict(claim.text, NO, f"the opposite: {numbers}")
    return Verdict(claim.text, NO, f"undecided: {numbers}")


def _difference(found: Contrast, unit: str, digits: int, p: float, tested: int) -> str:
    adjusted = f" (Holm, {tested} claims)" if tested > 1 else ""
    return (
        f"difference {found.estimate:+.{digits}f}{unit}, 95 % interval"
        f" {found.low:+.{digits}f} to {found.high:+.{digits}f}, {p_value(p)}{adjusted}"
    )
