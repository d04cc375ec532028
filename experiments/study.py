"""A search kept in a storage of Optuna, shared by any number of workers.

Optuna is an extra: it is imported where it is first needed.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UsageError
from experiments.search_space import Range, Space, grid_points
from experiments.values import make_folder

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

_NOTE, _REPEAT = "note", "repeat"
"""Attributes of a trial that ended without a result of its own: why."""
_ENTRY = b'{"op_code":'
"""What every line of a journal begins with."""


def import_optuna() -> Any:
    """Optuna, or an error that says how to get it."""
    try:
        import optuna
    except ImportError:
        raise UsageError(
            "a search needs Optuna: pip install 'spherical-optax[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def open_storage(place: str) -> Iterator["optuna.storages.BaseStorage"]:
    """Opens a storage; it is made where it is missing.

    Args:
      place: the URL of a database, or a file: SQLite if it ends in .db or .sqlite, a
        journal if it ends in .journal.

    Raises:
      UsageError: it is neither, or cannot be opened.
      OSError: it could not be written later.
    """
    optuna = import_optuna()
    path = Path(place)
    if "://" not in place:
        if path.suffix not in (".db", ".sqlite", ".journal"):
            raise UsageError(
                f"--storage must be a file that ends in .db, .sqlite or .journal, or"
                f" the URL of a database, got {place!r}"
            )
        make_folder(f"--storage {place}:", path.parent)
    if path.suffix == ".journal":
        yield _open_journal(place)
        return
    if "://" not in place and not {"?", "#", "%"}.isdisjoint(place):
        raise UsageError(
            f"--storage: the path of a .db or .sqlite file cannot have ?, # or %, got"
            f" {place!r}; that of a .journal file can"
        )
    url = place if "://" in place else f"sqlite:///{place}"
    try:
        storage = optuna.storages.RDBStorage(url)
    except Exception as error:  # of SQLAlchemy, a driver or Optuna: no common class
        raise UsageError(f"--storage {place}: {_reason(error)}") from None
    try:
        yield storage
    except optuna.exceptions.StorageInternalError as error:
        raise OSError(f"--storage {place}: {_reason(error)}") from None
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _reason(error: Exception) -> str:
    """A line; of an error in Optuna, what the database said."""
    return str(error.__cause__ or error).partition("\n")[0]


def _open_journal(place: str) -> "optuna.storages.JournalStorage":
    try:
        journal = _Journal(place)
        *lines, _ = Path(place).read_bytes().split(b"\n")
        for line in lines:
            json.loads(line)  # Optuna would let the last one pass
        storage = import_optuna().storages.JournalStorage(journal)
        journal.acquire()
        journal.release()
    except OSError as error:
        raise UsageError(f"--storage {place}: {error.strerror}") from None
    except Exception:  # whatever Optuna makes of lines that it did not write
        raise UsageError(f"--storage {place}: damaged, or not a journal") from None
    return storage


class _Journal:
    """Optuna's journal in a file, and the lock that it is written under.

    A full disk, or a kill while it is written, leaves half a line at its end. Whoever
    takes the lock cuts that off: an entry behind it could never be read.
    """

    def __init__(self, place: str) -> None:
        journal = import_optuna().storages.journal
        self._place = place
        # The lock is a symbolic link to this path. Were it relative, the link might
        # lead nowhere, and Optuna waits forever for such a lock if it is left behind.
        self._path = path = os.path.abspath(place)
        self._lock = journal.JournalFileSymlinkLock(path)
        self._backend = journal.JournalFileBackend(path, self)
        self.read_logs = self._backend.read_logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes entries; an OSError that names the file if they cannot be."""
        try:
            self._backend.append_logs(logs)
        except OSError as error:
            raise OSError(f"--storage {self._place}: {error.strerror}") from None

    def acquire(self) -> bool:
        """Waits for the lock; the file ends with a whole line then."""
        self._lock.acquire()
        try:
            self._cut()
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def _cut(self) -> None:
        with open(self._path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() in (b"", b"\n"):
                return
            file.seek(0)
            whole, newline, half = file.read().rpartition(b"\n")
            if half[: len(_ENTRY)] != _ENTRY[: len(half)]:
                raise UsageError(f"--storage {self._place}: damaged, or not a journal")
            file.truncate(len(whole) + len(newline))


class Search:
    """A study: which settings to try, and what came of them.

    Its methods may be called by one worker at a time; that is for the caller to see to.
    """

    def __init__(
        self,
        storage: "optuna.storages.BaseStorage",
        name: str,
        space: Space,
        runs: Sequence[str],
        *,
        trials: int | None,
        warmup: int,
    ) -> None:
        """Begins the study or joins it.

        Args:
          storage: where it is kept.
          name: of the study.
          space: what to choose from.
          runs: the options that all runs share; a study has one kind of runs.
          trials: how many to do in all, by TPE; None for every point of the grid.
          warmup: epochs that no run is stopped before.

        Raises:
          UsageError: the study has other runs or another space, or the space no grid.
        """
        self._optuna = optuna = import_optuna()
        points = list(grid_points(space)) if trials is None else []
        self._trials = trials
        self._distributions = {n: _distribution(part) for n, part in space.items()}
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(5, n_warmup_steps=warmup),
        )
        said = {"runs": list(runs), "space": repr(sorted(space.items()))}
        for key, value in said.items():
            there = self._study.user_attrs.setdefault(key, value)
            if there != value:
                raise UsageError(
                    f"--study {name}: was begun with other {key}: {there}; choose"
                    " another name"
                )
            self._study.set_user_attr(key, value)
        for point in points:
            self._study.enqueue_trial(point, skip_if_exists=True)

    def take(self, is_dead: Callable[[dict[str, Any]], bool]) -> "Trial | None":
        """The next setting to try; None when there is none left.

        Args:
          is_dead: whether no worker is left on a trial that is running; it is begun
            again then.
        """
        states = self._optuna.trial.TrialState
        for trial in self._get(states.RUNNING):
            # Parameters are set under the lock: where some are missing while this
            # worker has it, the one that was at it is gone.
            chosen = len(trial.params) == len(self._distributions)
            if not chosen or is_dead(trial.params):
                # In this order: killed in between, a point comes twice, which costs
                # little, and is never lost.
                self._study.enqueue_trial(self._point(trial))
                self._study.tell(trial.number, state=states.FAIL)
        all_begun = self._trials is None or self._begun() >= self._trials
        if all_begun and not self._get(states.WAITING):
            return None
        # Another seed for each trial: workers must not draw the same settings.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=len(self._study.trials), n_startup_trials=10, constant_liar=True
        )
        return self._study.ask(self._distributions)

    def finish(self, trial: "Trial", value: float) -> None:
        """A trial has its result."""
        self._study.tell(trial, value)

    def prune(self, trial: "Trial", note: str) -> None:
        """A trial was given up as one of the worse."""
        trial.set_user_attr(_NOTE, note)
        self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, trial: "Trial", note: str) -> None:
        """A trial has no result, for a reason that has nothing to do with it."""
        trial.set_user_attr(_NOTE, note)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def repeat(self, trial: "Trial") -> None:
        """A trial has the setting of one that another worker is at."""
        trial.set_user_attr(_REPEAT, True)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def counts(self) -> dict[str, int]:
        """How many trials there are of each kind."""
        states = self._optuna.trial.TrialState
        kinds = {
            "complete": self._get(states.COMPLETE),
            "pruned": self._get(states.PRUNED),
            "failed": self._ended_with(_NOTE),
            "repeated": self._ended_with(_REPEAT),
            "running": self._get(states.RUNNING),
            "waiting": self._get(states.WAITING),
        }
        return {kind: len(trials) for kind, trials in kinds.items() if trials}

    def best(self) -> "FrozenTrial | None":
        """The complete trial with the highest value."""
        complete = self._get(self._optuna.trial.TrialState.COMPLETE)
        return max(complete, key=lambda trial: trial.value or 0.0, default=None)

    def left(self) -> int:
        """Trials that are yet to begin, where their number is given."""
        return 0 if self._trials is None else max(0, self._trials - self._begun())

    def _begun(self) -> int:
        """Trials that count against the number to do."""
        states = self._optuna.trial.TrialState
        counted = (states.COMPLETE, states.PRUNED, states.RUNNING)
        ended = [*self._ended_with(_NOTE), *self._ended_with(_REPEAT)]
        return len(self._get(*counted)) + len(ended)

    def _ended_with(self, attribute: str) -> list["FrozenTrial"]:
        """Those that ended for good without a result, and were not begun again."""
        failed = self._get(self._optuna.trial.TrialState.FAIL)
        return [trial for trial in failed if attribute in trial.user_attrs]

    @staticmethod
    def _point(trial: "FrozenTrial") -> dict[str, Any]:
        """What was chosen for a trial, or is to be chosen as it was enqueued."""
        return {**trial.system_attrs.get("fixed_params", {}), **trial.params}

    def _get(self, *states: Any) -> list["FrozenTrial"]:
        return self._study.get_trials(deepcopy=False, states=states)


def _distribution(part: Any) -> "BaseDistribution":
    optuna = import_optuna()
    if isinstance(part, Range):
        return optuna.distributions.FloatDistribution(part.low, part.high, log=part.log)
    return optuna.distributions.CategoricalDistribution(part.values)
