"""``--seeds``: several runs of one setting, one after another in one process."""

import statistics
import time
from collections.abc import Callable, Sequence

from experiments import errors
from experiments.compiling import compiling_once
from experiments.config import Config, of_each_seed
from experiments.distributed import is_primary
from experiments.errors import UsageError
from experiments.keeper import how_it_ended
from experiments.progress import say
from experiments.results import FINISHED, find_runs
from experiments.runs import CONFIG, RunFolder
from experiments.stopping import EXIT_CODES, StoppedRun, StopRequest

Train = Callable[[Config, StopRequest, float], int]
"""Does one run; returns its exit code."""


def train_each_seed(
    config: Config, stop: StopRequest, began: float, train: Train
) -> int:
    """Does the runs that ``--seeds`` asks for; what is compiled serves all of them.

    Each ends in the same bits as if it were run alone. A run that is stopped ends the
    work; one whose loss is not finite does not.

    Args:
      config: with ``seeds``.
      stop: says when to end before the end.
      began: when the command was given, on the clock of ``time.monotonic``.
      train: does one of them.

    Returns:
      The exit code: that of a run that was stopped, else that of one that was not
      finite, if any, else 0.

    Raises:
      UsageError: there is a run in the way; none has begun then.
    """
    runs = of_each_seed(config)
    _check_folders(runs)
    code = errors.EXIT_FINISHED
    to_begin = 0.0  # seconds until a run does its first step
    with compiling_once():
        for run in runs:
            try:
                stop.check(to_begin)
            except StoppedRun as stopped:
                say(f"{stopped.reason} before seed {run.seed} began", stderr=True)
                code = EXIT_CODES[stopped.reason]
                break
            stop.renew()
            ended = train(run, stop, began)
            if ended not in (errors.EXIT_FINISHED, errors.EXIT_NON_FINITE):
                code = ended
                break
            code = max(code, ended)
            if stop.begun_at is not None:  # else there was nothing left to do
                to_begin = stop.begun_at - began
            began = time.monotonic()
    if is_primary():
        _say_what_came_of(runs)
    return code


def _check_folders(runs: Sequence[Config]) -> None:
    """Raises the UsageError that a later run would end with."""
    for run in runs:
        assert run.out is not None
        if (run.out.parent / CONFIG).exists():
            raise UsageError(
                f"--out {run.out.parent}: is the folder of a run; choose another"
            )
        folder = RunFolder(run.out, run.overwrite, run.resume, writes=is_primary())
        if run.resume:
            how_it_ended(folder, run)


def _say_what_came_of(runs: Sequence[Config]) -> None:
    folders = [run.out for run in runs if run.out and (run.out / CONFIG).exists()]
    found, _ = find_runs(folders)  # a run that was stopped may be damaged as well
    finished = [run for run in found if run.state == FINISHED]
    accuracies = [run.accuracy for run in finished]
    line = f"{len(accuracies)} of {len(runs)} seeds finished"
    if accuracies:
        line += f": test accuracy {statistics.fmean(accuracies):.2f} %"
    if len(accuracies) > 1:
        line += f", standard deviation {statistics.stdev(accuracies):.2f}"
    say(line)
