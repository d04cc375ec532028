"""Searches for the best hyperparameters of an optimizer.

    python -m experiments.sweep --optimizer adamsrt --preset spherical
    python -m experiments.sweep --sampler tpe --search learning_rate=1e-4..1e-1

The search is kept in a storage of Optuna: it may be stopped, killed and started again
at any time, and the same command, started several times, makes several workers. A run
that a worker left behind is resumed by the next one. Runs whose accuracy after an
epoch is below the median of the others are given up (--no-prune keeps them).

A setting is judged by the validation accuracy of its best epoch where its runs have a
validation split, else by the test accuracy of the last epoch: fit for a comparison of
settings, and no estimate of what the best one reaches on new images.

Options that are not listed go to every run: see python -m experiments.train --help.

Exit codes: 0 the search is complete; 1 runs broke; 2 an option cannot be used; 4
SIGTERM; 5 settings are left: time is up, or other workers are at them; 130 Ctrl-C.
After 4, 5 and 130 the same command goes on.
"""

import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments import errors
from experiments.commands import run_command
from experiments.config import parse
from experiments.data import dataset_label
from experiments.errors import UsageError
from experiments.grid import NEW, STOPPED, Job, run_job
from experiments.launch import LOCKS, TIME_IS_UP, WORTH_STARTING, Signals, claim
from experiments.optimizers import flag
from experiments.results import (
    FINISHED,
    INCOMPLETE,
    NOT_FINITE,
    Run,
    UnreadableRunError,
    is_number,
    read_run,
)
from experiments.search_space import (
    Space,
    edge_points,
    parse_space,
    published_space,
)
from experiments.study import Search, open_storage
from experiments.values import make_folder, parse_limit

if TYPE_CHECKING:
    from optuna.trial import Trial

_OURS = ("--out", "--overwrite", "--resume", "--config", "--time-limit", "--seeds")


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.sweep``."""

    dataset: str = "digits"
    """Data set."""
    model: str = "small_resnet"
    """Model."""
    optimizer: str = "adamsrt"
    """Optimizer whose hyperparameters are searched."""
    preset: Literal["none", "spherical"] = "none"
    """spherical: the published grid of weight decays and betas."""
    search: tuple[str, ...] = ()
    """What to search besides: weight_decay=0,1e-4,5e-4 for choices,
    learning_rate=1e-4..1e-1 for a range (logarithmic above 0)."""
    sampler: Literal["grid", "tpe"] = "grid"
    """Every combination of choices, or Optuna's tree-structured Parzen estimator."""
    trials: int = 30
    """Settings to try with --sampler tpe, by all workers together."""
    prune: bool = True
    """Give runs up that are below the median of the others."""
    storage: str = "runs/sweep.db"
    """File that ends in .db, .sqlite or .journal, or the URL of a database."""
    study: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Name in the storage, by default DATASET-MODEL-OPTIMIZER."""
    time_limit: Annotated[str | None, tyro.conf.arg(metavar="TIME")] = None
    """Stop in time for this, as 90s, 9m or 1.5h, and keep what is done."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the runs, by default runs/sweep-STUDY; workers share it."""


@dataclass
class Worker:
    """One of the processes of a search.

    Attributes:
      search: the study.
      options: what all runs share, as options of the training command.
      out: folder of the runs.
      prune: whether to give runs up.
      deadline: on the monotonic clock.
      signals: tells when to stop.
    """

    search: Search
    options: Sequence[str]
    out: Path
    prune: bool
    deadline: float
    signals: Signals
    _reported: int = field(default=0, init=False)
    _pruned: str = field(default="", init=False)

    def run(self) -> None:
        """Tries settings until none is left, or it is time to stop."""
        while not (self.signals.received or self.is_out_of_time()):
            with ExitStack() as held:
                with claim(self.out / LOCKS / "study", wait=True):
                    trial = self.search.take(self._is_dead)
                    if trial is None:
                        return
                    try:
                        job = self.job(trial.params)
                    except UsageError as error:
                        self.search.fail(trial, str(error))
                        _say(f"trial {trial.number}: {error}")
                        continue
                    lock = held.enter_context(claim(job.lock))
                    if lock is None:
                        self.search.repeat(trial)
                        continue
                self._try(trial, job, lock)

    def is_out_of_time(self) -> bool:
        """Whether too little is left of the time limit to begin a run."""
        return self._left() < WORTH_STARTING

    def job(self, params: dict[str, Any]) -> Job:
        """The run of a setting; two trials of one setting share it.

        Raises:
          UsageError: there can be none.
        """
        name = "-".join(f"{option}={value}" for option, value in params.items())
        args = _args(self.options, params)
        folder = self.out / name
        try:
            config = parse([*args, "--out", str(folder)])
        except SystemExit:  # tyro has said why
            raise UsageError(f"{name}: not a setting that can be run") from None
        return Job(name, config, args, folder)

    def _is_dead(self, params: dict[str, Any]) -> bool:
        try:
            job = self.job(params)
        except UsageError:  # no worker is at what cannot be run
            return True
        with claim(job.lock) as lock:
            return lock is not None

    def _try(self, trial: "Trial", job: Job, lock: int) -> None:
        """Trains with a setting, and tells the study what came of it."""
        _say(f"trial {trial.number}: {job.optimizer}")
        self._reported, self._pruned = 0, ""
        job.check_settings()
        outcome = None
        if job.state()[0] in (NEW, INCOMPLETE):
            outcome = run_job(
                job,
                lock,
                self.signals,
                self._left(),
                quiet=True,
                keep_on=lambda: self._report(trial, job),
            )
            if outcome.code == errors.EXIT_OUT_OF_TIME:
                self.deadline = -math.inf
        self._report(trial, job)
        state, detail = job.state()
        if state == FINISHED:
            value = judge(read_run(job.folder))
            self.search.finish(trial, value)
            _say(f"trial {trial.number}: {value:.2f}")
        elif state == NOT_FINITE or self._pruned:
            note = detail if state == NOT_FINITE else self._pruned
            self.search.prune(trial, note)
            _say(f"trial {trial.number}: given up, {note}")
        elif outcome is None:
            self.search.fail(trial, detail)
            _say(f"trial {trial.number}: {detail}")
        elif not outcome.told and outcome.code not in STOPPED:
            note = f"exit code {outcome.code}: {outcome.message}"
            self.search.fail(trial, note)
            if outcome.code == errors.EXIT_USAGE:
                raise UsageError(outcome.message.removeprefix("error: "))
            _say(f"trial {trial.number}: broke, {note}")
        # Else it was stopped, and stays "running" until a worker takes it up again.

    def _report(self, trial: "Trial", job: Job) -> bool:
        """Tells the study of new epochs; whether the run is worth going on with."""
        try:
            lines = read_run(job.folder).lines
        except UnreadableRunError:
            return True  # it has not begun
        for line in lines[self._reported :]:
            value = line.get("validation_accuracy", line["test_accuracy"])
            if is_number(value) and not self._pruned:
                trial.report(100 * value, line["epoch"])
                if self.prune and trial.should_prune():
                    self._pruned = f"below the median after epoch {line['epoch']}"
        self._reported = len(lines)
        return not self._pruned

    def _left(self) -> float:
        return self.deadline - time.monotonic()


