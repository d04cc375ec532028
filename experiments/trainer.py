"""One run in memory: compiled functions, data on the device, and the state."""

import time
from collections import deque
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import Config
from experiments.data import Dataset, Split
from experiments.errors import UsageError
from experiments.models import MODELS, label_spheres
from experiments.optimizers import make_optimizer
from experiments.schedules import make_schedule
from experiments.steps import (
    Batches,
    Means,
    Tally,
    TrainState,
    compile_ahead,
    finite_leaves,
    init_state,
    make_evaluate,
    make_train_step,
)
from experiments.stopping import StopRequest
from spherical_optax.labels import leaves_with_paths

# So many steps may be on their way before the tally of the oldest is read: the device
# never waits for Python, and Python never runs far ahead of the device.
_STEPS_IN_FLIGHT = 4
_EVALUATION_BATCH = 1000


class NonFiniteError(Exception):
    """The loss or a gradient was not finite; the message says when and where."""


class InterruptedRun(Exception):
    """The run was asked to stop."""


class Trainer:
    """Trains a model on a data set as a configuration says.

    Attributes:
      state: parameters, statistics and optimizer state after the last step.
      epoch: the epoch that was begun last; 0 before the first.
      steps_per_epoch: the last, incomplete batch is left out.
      compile_seconds: what tracing and compiling took.
    """

    state: TrainState

    def __init__(self, config: Config, dataset: Dataset) -> None:
        if config.batch_size > len(dataset.train):
            raise UsageError(
                f"--batch-size must be at most {len(dataset.train)}, the training"
                f" images of {dataset.name}, got {config.batch_size}"
            )
        self._config, self._dataset = config, dataset
        self.batch_size = config.batch_size
        self.epoch, self._tally = 0, Tally.zero()
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        self.schedule = make_schedule(
            config.schedule,
            config.epochs * self.steps_per_epoch,
            config.milestones,
            config.milestone_factor,
        )
        began = time.perf_counter()
        self._build()
        self.compile_seconds = time.perf_counter() - began

    def train_epoch(
        self,
        epoch: int,
        on_batch: Callable[[int, Means, float], None],
        stop: StopRequest,
    ) -> tuple[Means, float]:
        """Does the steps of an epoch, counted from 1.

        Args:
          epoch: decides the order of the images, with the seed.
          on_batch: told the epoch, its means so far and images a second, after
            each batch.
          stop: looked at before each step.

        Returns:
          The means over the epoch, and its seconds.

        Raises:
          NonFiniteError: the loss, a gradient or, in the end, a weight was not finite.
          InterruptedRun: a stop was requested.
        """
        self.epoch, self._tally = epoch, Tally.zero()
        self._batches = self._batches._replace(order=self._order(epoch))
        in_flight: deque[Tally] = deque()
        began = time.perf_counter()

        def finish_oldest() -> Means:
            means = self._read(in_flight.popleft())
            seconds = time.perf_counter() - began
            on_batch(epoch, means, means.batches * self.batch_size / seconds)
            return means

        for _ in range(self.steps_per_epoch):
            if stop.requested:
                raise InterruptedRun
            self.state, self._tally = self._step(self.state, self._tally, self._batches)
            in_flight.append(self._tally)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                finish_oldest()
        while len(in_flight) > 1:
            finish_oldest()
        means, seconds = finish_oldest(), time.perf_counter() - began
        self._check_weights()
        return means, seconds

    def evaluate(self, stop: StopRequest) -> Means:
        """Mean loss and accuracy over the test images.

        Raises:
          InterruptedRun: a stop was requested.
        """
        losses, answers = 0.0, 0.0
        for batch in self._test_batches:
            if stop.requested:
                raise InterruptedRun
            loss, correct = self._evaluate(self.state.params, self.state.stats, *batch)
            losses, answers = losses + float(loss), answers + float(correct)
        count = len(self._dataset.test)
        return Means(losses / count, answers / count, len(self._test_batches))

    def unfinished(self) -> Means:
        """The means of an epoch that was broken off, up to where all was finite."""
        return self._tally.means(self.batch_size)

    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        first = self._config.hyperparameters.learning_rate
        assert first is not None  # completed when the command line was read
        return first * float(jnp.asarray(self.schedule(int(self.state.step) - 1)))

    def parameter_count(self) -> int:
        """Number of trained weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def _build(self) -> None:
        config, dataset = self._config, self._dataset
        init_key, augment_key = jax.random.split(jax.random.key(config.seed))
        graph, optimizer, self.state = init_state(
            partial(
                MODELS[config.model],
                channels=dataset.train.images.shape[-1],
                num_classes=dataset.num_classes,
            ),
            partial(
                make_optimizer,
                config.optimizer,
                config.hyperparameters.given(),
                self.schedule,
                label_spheres,
            ),
            init_key,
        )
        self._batches = Batches(
            *jax.device_put((dataset.train.images, dataset.train.labels)),
            order=self._order(epoch=1),
            key=augment_key,
        )
        self._test_batches = _padded_batches(dataset.test, _EVALUATION_BATCH)
        self._step = compile_ahead(
            make_train_step(graph, optimizer, dataset, config.augment),
            self.state,
            Tally.zero(),
            self._batches,
            donate=0,
        )
        self._finite_leaves = compile_ahead(finite_leaves, self.state.params)
        self._evaluate = compile_ahead(
            make_evaluate(graph, dataset),
            self.state.params,
            self.state.stats,
            *self._test_batches[0],
        )

    def _check_weights(self) -> None:
        """An error if the last step left a weight that is not finite.

        Only after an epoch: within it the next gradient tells.
        """
        finite = np.asarray(self._finite_leaves(self.state.params))
        if not finite.all():
            leaf = self._path(int(finite.argmin()))
            raise NonFiniteError(
                f"not finite after epoch {self.epoch}, step {self.state.step}: first"
                f" leaf whose weights are not finite: {leaf}"
            )

    def _path(self, leaf: int) -> str:
        """The path of a parameter by its place in the tree."""
        return leaves_with_paths(self.state.params)[leaf][0]

    def _order(self, epoch: int) -> jax.Array:
        """The images of each step: a function of the seed and the epoch alone."""
        shuffle = np.random.default_rng((self._config.seed, epoch))
        order = shuffle.permutation(len(self._dataset.train)).astype(np.int32)
        used = self.steps_per_epoch * self.batch_size
        return jax.device_put(order[:used].reshape(self.steps_per_epoch, -1))

    def _read(self, tally: Tally) -> Means:
        """Waits for a tally; an error if it has met a loss that was not finite."""
        tally = jax.device_get(tally)
        if tally.bad_step:
            steps = self.steps_per_epoch
            batch = tally.bad_step - (self.epoch - 1) * steps
            where = "every gradient is finite"
            if tally.bad_leaf >= 0:
                leaf = self._path(int(tally.bad_leaf))
                where = f"first leaf whose gradient is not finite: {leaf}"
            raise NonFiniteError(
                f"not finite at epoch {self.epoch}, step {tally.bad_step} (batch {batch}"
                f" of {steps}): loss {tally.bad_loss:.6g}; {where}"
            )
        return tally.means(self.batch_size)


def _padded_batches(split: Split, size: int) -> list[tuple[jax.Array, ...]]:
    """Batches of one size, for one compilation; the padding has weight 0."""
    size = min(size, len(split))
    batches = []
    for start in range(0, len(split), size):
        images = split.images[start : start + size]
        labels = split.labels[start : start + size]
        missing = size - len(labels)
        weights = np.arange(size) < len(labels)
        batches.append(
            jax.device_put(
                (
                    np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
                    np.pad(labels, (0, missing)),
                    weights.astype(np.float32),
                )
            )
        )
    return batches
