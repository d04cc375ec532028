"""Which runs belong together.

Two runs belong to one setting when their ``config.json`` differ in the seed alone, and
to one column when they differ in the seed and the optimizer alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments.report.stats import Sample, describe
from experiments.results import FINISHED, Run

_LEAST, _ALL = 4, 17  # significant digits of a number in a label


@dataclass(frozen=True)
class Setting:
    """Runs that differ in the seed alone; a row of a table.

    Attributes:
      config: the options, without the seed.
      runs: one for each seed, by seed, finished or not.
      repeats: runs of a seed that another run has: they do not count.
    """

    config: Mapping[str, Any]
    runs: Sequence[Run]
    repeats: Sequence[Run]

    @property
    def optimizer(self) -> str:
        """The name of the optimizer."""
        return self.config["optimizer"]

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """The optimizer's options."""
        return self.config["hyperparameters"]

    @property
    def finished(self) -> list[Run]:
        """The runs that count."""
        return [run for run in self.runs if run.state == FINISHED]

    @cached_property
    def accuracy(self) -> Sample:
        """Test accuracy in percent over the runs that count."""
        return describe(run.accuracy for run in self.finished)


@dataclass(frozen=True)
class Column:
    """Settings that differ in the optimizer alone; one table.

    Attributes:
      config: the options that all share.
      settings: the rows.
      labels: of each setting: the optimizer, and what tells two of one apart.
    """

    config: Mapping[str, Any]
    settings: Sequence[Setting]
    labels: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        """All runs but repeats."""
        return [run for setting in self.settings for run in setting.runs]


def columns_of(runs: Iterable[Run]) -> list[Column]:
    """Sorts runs into columns and settings, whatever folders they lie in."""
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(_key(_without(run.config, ["seed"])), []).append(run)
    by_column: dict[str, list[Setting]] = {}
    for group in by_setting.values():
        setting = _setting(group)
        by_column.setdefault(_key(_shared(setting.config)), []).append(setting)
    columns = []
    for _, settings in sorted(by_column.items()):
        settings = sorted(settings, key=lambda s: (s.optimizer, _key(s.config)))
        shared = _shared(settings[0].config)
        columns.append(Column(shared, settings, _labels(settings)))
    return columns


def row_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to the optimizer of a run: its options, and decays of its own."""
    own = ["sgd_milestones"]
    if config.get("protocol") == "swats":  # which has a decay for each optimizer
        own.append("milestones")
    decays = {name: config[name] for name in own if config.get(name) is not None}
    return {**config["hyperparameters"], **decays}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the options that are not the same in all."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [n for n in names if len({_key(c.get(n)) for c in configs}) > 1]


def _setting(group: Sequence[Run]) -> Setting:
    """Of two runs of one seed the finished one counts, or the first by name."""
    ordered = sorted(group, key=lambda r: (r.seed, r.state != FINISHED, str(r.path)))
    first: dict[int, Run] = {}
    repeats = [run for run in ordered if first.setdefault(run.seed, run) is not run]
    return Setting(_without(group[0].config, ["seed"]), list(first.values()), repeats)


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a column is told by."""
    of_the_row = ["optimizer", "hyperparameters", *row_options(config)]
    # Absent and None are one and the same: a decay that the optimizer does not have.
    options = _without(config, [*of_the_row, "sgd_milestones"])
    return {name: value for name, value in options.items() if value is not None}


def _labels(settings: Sequence[Setting]) -> list[str]:
    labels = []
    for setting in settings:
        same = [s for s in settings if s.optimizer == setting.optimizer]
        rows = [row_options(s.config) for s in same]
        mine = row_options(setting.config)
        parts = [setting.optimizer]
        for option in differing(rows):
            digits = _digits([row.get(option) for row in rows])
            parts.append(f"{option}={_rounded(mine.get(option), digits)}")
        labels.append(" ".join(parts))
    return labels


def _digits(values: Sequence[Any]) -> int:
    """How many digits tell apart what differs: four, or more."""

    def different(digits: int) -> int:
        return len({_key(_rounded(value, digits)) for value in values})

    return next(n for n in range(_LEAST, _ALL + 1) if different(n) == different(_ALL))


def _rounded(value: Any, digits: int) -> Any:
    """Numbers, also those of a list, to so many significant digits."""
    if isinstance(value, list):
        return [_rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _without(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}
