"""A run step by step, for those who want to look at every step of it.

``experiments.trainer`` keeps the device busy and reads results late; this waits for
every step. It is what the learning-rate finder and the studies walk through a run with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.compiling import compile_ahead
from experiments.config import Config
from experiments.data import Dataset
from experiments.errors import UsageError
from experiments.feeds import EvaluationBatches, ResidentFeed
from experiments.models import MODELS
from experiments.steps import (
    Means,
    Tally,
    TrainState,
    init_state,
    make_evaluate,
    make_train_step,
)


class Loop:
    """A model, its data, and an optimizer, one step at a time.

    Attributes:
      graph: of the model, without arrays.
      state: parameters, statistics and optimizer state after the last step.
      done: steps done.
      steps_per_epoch: the last, incomplete batch is left out.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        build: Callable[[Any], optax.GradientTransformation],
    ) -> None:
        """Compiles the step.

        Args:
          config: model, batch size, seed, augmentation and type of a run.
          dataset: a data set in memory.
          build: makes the optimizer from the parameters' shapes.

        Raises:
          UsageError: the batch is larger than the data set.
        """
        if config.batch_size > len(dataset.train):
            raise UsageError(
                f"--batch-size must be at most {len(dataset.train)}, the training"
                f" images of {dataset.name}, got {config.batch_size}"
            )
        init_key, key = jax.random.split(jax.random.key(config.seed))
        model = partial(
            MODELS[config.model],
            channels=len(dataset.mean),
            num_classes=dataset.num_classes,
            dtype=jnp.dtype(config.dtype),
        )
        self.graph, optimizer, self.state = init_state(model, build, init_key)
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        augment = dataset.augment if config.augment else None
        self._feed = ResidentFeed(
            dataset.train, config.batch_size, config.seed, key, augment
        )
        self._batch_size = config.batch_size
        step = make_train_step(self.graph, optimizer, dataset, self._feed.pick)
        self._step = compile_ahead(
            step, self.state, Tally.zero(), self._feed.example(), donate=0
        )
        self._dataset, self._evaluation = dataset, None
        self.done = 0

    def step(self) -> Means:
        """Does a step, and waits for it; its loss and accuracy on the batch."""
        epoch, batch = divmod(self.done, self.steps_per_epoch)
        if batch == 0:
            self._feed.begin(epoch + 1, self.done)
        self.state, tally = self._step(self.state, Tally.zero(), self._feed.source())
        self.done += 1
        if int(tally.bad_step):
            return Means(float(tally.bad_loss), 0.0, 1)
        return tally.means(self._batch_size)

    def go_on(self, state: TrainState, done: int) -> None:
        """Goes to where another loop was after so many steps."""
        self.state, self.done = state, done
        epoch, batch = divmod(done, self.steps_per_epoch)
        if batch:
            self._feed.begin(epoch + 1, done)

    def test(self) -> Means:
        """Mean loss and accuracy over the test images."""
        if self._evaluation is None:
            batches = EvaluationBatches(self._dataset.test, 1000)
            evaluate = compile_ahead(
                make_evaluate(self.graph, self._dataset),
                self.state.params,
                self.state.stats,
                *batches.example(),
            )
            self._evaluation = batches, evaluate
        batches, evaluate = self._evaluation
        sums = [
            evaluate(self.state.params, self.state.stats, *batch) for batch in batches
        ]
        loss, correct = (sum(map(float, part)) for part in zip(*sums, strict=True))
        return Means(loss / len(batches), correct / len(batches), len(sums))
