"""Runs the studies, and makes a page of what they found.

    python -m experiments.studies             # the page, from the results there are
    python -m experiments.studies spherical   # runs a study, or goes on with it
    python -m experiments.studies all --time-limit 1h

A study may be stopped and started again at any time: its finished runs are kept in
runs/studies/. What it found goes to experiments/results/studies/NAME.

Exit codes: 0 done; 1 something broke; 2 an option cannot be used, or a run broke; 5
time is up, the same command goes on; 130 Ctrl-C.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import errors
from experiments.errors import UsageError, check_name
from experiments.progress import say
from experiments.studies import gallery
from experiments.studies.catalogue import STUDIES
from experiments.studies.study import (
    FIGURES,
    RESULTS,
    Clock,
    OutOfTimeError,
    Place,
    Study,
    keep,
)
from experiments.values import make_folder, parse_duration

_PAGE = "page"


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.studies``."""

    what: tyro.conf.Positional[str] = _PAGE
    """A study, all, or page."""
    time_limit: Annotated[str | None, tyro.conf.arg(metavar="TIME")] = None
    """Stop in time for this, as 90s, 9m or 1.5h, and keep what is done."""
    runs: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/studies")
    """Where runs are kept."""
    seeds: int | None = None
    """Seeds of each setting; by default what the study says."""
    small: bool = False
    """On the handwritten digits, to try a study out; only shown, not kept."""
    readme: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """page: put a summary between the marks in this file, too."""


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    given = sys.argv[1:] if args is None else list(args)
    try:
        options = tyro.cli(
            Options,
            prog="python -m experiments.studies",
            description=__doc__,
            args=given,
        )
        check_name("studies", options.what, [*STUDIES, "all", _PAGE])
        if options.seeds is not None and options.seeds < 1:
            raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
        limit = options.time_limit
        clock = Clock(parse_duration("--time-limit", limit) if limit else None)
        if options.what != _PAGE:
            names = STUDIES if options.what == "all" else [options.what]
            command = shlex.join(["python", "-m", "experiments.studies", *given])
            for name in names:
                _run(STUDIES[name], options, clock, command)
        say(str(gallery.write_page()))
        if options.readme is not None:
            gallery.write_summary(options.readme)
    except OutOfTimeError:
        say("out of time: the same command goes on", stderr=True)
        return errors.EXIT_OUT_OF_TIME
    except UsageError as error:
        say(f"error: {error}", stderr=True)
        return errors.EXIT_USAGE
    except OSError as error:
        say(f"error: {error}", stderr=True)
        return errors.EXIT_FAILED
    except KeyboardInterrupt:
        return errors.EXIT_INTERRUPTED
    return errors.EXIT_FINISHED


def _run(study: Study, options: Options, clock: Clock, command: str) -> None:
    """Runs a study, or goes on with it, and keeps what it found."""
    name = f"{study.name}-small" if options.small else study.name
    runs = options.runs / name
    make_folder("--runs", runs)
    results = runs if options.small else RESULTS / study.name
    place = Place(
        runs=runs / "runs",
        figures=results / FIGURES,
        clock=clock,
        seeds=options.seeds or (2 if options.small else study.seeds),
        small=options.small,
    )
    spent = _Spent(runs / "seconds.txt")
    try:
        outcome = study.run(place)
    finally:
        spent.add()
    for verdict in outcome.verdicts:
        say(f"{verdict.verdict}: {verdict.claim}: {verdict.evidence}")
    if not options.small:
        keep(study, outcome, spent.seconds, command)
        say(f"{RESULTS / study.name / 'README.md'}")


class _Spent:
    """Seconds spent on a study, over all calls."""

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.monotonic()
        try:
            self.seconds = float(path.read_text())
        except (OSError, ValueError):
            self.seconds = 0.0

    def add(self) -> None:
        """This call is over."""
        self.seconds += time.monotonic() - self._began
        self._path.write_text(f"{self.seconds:.0f}\n")


if __name__ == "__main__":
    sys.exit(main())
