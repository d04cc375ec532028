"""Values that several commands take: how they are spelled, and what they stand for."""

import math
import re
from pathlib import Path

from experiments.errors import UsageError

_MOST_SEEDS = 10_000
_FLOAT32 = 2.0**-126, 2.0**128 - 2.0**104
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads ``0..4`` (both ends are in), ``0,2,5``, or both: ``0..2,7``.

    Raises:
      UsageError: it is nothing of the sort, or names a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:\.\.(\d{1,10}))?\s*", part)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if not 0 <= last - first < _MOST_SEEDS or last >= 2**32:
            raise UsageError(
                "--seeds must be like 0..4 or 0,2,5, rising, at most 4294967295 and"
                f" {_MOST_SEEDS} of them, got {text!r}"
            )
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds names a seed twice: {text!r}")
    return tuple(seeds)


def is_in_float32(value: float) -> bool:
    """Whether float32 has a number next to it that is neither 0 nor infinite."""
    return value == 0 or _FLOAT32[0] <= abs(value) <= _FLOAT32[1]


def parse_duration(option: str, text: str) -> float:
    """Reads ``90``, ``90s``, ``9m``, ``1.5h`` or ``1d`` as seconds.

    Raises:
      UsageError: it is nothing of the sort; the message names ``option``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise UsageError(f"{option} must be a time like 90s, 9m or 1.5h, got {text!r}")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def parse_limit(option: str, text: str | None) -> float:
    """A duration in seconds; infinite if there is none.

    Raises:
      UsageError: it is no duration; the message names ``option``.
    """
    return math.inf if text is None else parse_duration(option, text)


def make_folder(option: str, path: Path) -> None:
    """Makes a folder where there is none.

    Raises:
      UsageError: it cannot be made; the message names ``option``.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
