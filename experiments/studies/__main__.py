"""Runs the studies, and makes a page of what they found.

    python -m experiments.studies             # the page, from the numbers there are
    python -m experiments.studies spherical   # runs a study, or goes on with it
    python -m experiments.studies all --time-limit 1h

A study may be stopped and started again at any time: its finished runs are kept in
runs/studies/. Its numbers, its figures and what follows from them go to
experiments/results/studies/NAME; its settings are in experiments/studies/configs/.

Exit codes: 0 done; 1 something broke; 2 an option cannot be used, or a run broke; 4
SIGTERM; 5 time is up; 130 Ctrl-C. After the last three the same command goes on.
"""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import errors
from experiments.allocator import use_huge_pages
from experiments.commands import run_command
from experiments.errors import UsageError, check_name
from experiments.progress import say
from experiments.stopping import INTERRUPTED, OUT_OF_TIME, TERMINATED, StoppedRun
from experiments.studies import full_scale, gallery
from experiments.studies.catalogue import STUDIES
from experiments.studies.keeping import RESULTS, keep, write_page
from experiments.studies.study import FIGURES, Clock, Place, Study
from experiments.values import make_folder, parse_duration

_PAGE = "page"
_CODES = {
    INTERRUPTED: errors.EXIT_INTERRUPTED,
    TERMINATED: errors.EXIT_TERMINATED,
    OUT_OF_TIME: errors.EXIT_OUT_OF_TIME,
}


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
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A TOML file with other settings for a study; only shown, not kept."""
    small: bool = False
    """On the handwritten digits, to try a study out; only shown, not kept."""
    begin: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    """Take the full-scale commands of a study through their first steps on this data
    set, and keep a record of it, in place of running the study."""
    steps: int = 1
    """How many steps --begin does."""
    readme: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Put a summary between the marks in this file, too."""


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    given = sys.argv[1:] if args is None else list(args)
    options = tyro.cli(
        Options,
        prog="python -m experiments.studies",
        description=__doc__,
        args=given,
    )

    def act() -> int:
        _check(options)
        limit = options.time_limit
        clock = Clock(parse_duration("--time-limit", limit) if limit else None)
        try:
            with clock:
                _work(options, clock, shlex.join(given))
        except StoppedRun as stopped:
            told = "the same command goes on"
            if stopped.reason == OUT_OF_TIME and not clock.worked:
                told = "nothing was begun: --time-limit is too short"
            say(f"{stopped.reason}: {told}", stderr=True)
            return _CODES[stopped.reason]
        return errors.EXIT_FINISHED

    return run_command(act, interrupted="interrupted: the same command goes on")


def _check(options: Options) -> None:
    """Raises a UsageError for options that cannot be used, or not together."""
    check_name("studies", options.what, [*STUDIES, "all", _PAGE])
    for name, value in (("--seeds", options.seeds), ("--steps", options.steps)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if options.what == _PAGE and (options.begin or options.config or options.small):
        raise UsageError("--begin, --config, --small: name a study")
    if options.what == "all" and options.config:
        raise UsageError("--config: is of one study, not of all")


def _work(options: Options, clock: Clock, given: str) -> None:
    names = list(STUDIES) if options.what == "all" else [options.what]
    for name in [] if options.what == _PAGE else names:
        study = STUDIES[name]
        if options.begin:
            commands = study.settings()["full_scale"]
            folder = RESULTS / study.name
            full_scale.begin_all(commands, options.begin, options.steps, clock, folder)
        else:
            _run(study, options, clock, f"python -m experiments.studies {given}")
    for study in STUDIES.values():
        write_page(study)
    say(str(gallery.write_page()))
    if options.readme is not None:
        gallery.write_summary(options.readme)


def _run(study: Study, options: Options, clock: Clock, command: str) -> None:
    """Runs a study, or goes on with it, and keeps what it found."""
    settings = dict(study.settings(options.config, small=options.small))
    if options.seeds is not None:
        settings["seeds"] = options.seeds
    shown = options.small or options.config is not None
    name = study.name + ("-small" if options.small else "")
    name += f"-{options.config.stem}" if options.config else ""
    runs = options.runs / name
    make_folder("--runs", runs)
    with _timed(runs / "seconds.txt") as spent:
        data = study.run(Place(runs / "runs", clock, settings))
    if shown:
        outcome = study.tell(settings, data, runs / FIGURES)
        for verdict in outcome.verdicts:
            say(f"{verdict.verdict}: {verdict.claim}: {verdict.evidence}")
        say(f"{runs / FIGURES}")
    else:
        keep(study, settings, data, spent[0], command)
        say(f"{RESULTS / study.name / 'README.md'}")


@contextlib.contextmanager
def _timed(path: Path) -> Iterator[list[float]]:
    """Seconds spent on a study over all calls: a list of one number, set last."""
    began = time.monotonic()
    try:
        before = float(path.read_text())
    except (OSError, ValueError):
        before = 0.0
    spent = [before]
    try:
        yield spent
    finally:
        spent[0] += time.monotonic() - began
        path.write_text(f"{spent[0]:.0f}\n")


if __name__ == "__main__":
    use_huge_pages()  # may start the program anew
    sys.exit(main())
