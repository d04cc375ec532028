"""The published figures and claims of ``published.toml``, held against runs."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.protocols import PROTOCOLS, Names
from experiments.report import stats
from experiments.report.columns import Column, Setting

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
NOT_RUN, AMBIGUOUS, NO_GAP = "not run", "ambiguous", "no gap to close"
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Figure:
    """A published accuracy, for one row.

    Attributes:
      source: title of the work.
      measure: what exactly was measured.
      mean: in percent.
      std: over seeds; None where none was given.
      departures: how the runs' settings differ from the published ones; where there
        are any, the two numbers may be looked at together but not compared.
    """

    source: str
    measure: str
    mean: float
    std: float | None
    departures: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What the runs of a column say about a claim.

    Attributes:
      claim: the text.
      source: title of the work.
      verdict: ``HOLDS``, ``CONTRADICTED`` or ``UNDECIDED`` at ``SIGNIFICANCE``, or why
        it could not be judged.
      contrast: the weighted sum of means, claimed to be above 0; or None.
      p: of the contrast, adjusted for the number of claims judged; or None.
      note: more on the verdict.
    """

    claim: str
    source: str
    verdict: str
    contrast: stats.Contrast | None = None
    p: float | None = None
    note: str = ""


def published_figure(setting: Setting) -> Figure | None:
    """The published figure for a row, the one with the fewest departures."""
    table, config = _table(), setting.config
    found = []
    for name, datasets in table["figures"].items():
        rows = datasets.get(config["dataset"], {}).get(config["model"], {})
        for selector, values in rows.items():
            if _matches(selector, setting):
                source = table["sources"][name]
                found.append(
                    Figure(
                        source["title"],
                        source["measure"],
                        values[0],
                        values[1] if len(values) > 1 else None,
                        _departures(source, setting),
                    )
                )
    return min(found, key=lambda figure: len(figure.departures), default=None)


def judge_claims(column: Column) -> list[Finding]:
    """Every claim, judged by the finished runs of a column."""
    here = [column.config["dataset"], column.config["model"]]
    claims = [c for c in _table()["claims"] if c.get("only", here) == here]
    findings = [_judge(claim, column) for claim in claims]
    judged = [f.contrast.p for f in findings if f.contrast]
    adjusted = iter(stats.holm(judged))
    return [
        _decide(finding, next(adjusted)) if finding.contrast else finding
        for finding in findings
    ]


def _judge(claim: Mapping[str, Any], column: Column) -> Finding:
    """The statistics of a claim, or why there are none."""
    text, source = claim["text"], _table()["sources"][claim["source"]]["title"]
    samples, missing, several = {}, [], []
    for selector in [*claim["terms"], *claim.get("gap", {})]:
        rows = [s for s in column.settings if _matches(selector, s) and s.finished]
        if not rows:
            missing.append(selector)
        elif len(rows) > 1:
            several.append(selector)
        else:
            samples[selector] = rows[0].accuracy
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        return Finding(text, source, NOT_RUN, note=f"no finished run of {names}")
    if several:
        names = ", ".join(dict.fromkeys(several))
        return Finding(text, source, AMBIGUOUS, note=f"several settings of {names}")

    def contrast(terms: Mapping[str, float]) -> stats.Contrast | None:
        return stats.contrast([(c, samples[name]) for name, c in terms.items()])

    counts = ", ".join(f"{name} n={sample.n}" for name, sample in samples.items())
    found = contrast(claim["terms"])
    if found is None:
        few = any(sample.n < 2 for sample in samples.values())
        why = "needs two seeds each" if few else "no variation between seeds"
        return Finding(text, source, UNDECIDED, note=f"{counts}; {why}")
    if "gap" in claim:
        gap = contrast(claim["gap"])
        if gap is None or gap.low <= 0:
            size = (
                f"{gap.estimate:+.2f}, at least {gap.low:+.2f}" if gap else "constant"
            )
            note = f"{counts}; {_difference(claim['gap'])}: {size}"
            return Finding(text, source, NO_GAP, note=note)
    return Finding(text, source, UNDECIDED, found, note=counts)


def _decide(finding: Finding, p: float) -> Finding:
    assert finding.contrast is not None
    verdict = UNDECIDED
    if p < SIGNIFICANCE:
        verdict = HOLDS if finding.contrast.estimate > 0 else CONTRADICTED
    return Finding(
        finding.claim, finding.source, verdict, finding.contrast, p, finding.note
    )


def _matches(selector: str, setting: Setting) -> bool:
    """Whether a row is what ``optimizer option=value ...`` selects."""
    optimizer, *options = selector.split()
    if optimizer != setting.optimizer:
        return False
    pairs = [option.split("=") for option in options]
    return all(_same(setting.hyperparameters.get(name), v) for name, v in pairs)


def _same(value: Any, text: str) -> bool:
    if isinstance(value, float):
        return value == float(text)
    return str(value) == text


def _departures(source: Mapping[str, Any], setting: Setting) -> tuple[str, ...]:
    """Where the options of a row are not the published ones."""
    config, options = setting.config, setting.hyperparameters
    published = dict(source["settings"])
    if protocol := source.get("protocol"):
        names = Names(config["dataset"], config["model"], setting.optimizer)
        try:
            settings = PROTOCOLS[protocol](names, options)
        except UsageError:
            return (f"--protocol {protocol} does not know these runs",)
        published |= {**settings.options, **settings.hyperparameters}
        published.pop("eval_batch_size", None)  # decides memory, not numbers
    ours = {**config, **options}
    return tuple(
        f"{name} {_value(ours.get(name))}, published {_value(theirs)}"
        for name, theirs in published.items()
        if _value(ours.get(name)) != _value(theirs)
    )


def _value(value: Any) -> str:
    """An option as text, the same from JSON as from Python."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_value, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _difference(terms: Mapping[str, float]) -> str:
    """``{"sgd": 1, "adam": -1}`` as ``sgd - adam``."""
    plus, minus = sorted(terms, key=terms.__getitem__, reverse=True)
    return f"{plus} - {minus}"


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text())
