"""A search kept in a storage of Optuna, shared by any number of workers.

Optuna is an extra: it is imported where it is first needed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UsageError
from experiments.search_space import Range, Space, grid_points

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

_NOTE, _REPEAT = "note", "repeat"
"""Attributes of a trial that ended without a result of its own: why."""


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
    """
    optuna = import_optuna()
    path = Path(place)
    if "://" not in place:
        if path.suffix not in (".db", ".sqlite", ".journal"):
            raise UsageError(
                f"--storage must be a file that ends in .db, .sqlite or .journal, or"
                f" the URL of a database, got {place!r}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".journal":
        backend = optuna.storages.journal.JournalFileBackend(place)
        yield optuna.storages.JournalStorage(backend)
        return
    url = place if "://" in place else f"sqlite:///{place}"
    try:
        storage = optuna.storages.RDBStorage(url)
    except Exception as error:  # of SQLAlchemy, a driver or Optuna: no common class
        raise UsageError(f"--storage {place}: {str(error).splitlines()[0]}") from None
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


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
          UsageError: the study has other runs or another space.
        """
        self._optuna = optuna = import_optuna()
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
        if trials is None:
            for point in grid_points(space):
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
