"""What makes a run survive: when it saves, how it goes on, and when it gives way."""

import time
from collections.abc import Mapping
from typing import Any

from experiments.checkpoints import Checkpoints
from experiments.config import Config, first_difference, to_json
from experiments.distributed import agree
from experiments.errors import CheckpointError, UsageError
from experiments.optimizers import flag
from experiments.periods import parse_period
from experiments.progress import say
from experiments.results import (
    FINISHED,
    NOT_FINITE,
    Run,
    UnreadableRunError,
    check_record,
    read_run,
)
from experiments.runs import CHECKPOINTS, CONFIG, RunFolder
from experiments.stopping import StopRequest
from experiments.trainer import Trainer


class Keeper:
    """Keeps one run: its metrics and its checkpoints.

    Attributes:
      lines: of the epochs that are done, as in ``metrics.jsonl``.
      resumed_at: the steps at which the run was taken up again.
      seconds: what saving took, as far as training had to wait for it.
    """

    def __init__(
        self, config: Config, folder: RunFolder, trainer: Trainer, stop: StopRequest
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self.resumed_at: list[int] = []
        self.seconds = 0.0
        self._options = to_json(config)
        self._folder, self._trainer, self._stop = folder, trainer, stop
        self._period = parse_period("--checkpoint-every", config.checkpoint_every)
        self._checkpoints = Checkpoints(folder.path / CHECKPOINTS)
        self._saved_at = time.monotonic()

    def take_up(self) -> bool:
        """Goes to where the run was saved last; returns false if it never was.

        Raises:
          UsageError: the checkpoint is of another run.
          CheckpointError: there is none that can be read.
        """
        if not agree(int(self._folder.path.exists())):
            return False
        self._folder.lock()
        arrays, _ = self._trainer.snapshot()
        found = self._checkpoints.restore(arrays, self._refuse, self._warn)
        if found is None:
            return False
        arrays, facts = found
        self._trainer.restore(arrays, facts["position"])
        self.lines = facts["lines"]
        self.resumed_at = [*facts["resumed_at"], self._trainer.step]
        self._folder.resume(self.lines)
        return True

    def prepare_for_the_limit(self) -> None:
        """Measures how long saving takes, so that a time limit leaves room for it."""
        arrays, _ = self._trainer.snapshot()
        # One may have to wait for another, and a busy disk is slower.
        self._stop.reserve += 3 * self._checkpoints.seconds_to_save(arrays)

    def pause(self, seconds: float) -> None:
        """Saves or stops if it is time to; called between steps.

        Args:
          seconds: until it will be called again.
        """
        period = self._period.seconds
        due = period is not None and time.monotonic() - self._saved_at >= period
        if self._stop.check(seconds, due):
            self.save()

    def record(self, metrics: dict[str, Any]) -> None:
        """Takes the line of an epoch."""
        self._folder.add_metrics(metrics)
        self.lines.append(metrics)

    def after_epoch(self, epoch: int) -> None:
        """Saves if it is time to.

        Raises:
          CheckpointError: the last checkpoint could not be written.
        """
        self._checkpoints.check()
        epochs = self._period.epochs
        if epochs is not None and epoch % epochs == 0:
            self.save()

    def save(self) -> None:
        """Begins to write a checkpoint.

        Raises:
          CheckpointError: the one before it could not be written, or the folder is
            gone: a run is not split in two.
        """
        began = time.monotonic()
        if agree(int(self._folder.is_gone())):
            raise CheckpointError(
                f"{self._folder.path}: its config.json is gone, with the folder or"
                " without; no checkpoint is written there"
            )
        arrays, position = self._trainer.snapshot()
        facts = {
            "config": self._options,
            "images": self._trainer.images,
            "position": position,
            "lines": self.lines,
            "resumed_at": self.resumed_at,
        }
        self._checkpoints.save(self._trainer.step, arrays, facts)
        self._saved_at = time.monotonic()
        self.seconds += self._saved_at - began

    def close(self, *, finished: bool) -> None:
        """Saves where the run stops, and waits until that is written.

        A finished run is saved if it has other checkpoints, or was to have some after
        so many epochs: its last one has the trained weights.
        """
        others = bool(self._period.epochs or self._checkpoints.steps())
        if not finished or agree(int(others)):
            self.save()
        self._checkpoints.wait()

    def let_go(self) -> None:
        """Waits for what is being written, whatever came of it."""
        self._checkpoints.close()

    @staticmethod
    def _warn(line: str) -> None:
        say(f"warning: {line}", stderr=True)

    def _refuse(self, facts: Mapping[str, Any]) -> None:
        where = f"the checkpoint in {self._folder.path}"
        check_same_run(self._options, facts["config"], where)
        if facts["images"] != self._trainer.images:
            raise UsageError(
                f"--resume: the data set has {self._trainer.images} images here and"
                f" {facts['images']} in {where}"
            )


def check_same_run(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], where: str
) -> None:
    """Raises a UsageError that names the first option in which two runs differ."""
    difference = first_difference(mine, theirs)
    if difference is not None:
        name, here, there = difference
        raise UsageError(
            f"--resume: {flag(name)} is {here} here and {there} in {where}"
        )


def how_it_ended(folder: RunFolder, config: Config) -> Run | None:
    """A run that needs no resuming; None for one that can go on.

    One that ended and is damaged can do so too, from its last checkpoint.

    Raises:
      UsageError: the run in the folder is another one, or damaged without a checkpoint.
    """
    record = folder.read_config()
    if record is None:
        return None
    try:
        check_record(record)
        check_same_run(to_json(config), record["config"], str(folder.path / CONFIG))
        if folder.read_summary().get("status") not in (FINISHED, NOT_FINITE):
            return None
        return read_run(folder.path)
    except UnreadableRunError as error:
        damaged = f"{folder.path}: damaged: {error}"
    if not any(path.name.isdigit() for path in (folder.path / CHECKPOINTS).glob("*")):
        raise UsageError(f"{damaged}; --overwrite begins the run anew")
    say(f"warning: {damaged}; goes on from its last checkpoint", stderr=True)
    return None
