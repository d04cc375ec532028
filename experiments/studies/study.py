"""What a study is, and what it works with."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.progress import say
from experiments.report.page import Block
from experiments.stopping import StopRequest
from experiments.studies.settings import Settings, read_settings
from experiments.studies.verdicts import Verdict

FIGURES = "figures"
CONFIGS = Path(__file__).parent / "configs"
_ENOUGH = 15.0  # seconds; less is not enough to begin a piece of work
_TO_SAVE = 3.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What follows from the numbers of a study: all that its page shows.

    Attributes:
      verdicts: on the claims of its source.
      follows: what the verdicts come to, in a few sentences.
      blocks: tables and figures.
    """

    verdicts: Sequence[Verdict]
    follows: Sequence[str]
    blocks: Sequence[Block]


class Clock:
    """Says when to stop: the time is up, or a signal came.

    Within its context Ctrl-C and SIGTERM are heard. From :meth:`hold` on they wait for
    the next :meth:`check`; before, they take effect at once.

    Attributes:
      worked: whether any work was begun.

    Example:
      >>> Clock(None).left()
      inf
    """

    def __init__(self, limit: float | None) -> None:
        end = None if limit is None else time.monotonic() + limit
        self._end = math.inf if end is None else end
        self._stop = StopRequest(end, reserve=_TO_SAVE)
        self.worked = False

    def __enter__(self) -> "Clock":
        self._stop.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.__exit__(*error)

    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def hold(self) -> None:
        """From now on there is something to save before the end."""
        self._stop.begin()

    def check(self, needed: float = 0.0) -> None:
        """Raises a StoppedRun if a signal came, or unless so many seconds are left."""
        self._stop.check(needed)


@dataclass(frozen=True)
class Place:
    """Where a study works, and with what.

    Attributes:
      runs: folder of its runs, kept from call to call.
      clock: says when to stop.
      settings: of the study.
    """

    runs: Path
    clock: Clock
    settings: Settings

    @property
    def seeds(self) -> int:
        """How many seeds."""
        return self.settings["seeds"]

    def once(
        self, name: str, settings: Sequence[str], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Does a piece of work, or reads what it came to with the same settings.

        Args:
          name: of the file that keeps it, in the folder of runs.
          settings: what it depends on; with other ones it is done again.
          make: does it; its result goes through JSON.

        Raises:
          StoppedRun: a signal came, or there is hardly any time, and it is to be done.
        """
        path = self.runs / f"{name}.json"
        try:
            record = json.loads(path.read_text())
            if record["settings"] == list(settings):
                return record["found"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not done, or not to the end
        self.clock.check(_ENOUGH)
        self.clock.worked = True
        say(f"{name}: {' '.join(settings)}")
        save_json(path, {"settings": list(settings), "found": make()})
        return json.loads(path.read_text())["found"]


@dataclass(frozen=True)
class Study:
    """One source's headline result, as something to run.

    Attributes:
      name: on the command line.
      title: of its page.
      question: that it answers.
      source: whose claim it is.
      about: what is run with some settings, and how that differs from the source.
      run: does it, or goes on with it; returns its numbers, for JSON.
      tell: what follows from settings and numbers; draws figures into a folder, if it
        is given one.
    """

    name: str
    title: str
    question: str
    source: str
    about: Callable[[Settings], str]
    run: Callable[[Place], dict[str, Any]]
    tell: Callable[[Settings, Mapping[str, Any], Path | None], Outcome]

    @property
    def command(self) -> str:
        """What to type to repeat it."""
        return f"python -m experiments.studies {self.name}"

    @property
    def config(self) -> Path:
        """The file with its settings."""
        return CONFIGS / f"{self.name}.toml"

    def settings(self, given: Path | None = None, *, small: bool = False) -> Settings:
        """Its settings, in little or in full.

        Args:
          given: a file with some that are to be others.
          small: take those of the table ``small``.

        Raises:
          UsageError: the file cannot be read, or has what the study does not take.
        """
        return read_settings(self.config, given, small=small)


def save_json(path: Path, record: Any) -> None:
    """Writes a file, whole or not at all; numbers of a list in one line."""
    text = json.dumps(record, indent=1, allow_nan=False)
    text = re.sub(r'\[[^][{}"]*\]', lambda part: " ".join(part[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
