"""One run in memory: compiled functions, data on the device, and the state."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spherical_optax as so
from experiments.compiling import compile_ahead
from experiments.config import Config
from experiments.data import Dataset, Split, Stream, StreamedDataset, validation_split
from experiments.distributed import agree
from experiments.errors import UsageError
from experiments.feeds import (
    EvaluationBatches,
    Feed,
    ResidentFeed,
    SpreadFeed,
    StreamFeed,
)
from experiments.mesh import make_layout
from experiments.models import MODELS, label_spheres, normalize_apart
from experiments.optimizers import make_optimizer
from experiments.pipeline import Pipeline
from experiments.schedules import make_schedule
from experiments.spheres import sphere_metrics
from experiments.steps import (
    Build,
    Means,
    Tally,
    TrainState,
    finite_leaves,
    init_state,
    make_evaluate,
    make_train_step,
    repeat_step,
    skipping,
)
from experiments.timing import EpochClock
from spherical_optax.labels import leaves_with_paths

OnBatch = Callable[[int, Means, float], None]
"""Told the epoch, its means so far, and images a second."""

Pause = Callable[[float], None]
"""Called where the run may save or stop, with the seconds until it is called again."""


class NonFiniteError(Exception):
    """The loss or a gradient was not finite; the message says when and where."""


def monitored(build: Build) -> Build:
    """A builder of the same optimizer, with a record of what it does to spheres."""
    return lambda params: so.monitor_sphere(build(params), labels=label_spheres(params))


def many_steps_a_call() -> bool:
    """Whether the device does many steps without the host: all but the CPU."""
    return jax.default_backend() != "cpu"


class Trainer:
    """Trains a model on a data set as a configuration says.

    Attributes:
      state: parameters, statistics and optimizer state after the last step.
      step: steps done.
      epoch: the epoch that was begun last; 0 before the first.
      layout: of images and weights on the devices.
      batch_norm_parts: parts of a batch that batch norm sees apart from each other;
        1 with ``--batch-norm global``.
      steps_per_epoch: the last, incomplete batch is left out.
      images: how many there are, by split.
      monitors: whether the optimizer records what it does to spheres.
      skips: whether steps that are not finite are left out.
      pipeline: with the clock of the epoch.
      compile_seconds: what tracing and compiling took.
    """

    state: TrainState

    def __init__(
        self,
        config: Config,
        dataset: Dataset | StreamedDataset,
        batch_norm_parts: int | None = None,
    ) -> None:
        """Loads and compiles all that training needs.

        Args:
          config: of the run.
          dataset: in memory, or a stream.
          batch_norm_parts: of a run that began on other devices; None for a new one.
        """
        self._config, self._dataset = config, dataset
        train: Split | Stream = dataset.train
        splits: dict[str, Split | Stream] = {"test": dataset.test}
        if config.validation_fraction:
            train, splits["validation"] = validation_split(
                dataset, config.seed, config.validation_fraction
            )
        if config.batch_size > len(train):
            raise UsageError(
                f"--batch-size must be at most {len(train)}, the training"
                f" images of {dataset.name}, got {config.batch_size}"
            )
        if config.batch_size % config.accumulate:
            raise UsageError(
                f"--accumulate must divide --batch-size {config.batch_size}, got"
                f" {config.accumulate}"
            )
        self.layout = make_layout(config.mesh, config.batch_size // config.accumulate)
        local = config.batch_norm == "local"
        self.batch_norm_parts = batch_norm_parts or self.layout.devices if local else 1
        self.batch_size = config.batch_size
        self.steps_per_epoch = len(train) // config.batch_size
        self.images = {name: len(s) for name, s in {"train": train, **splits}.items()}
        self.monitors = config.monitor
        self.skips = config.skip_nonfinite > 0
        self.step, self.epoch = 0, 0
        self._tally = self.layout.share(Tally.zero())
        self._many_steps = many_steps_a_call() and isinstance(train, Split)
        self.pipeline = Pipeline(many_steps=self._many_steps)
        self._evaluation_seconds = 0.0
        began = time.perf_counter()
        self._build(train, splits)
        self.compile_seconds = time.perf_counter() - began

    def train_epoch(self, epoch: int, on_batch: OnBatch, pause: Pause) -> Means:
        """Does the steps of an epoch, counted from 1, that are not done yet.

        Args:
          epoch: decides the order of the images, with the seed.
          on_batch: called after each batch.
          pause: called before each; what it raises leaves the epoch where it is.

        Returns:
          The means over the epoch.

        Raises:
          NonFiniteError: the loss, a gradient or, in the end, a weight was not finite.
        """
        if self.step == (epoch - 1) * self.steps_per_epoch:
            self._tally = self.layout.share(Tally.zero())
            self.pipeline.clock = EpochClock()
        self.epoch, pipeline = epoch, self.pipeline
        self._feed.begin(epoch, self.step)

        def finish_oldest() -> None:
            means = self._read(pipeline.oldest())
            done = means.batches * self.batch_size
            on_batch(epoch, means, done / pipeline.clock.so_far())

        try:
            while (left := epoch * self.steps_per_epoch - self.step) > 0:
                steps = pipeline.steps_of_next_call(left)
                if self._many_steps:  # which each process has timed for itself
                    steps = -agree(-steps)
                pause(pipeline.seconds_ahead(steps))
                pipeline.clock.start()  # to wait for images is time as well
                source = self._feed.source()
                pipeline.begin_call()
                self._do(source, steps)
                pipeline.add(self._tally, steps)
                while pipeline.full():
                    finish_oldest()
            while not pipeline.empty():
                finish_oldest()
        finally:
            pipeline.stop()
        self._check_weights()
        return self._read(self._tally)

    def evaluate(self, split: str, pause: Pause) -> Means:
        """Mean loss and accuracy over the images of a split, ``"test"`` say."""
        losses, answers, count = 0.0, 0.0, 0
        batches = self._evaluation[split]
        for batch in batches:
            pause(self._evaluation_seconds)
            began = time.perf_counter()
            loss, correct = self._evaluate(self.state.params, self.state.stats, *batch)
            losses, answers = losses + float(loss), answers + float(correct)
            count += 1
            self._evaluation_seconds = time.perf_counter() - began
        return Means(losses / len(batches), answers / len(batches), count)

    def snapshot(self) -> tuple[Any, dict[str, Any]]:
        """All that decides how the run goes on: arrays, and facts for JSON."""
        jax.block_until_ready(self.state)
        clock = self.pipeline.clock
        clock.pause()
        key = jax.random.key_data(self._key)
        arrays = {"state": self.state, "tally": self._tally, "key": key}
        facts = {
            "step": self.step,
            "epoch": self.epoch,
            "seconds": clock.seconds,
            "outside": clock.outside,
        }
        return arrays, facts

    def restore(self, arrays: Any, facts: Mapping[str, Any]) -> None:
        """Goes back to a snapshot."""
        self.state = self.layout.place(arrays["state"])
        self._tally = self.layout.share(arrays["tally"])
        self._key = jax.random.wrap_key_data(jnp.asarray(arrays["key"]))
        self._feed.restart(self._key)
        self.step, self.epoch = facts["step"], facts["epoch"]
        self.pipeline.clock = EpochClock(facts["seconds"], facts["outside"])

    def unfinished(self) -> Means:
        """The means of an epoch that was broken off, up to where all was finite."""
        return self._tally.means(self.batch_size)

    def learning_rate(self) -> float:
        """The learning rate of the last step; of SWATS in its first phase.

        A step that was left out does not count.
        """
        first = self._config.hyperparameters.learning_rate
        assert first is not None  # completed when the command line was read
        taken = self.step - (self.skipped_steps() if self.skips else 0)
        return first * float(jnp.asarray(self.schedule(max(taken - 1, 0))))

    def spheres(self) -> dict[str, dict[str, float]]:
        """What the last step did to each layer on a sphere; with --monitor alone."""
        return sphere_metrics(self.state.opt_state)

    def skipped_steps(self) -> int:
        """How many steps were left out so far; with --skip-nonfinite alone."""
        state = self.state.opt_state
        assert isinstance(state, optax.ApplyIfFiniteState)
        return int(state.total_notfinite)

    def parameter_count(self) -> int:
        """Number of trained weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def _build(
        self, train: Split | Stream, splits: Mapping[str, Split | Stream]
    ) -> None:
        config, dataset = self._config, self._dataset
        init_key, self._key = jax.random.split(jax.random.key(config.seed))
        steps = config.epochs * self.steps_per_epoch
        schedule = partial(
            make_schedule, config.schedule, steps, decay=config.milestone_factor
        )
        self.schedule = schedule(config.milestones)
        of_sgd = config.sgd_milestones  # () for a rate that never falls
        build_optimizer = partial(
            make_optimizer,
            config.optimizer,
            config.hyperparameters.given(),
            self.schedule,
            label_spheres,
            sgd_schedule=schedule(config.milestones if of_sgd is None else of_sgd),
        )
        if config.monitor:
            build_optimizer = monitored(build_optimizer)
        if config.skip_nonfinite:
            build_optimizer = skipping(build_optimizer, config.skip_nonfinite)
        graph, optimizer, self.state = init_state(
            partial(
                normalize_apart(MODELS[config.model], self.batch_norm_parts),
                channels=len(dataset.mean),
                num_classes=dataset.num_classes,
                dtype=jnp.dtype(config.dtype),
            ),
            build_optimizer,
            init_key,
        )
        self.state = self.layout.place(self.state)
        self._feed = self._make_feed(train, steps)
        step = make_train_step(
            graph,
            optimizer,
            dataset,
            self._feed.pick,
            parts=config.accumulate,
            skip_nonfinite=config.skip_nonfinite,
            layout=self.layout,
        )
        arguments = [self.state, self._tally, self._feed.example()]
        if self._many_steps:
            step, arguments = repeat_step(step), [*arguments, np.int32(0)]
        self._step = compile_ahead(step, *arguments, donate=0)
        self._finite_leaves = compile_ahead(finite_leaves, self.state.params)
        longest = max(map(len, splits.values()))
        size = self.layout.shareable(longest, config.eval_batch_size)
        self._evaluation = {
            name: EvaluationBatches(split, size, self.layout)
            for name, split in splits.items()
        }
        self._evaluate = compile_ahead(
            make_evaluate(graph, dataset),
            self.state.params,
            self.state.stats,
            *self._evaluation["test"].example(),
        )

    def _make_feed(self, train: Split | Stream, steps: int) -> Feed:
        config = self._config
        if isinstance(train, Stream):
            return StreamFeed(
                train, self.batch_size, config.seed, steps, config.augment, self.layout
            )
        augment = self._dataset.augment if config.augment else None
        if self.layout.devices > 1:
            return SpreadFeed(
                train, self.batch_size, config.seed, self._key, augment, self.layout
            )
        return ResidentFeed(train, self.batch_size, config.seed, self._key, augment)

    def _do(self, source: Any, steps: int) -> None:
        """Hands so many steps to the device, and does not wait for them."""
        arguments = [self.state, self._tally, source]
        if self._many_steps:
            arguments.append(np.int32(steps))
        self.state, self._tally = self._step(*arguments)
        self.step += steps

    def _check_weights(self) -> None:
        """An error if the last step left a weight that is not finite.

        Only after an epoch: within it the next gradient tells.
        """
        finite = np.asarray(self._finite_leaves(self.state.params))
        if not finite.all():
            leaf = self._path(int(finite.argmin()))
            raise NonFiniteError(
                f"not finite after epoch {self.epoch}, step {self.step}: first"
                f" leaf whose weights are not finite: {leaf}"
            )

    def _path(self, leaf: int) -> str:
        """The path of a parameter by its place in the tree."""
        return leaves_with_paths(self.state.params)[leaf][0]

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
                f"not finite at epoch {self.epoch}, step {tally.bad_step} (batch"
                f" {batch} of {steps}): loss {tally.bad_loss:.6g}; {where}"
            )
        return tally.means(self.batch_size)
