"""Works through a grid of runs, optimizers by seeds, in one folder.

    python -m experiments.reproduce --dataset cifar10 --model resnet20 --seeds 0..4

It may be stopped, killed and started again at any time, and run as several processes
on one folder: what is complete is skipped, what is not is resumed, and no two
processes work on one run. A run whose loss is not finite is recorded as that and not
repeated; one that breaks is tried again at the next start, its last words are in
logs/. Runs of one setting compile once: the compiled program is kept in .compiled/.

Options that are not listed go to every run: see python -m experiments.train --help.

Exit codes: 0 every run is finished; 1 a run broke or is damaged; 2 an option cannot
be used; 3 every run ended, some of them not finite; 4 SIGTERM; 5 runs are left: time
is up, or another process works on them; 130 Ctrl-C. After all but 0, 2 and 3 the same
command goes on.
"""

import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments import errors
from experiments.commands import run_command
from experiments.data import dataset_label
from experiments.errors import UsageError
from experiments.grid import (
    DAMAGED,
    DECIDED,
    NEW,
    STOPPED,
    Job,
    choose_optimizers,
    plan,
    published_optimizers,
    run_job,
)
from experiments.launch import LOCKS, TIME_IS_UP, WORTH_STARTING, Signals, claim
from experiments.results import (
    COMMANDS,
    FINISHED,
    INCOMPLETE,
    NOT_FINITE,
    read_commands,
)
from experiments.runs import CONFIG
from experiments.values import make_folder, parse_limit, parse_seeds


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.reproduce``."""

    dataset: str = "digits"
    """Data set."""
    model: str = "small_resnet"
    """Model."""
    optimizers: tuple[str, ...] = ("all",)
    """Names, or all: with a protocol, those it is published for; without, every one.
    Options of its own follow a name, as in swats:switch=local."""
    seeds: str = "0..4"
    """Seeds, as 0..4 or 0,2,5."""
    protocol: Literal["auto", "none", "spherical", "swats"] = "auto"
    """Of the runs; auto is spherical where it is published for the data set and the
    model, else none."""
    time_limit: Annotated[str | None, tyro.conf.arg(metavar="TIME")] = None
    """Stop in time for this, as 90s, 9m or 1.5h, and keep what is done."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the grid, by default runs/DATASET-MODEL."""
    list: bool = False
    """Show what is done and what is left, and run nothing."""


