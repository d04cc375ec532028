"""A grid of runs, optimizers by seeds, in one folder: what is done and what is left."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import errors
from experiments.config import Config, first_difference, parse, to_json
from experiments.errors import UsageError, check_name
from experiments.launch import COMPILED, LOCKS, LOGS, Outcome, Signals, run_training
from experiments.optimizers import OPTIMIZERS, flag
from experiments.protocols import read_table
from experiments.results import UnreadableRunError, read_run
from experiments.runs import CONFIG

DECIDED = ("--seed", "--optimizer", "--overwrite", "--resume", "--config")
"""Options of a run that a grid decides."""
_SHARED = ("--dataset", "--model", "--protocol", "--seeds", "--out", "--time-limit")
"""And those that are the same for all of its runs."""
NEW, DAMAGED = "new", "damaged"
STOPPED = (
    errors.EXIT_TERMINATED,
    errors.EXIT_OUT_OF_TIME,
    errors.EXIT_INTERRUPTED,
)
"""Exit codes of a run that was stopped, and saved what it had."""


@dataclass(frozen=True)
class Job:
    """One run of a grid.

    Attributes:
      optimizer: as it was asked for: ``adam`` or ``swats:switch=local``.
      config: all of its options.
      args: of the training command, without those that say where the run goes.
      folder: where it goes.
    """

    optimizer: str
    config: Config
    args: Sequence[str]
    folder: Path

    @property
    def name(self) -> str:
        """How it is called."""
        return f"{self.optimizer} seed {self.config.seed}"

    @property
    def lock(self) -> Path:
        """The file whose lock is the claim on it."""
        return self.folder.parent / LOCKS / self.folder.name

    @property
    def log(self) -> Path:
        """What it wrote to stderr."""
        return self.folder.parent / LOGS / f"{self.folder.name}.err"

    def state(self) -> tuple[str, str]:
        """``NEW``, ``DAMAGED``, or the state of the run; and what to say of it."""
        if not (self.folder / CONFIG).exists():
            return NEW, ""
        try:
            run = read_run(self.folder)
        except UnreadableRunError as error:
            return DAMAGED, f"{self.folder}: {error}; delete it to run it again"
        return run.state, run.detail

    def check_settings(self) -> None:
        """Checks that a run in the folder is the one that was asked for.

        Raises:
          UsageError: it has other settings.
        """
        try:
            record = json.loads((self.folder / CONFIG).read_text())["config"]
            there = {**to_json(Config()), **record}
        except (OSError, ValueError, LookupError, TypeError):
            return  # new, or damaged, which is not for here to say
        difference = first_difference(to_json(self.config), there)
        if difference:
            name, asked, found = difference
            raise UsageError(
                f"{self.folder}: has a run with {flag(name)} {found}, not {asked};"
                " choose another --out"
            )


def run_job(
    job: Job,
    lock: int,
    signals: Signals,
    seconds: float,
    *,
    quiet: bool = False,
    keep_on: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Trains a job from where it stands.

    Args:
      job: new, or incomplete.
      lock: descriptor of the claim on it.
      signals: passes signals on to it.
      seconds: that it has; infinity for all it needs.
      quiet: put away what it prints.
      keep_on: asked several times a second; once it says no, the training is ended.
    """
    args = [*job.args, f"--out={job.folder}", "--resume"]
    if seconds < math.inf:
        args.append(f"--time-limit={seconds:.0f}s")
    compiled = job.folder.parent / COMPILED
    return run_training(
        args,
        lock,
        job.log,
        compiled,
        signals,
        seconds=seconds,
        quiet=quiet,
        keep_on=keep_on,
    )


def plan(
    optimizers: Sequence[str], seeds: Sequence[int], options: Sequence[str], out: Path
) -> list[Job]:
    """All runs of a grid, seed by seed, checked before the first one begins.

    Args:
      optimizers: names, with options of their own as in ``swats:switch=local``.
      seeds: of each of them.
      options: of the training command, the same for all.
      out: the folder of the grid.

    Raises:
      UsageError: an option cannot be used, or a run that is there has other settings.
    """
    jobs = []
    for seed in seeds:
        for optimizer in optimizers:
            args = [*options, *_optimizer_args(optimizer), f"--seed={seed}"]
            folder = out / f"{optimizer.replace(':', '-')}-seed{seed}"
            job = Job(optimizer, parse([*args, "--out", str(folder)]), args, folder)
            job.check_settings()
            jobs.append(job)
    return jobs


def published_optimizers(dataset: str, model: str) -> list[str]:
    """Those with published hyperparameters for a data set and a model."""
    names = (dataset, model)
    return [n.optimizer for n in read_table() if (n.dataset, n.model) == names]


def choose_optimizers(
    names: Sequence[str], protocol: str | None, dataset: str, model: str
) -> list[str]:
    """Spells out ``all``: what the protocol is published for; without one, every name.

    Raises:
      UsageError: an optimizer is unknown, named twice, or not one of the protocol.
    """
    names = [part for name in names for part in name.split(",") if part]
    if names == ["all"]:
        if protocol == "swats":
            return ["swats:switch=local", "swats:switch=global", "adabound"]
        if protocol == "spherical":
            published = published_optimizers(dataset, model)
            if not published:
                raise UsageError(
                    f"--optimizers all: --protocol spherical is published for none with"
                    f" {model} on {dataset}; name them, or choose --protocol none"
                )
            return published
        return list(OPTIMIZERS)
    for name in names:
        check_name("--optimizers", name.split(":")[0], ["all", *OPTIMIZERS])
    if not names or "all" in names or len(set(names)) < len(names):
        raise UsageError(f"--optimizers: all, or names once each, got {names}")
    return names


def _optimizer_args(text: str) -> list[str]:
    """``swats:switch=local`` as options of the training command."""
    name, *options = text.split(":")
    if not all("=" in option for option in options):
        raise UsageError(f"--optimizers: NAME:OPTION=VALUE..., got {text!r}")
    pairs = [option.split("=", 1) for option in options]
    for option, _ in pairs:
        if flag(option) in (*DECIDED, *_SHARED):
            raise UsageError(
                f"--optimizers {text}: {flag(option)}: the grid decides it"
            )
    return [f"--optimizer={name}", *(f"{flag(n)}={value}" for n, value in pairs)]
