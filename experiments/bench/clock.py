"""Runs that alternate: A B C A B C ..., so that a busy machine is busy for all."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Contender = Callable[[int], None]
"""Does so many calls, one after the other, and waits until all are done."""


@dataclass(frozen=True)
class InUnits:
    """A contender whose calls are done a unit at a time, all of a unit in one go.

    Attributes:
      run: does so many units.
      unit: calls in one of them; it is called with multiples of that.
    """

    run: Contender
    unit: int

    def __call__(self, calls: int) -> None:
        """Does so many calls."""
        self.run(calls // self.unit)


_LEAST_ROUNDS = 3
_MOST_CALLS = 1000
_SHORT = 0.2  # seconds: a call that may be repeated just to settle
_LONG = 2.0  # seconds: one that is not even repeated to learn how long it takes


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
      rounds: samples of each contender.
      seconds: when the rounds have taken so long, three of them suffice.
      sample_seconds: calls are repeated until a sample takes about so long.
    """

    rounds: int = 25
    seconds: float = 8.0
    sample_seconds: float = 0.01


def alternate(
    contenders: Mapping[str, Contender], budget: Budget
) -> dict[str, list[float]]:
    """Seconds a call, of every contender in every round.

    Before a sample the contender is called once, and that is not counted: it brings
    its own data back into the caches and lets the threads of the one before it rest.
    Where a call takes long, neither matters. What comes in units is called by the unit.
    """
    units = {name: _unit(run) for name, run in contenders.items()}
    once = {name: _warm_up(run) for name, run in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for done in range(budget.rounds):
        if done >= _LEAST_ROUNDS and time.perf_counter() - began > budget.seconds:
            break
        for name, run in contenders.items():
            unit = units[name]
            wanted = math.ceil(budget.sample_seconds / max(once[name], 1e-9))
            calls = unit * min(wanted, math.ceil(_MOST_CALLS / unit))
            if once[name] < _SHORT:
                run(unit)
            times[name].append(_seconds(run, calls) / calls)
    return times


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, the least, and how many there are, for JSON."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {
        "median": median,
        "quartiles": [low, high],
        "least": min(values),
        "n": len(values),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Of two contenders' seconds, the ratio round by round, summed up."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def _unit(run: Contender) -> int:
    return run.unit if isinstance(run, InUnits) else 1


def _warm_up(run: Contender) -> float:
    """Calls it until it is compiled for good; returns the seconds of a unit."""
    unit = _unit(run)
    run(unit)
    seconds = _seconds(run, unit)  # what the first returned may be laid out anew
    if seconds > _LONG:
        return seconds
    # Nor does the second tell how long it takes: large arrays are mapped in it.
    return min(_seconds(run, unit) for _ in range(2))


def _seconds(run: Contender, calls: int) -> float:
    began = time.perf_counter()
    run(calls)
    return time.perf_counter() - began