@dataclass
class Work:
    """What this process does of a grid.

    Attributes:
      jobs: the grid.
      deadline: on the monotonic clock; infinity without a time limit.
      signals: tells when to stop.
      broken: what broke here, with its message: not begun again here.
    """

    jobs: Sequence[Job]
    deadline: float
    signals: Signals
    broken: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Begins or resumes runs until none is free, or it is time to stop."""
        began_one = True
        while began_one:  # another process may have given runs back meanwhile
            began_one = False
            for job in self.jobs:
                if self.signals.received:
                    return
                if self._left() < WORTH_STARTING:
                    if any(map(_is_left, self.jobs)):
                        _say(TIME_IS_UP)
                    return
                if job.name not in self.broken and _is_left(job):
                    with claim(job.lock) as lock:
                        if lock is not None and _is_left(job):
                            began_one = True
                            self._run(job, lock)

    def _run(self, job: Job, lock: int) -> None:
        """Does one run, and takes down how it ended."""
        state, detail = job.state()
        position = f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job.name}"
        begins = "begins" if state == NEW else f"goes on after {detail}"
        _say(f"{position}: {begins}")
        outcome = run_job(job, lock, self.signals, self._left())
        if outcome.code == errors.EXIT_USAGE:
            raise UsageError(outcome.message.removeprefix("error: "))
        if outcome.code == errors.EXIT_OUT_OF_TIME:
            self.deadline = -math.inf
        state, detail = job.state()
        stopped = outcome.told or outcome.code in STOPPED
        if state not in (FINISHED, NOT_FINITE) and not stopped:
            self.broken[job.name] = f"exit code {outcome.code}: {outcome.message}"
            state = "broke"
        _say(f"{position}: {state}; {sum(map(_is_left, self.jobs))} left")

    def _left(self) -> float:
        return self.deadline - time.monotonic()


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options, rest = tyro.cli(
        Options,
        prog="python -m experiments.reproduce",
        description=__doc__,
        args=args,
        return_unknown_args=True,
    )
    return run_command(lambda: reproduce(options, rest))


def reproduce(options: Options, rest: Sequence[str]) -> int:
    """Works through the grid; ``rest`` goes to every run. Returns the exit code.

    Raises:
      UsageError: an option cannot be used.
    """
    deadline = time.monotonic() + parse_limit("--time-limit", options.time_limit)
    out = options.out or Path("runs") / "-".join(
        (dataset_label(options.dataset), options.model)
    )
    if (out / CONFIG).exists():
        raise UsageError(f"--out {out}: is the folder of a run; choose another")
    jobs = plan_runs(options, rest, out)
    _say(f"{len(jobs)} runs in {out}: {_counts(jobs)}")
    with Signals() as signals:
        work = Work(jobs, deadline, signals)
        if not options.list:
            make_folder("--out", out)
            _note_command(options, rest, out)
            work.run()
    _say("\n" + _overview(jobs, work.broken))
    for name, message in work.broken.items():
        _say(f"broke: {name}: {message}")
    for job in jobs:
        state, detail = job.state()
        if state in (NOT_FINITE, DAMAGED):
            _say(f"{state}: {job.name}: {detail}")
    _say(f"report: python -m experiments.report {shlex.quote(str(out))}")
    return _exit_code(jobs, work)


def plan_runs(options: Options, rest: Sequence[str], out: Path) -> list[Job]:
    """All runs that the options stand for; ``rest`` goes to every run.

    Raises:
      UsageError: an option cannot be used.
    """
    for argument in rest:
        name = argument.split("=")[0].replace("_", "-")
        if name in DECIDED:
            raise UsageError(f"{name}: the grid decides it; see --optimizers, --seeds")
    dataset, model, protocol = options.dataset, options.model, options.protocol
    if protocol == "auto":
        protocol = "spherical" if published_optimizers(dataset, model) else "none"
    optimizers = choose_optimizers(options.optimizers, protocol, dataset, model)
    shared = [f"--dataset={dataset}", f"--model={model}"]
    if protocol != "none":
        shared.append(f"--protocol={protocol}")
    return plan(optimizers, parse_seeds(options.seeds), [*shared, *rest], out)


def _is_left(job: Job) -> bool:
    return job.state()[0] in (NEW, INCOMPLETE)


def _counts(jobs: Sequence[Job]) -> str:
    counts = Counter(job.state()[0] for job in jobs)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _overview(jobs: Sequence[Job], broken: Mapping[str, str]) -> str:
    """A table of optimizers by seeds."""
    seeds = list(dict.fromkeys(job.config.seed for job in jobs))
    cells = {(j.optimizer, j.config.seed): _cell(j, broken) for j in jobs}
    optimizers = list(dict.fromkeys(job.optimizer for job in jobs))
    wide = max(map(len, ["optimizer", *optimizers]))
    lines = [
        " ".join(["optimizer".ljust(wide), *(f"{f'seed {s}':>10}" for s in seeds)])
    ]
    for optimizer in optimizers:
        row = [f"{cells[optimizer, seed]:>10}" for seed in seeds]
        lines.append(" ".join([optimizer.ljust(wide), *row]))
    return "\n".join(lines)


def _cell(job: Job, broken: Mapping[str, str]) -> str:
    state, detail = job.state()
    if state in (NEW, INCOMPLETE):
        if job.lock.exists():
            with claim(job.lock) as lock:
                if lock is None:
                    return "running"
        if job.name in broken:
            return "broke"
        return "-" if state == NEW else detail.split()[0] + f"/{job.config.epochs}"
    return state


def _note_command(options: Options, rest: Sequence[str], out: Path) -> None:
    """Leaves the command beside the runs, for the report: each wording once."""
    command = ["python", "-m", "experiments.reproduce", "--dataset", options.dataset]
    command += ["--model", options.model, "--optimizers", *options.optimizers]
    command += ["--seeds", options.seeds]
    if options.protocol != "auto":
        command += ["--protocol", options.protocol]
    line = shlex.join([*command, *rest, "--out", str(out)])
    with claim(out / LOCKS / COMMANDS, wait=True):
        lines = read_commands(out)
        if line not in lines:
            (out / COMMANDS).write_text("\n".join([*lines, line]) + "\n")


def _exit_code(jobs: Sequence[Job], work: Work) -> int:
    states = {job.state()[0] for job in jobs}
    if work.signals.received:
        return work.signals.exit_code()
    if work.broken or DAMAGED in states:
        return errors.EXIT_FAILED
    if states & {NEW, INCOMPLETE}:
        return errors.EXIT_OUT_OF_TIME
    return errors.EXIT_NON_FINITE if NOT_FINITE in states else errors.EXIT_FINISHED


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