def judge(run: Run) -> float:
    """What a finished run is compared by, in percent."""
    if run.validated:
        return 100 * run.selected["validation_accuracy"]
    return run.accuracy


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options, rest = tyro.cli(
        Options,
        prog="python -m experiments.sweep",
        description=__doc__,
        args=args,
        return_unknown_args=True,
    )
    return run_command(lambda: sweep(options, rest))


def sweep(options: Options, rest: Sequence[str]) -> int:
    """Searches; ``rest`` goes to every run. Returns the exit code.

    Raises:
      UsageError: an option cannot be used.
    """
    deadline = time.monotonic() + parse_limit("--time-limit", options.time_limit)
    space = _space(options, rest)
    shared = [f"--dataset={options.dataset}", f"--model={options.model}"]
    shared += [f"--optimizer={options.optimizer}", *rest]
    # Before a study is begun, which goes on with the same space alone.
    config, *_ = [parse(_args(shared, point)) for point in edge_points(space)]
    if options.trials < 1:
        raise UsageError(f"--trials must be at least 1, got {options.trials}")
    name = options.study or "-".join(
        (dataset_label(config.dataset), config.model, config.optimizer)
    )
    out = options.out or Path("runs") / f"sweep-{name}"
    make_folder("--out", out)
    with ExitStack() as held, Signals() as signals:
        with claim(out / LOCKS / "study", wait=True):
            # Of several workers one alone makes the tables of a new database.
            storage = held.enter_context(open_storage(options.storage))
            search = Search(
                storage,
                name,
                space,
                shared,
                trials=options.trials if options.sampler == "tpe" else None,
                warmup=config.epochs // 3,
            )
        worker = Worker(search, shared, out, options.prune, deadline, signals)
        worker.run()
        return _conclude(search, worker)


def _space(options: Options, rest: Sequence[str]) -> Space:
    space = dict(parse_space(options.optimizer, options.search))
    if options.preset == "spherical":
        space = {**published_space(options.optimizer), **space}
    if not space:
        raise UsageError("nothing to search: give --preset spherical or --search")
    for argument in rest:
        name = argument.split("=")[0].replace("_", "-")
        if name in _OURS or name in map(flag, space):
            raise UsageError(f"{name}: the search decides it")
    return space


def _args(shared: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Options of the training command for a setting."""
    return [*shared, *(f"{flag(name)}={value}" for name, value in params.items())]


def _conclude(search: Search, worker: Worker) -> int:
    """Says what was found; returns the exit code."""
    counts, best = search.counts(), search.best()
    if search.left():
        counts["not begun"] = search.left()
    _say(", ".join(f"{n} {kind}" for kind, n in counts.items()))
    if best:
        job = worker.job(best.params)
        split = "validation" if job.config.validation_fraction else "test"
        _say(f"best {split} accuracy {best.value:.2f} %: trial {best.number}")
        _say(shlex.join(["python", "-m", "experiments.train", *job.args]))
    if worker.signals.received:
        return worker.signals.exit_code()
    if counts.get("failed"):
        return errors.EXIT_FAILED
    if not {"waiting", "running", "not begun"}.isdisjoint(counts):
        if worker.is_out_of_time():
            _say(TIME_IS_UP)
        return errors.EXIT_OUT_OF_TIME
    return errors.EXIT_FINISHED


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
