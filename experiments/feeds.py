"""Where the batches of a run come from: arrays on the device, or a stream.

On several devices each has its own rows of every batch and no others, and a process
reads, decodes and hands over only what is for its own devices.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Augment, Batch, Split, Stream
from experiments.mesh import Layout
from experiments.steps import Pick


class Feed(Protocol):
    """What hands the training images to the compiled steps.

    Attributes:
      pick: within a compiled step, finds its images in the source.
    """

    @property
    def pick(self) -> Pick: ...  # noqa: D102

    def example(self) -> Any:
        """A source, or its shapes, to compile for."""
        ...

    def begin(self, epoch: int, step: int) -> None:
        """Prepares for the steps of an epoch from ``step`` on."""
        ...

    def source(self) -> Any:
        """The source of the next step."""
        ...

    def restart(self, key: jax.Array) -> None:
        """Takes the random key of a snapshot."""
        ...


class Arrays(NamedTuple):
    """The source of a :class:`ResidentFeed`."""

    images: jax.Array  # shape=(n, height, width, channel), dtype=uint8
    labels: jax.Array  # shape=(n,), dtype=int32
    order: jax.Array  # shape=(steps, batch), dtype=int32: indices of the images
    key: jax.Array  # for the augmentation; the step is folded in


class ResidentFeed:
    """All images on one device, picked and augmented there.

    The images of a step are a function of the seed, the epoch and the step alone.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        key: jax.Array,
        augment: Augment | None,
    ) -> None:
        self._count, self._batch_size, self._seed = len(split), batch_size, seed
        self._augment = augment
        images, labels = jax.device_put((split.images, split.labels))
        self._arrays = Arrays(images, labels, self._order(1), jax.device_put(key))

    def pick(self, source: Arrays, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The images of a step, augmented."""
        chosen = source.order[step % len(source.order)]
        images, labels = source.images[chosen], source.labels[chosen]
        if self._augment is not None:
            images = self._augment(jax.random.fold_in(source.key, step), images)
        return images, labels

    def example(self) -> Arrays:
        """The arrays themselves."""
        return self._arrays

    def begin(self, epoch: int, step: int) -> None:
        """Shuffles."""
        del step
        self._arrays = self._arrays._replace(order=self._order(epoch))

    def source(self) -> Arrays:
        """The arrays, the same for all steps of an epoch."""
        return self._arrays

    def restart(self, key: jax.Array) -> None:
        """Takes the key for the augmentation."""
        self._arrays = self._arrays._replace(key=jax.device_put(key))

    def _order(self, epoch: int) -> jax.Array:
        order = order_of_epoch(self._count, self._batch_size, self._seed, epoch)
        return jax.device_put(order)


def order_of_epoch(count: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The indices of the images, (step, batch), int32; what fills no batch is left."""
    order = np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)
    steps = count // batch_size
    return order[: steps * batch_size].reshape(steps, -1)


class EpochArrays(NamedTuple):
    """The source of a :class:`SpreadFeed`: an epoch, in its order.

    The second axis is split over the devices.
    """

    images: jax.Array  # shape=(steps, batch, height, width, channel), dtype=uint8
    labels: jax.Array  # shape=(steps, batch), dtype=int32
    key: jax.Array  # for the augmentation; the step is folded in


class SpreadFeed:
    """As :class:`ResidentFeed`, for several devices: each has only what it needs.

    At the start of an epoch every process picks, of the images in its memory, those
    for its own devices. The batches are the same on any number of them.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        key: jax.Array,
        augment: Augment | None,
        layout: Layout,
    ) -> None:
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._augment, self._layout = augment, layout
        self._key = layout.share(key)
        self._arrays: EpochArrays | None = None
        self._epoch = 0

    def pick(self, source: EpochArrays, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The images of a step, augmented."""
        place = step % len(source.labels)
        images, labels = map(
            self._layout.batch, (source.images[place], source.labels[place])
        )
        if self._augment is not None:
            images = self._augment(jax.random.fold_in(source.key, step), images)
        return images, labels

    def example(self) -> EpochArrays:
        """The arrays of the first epoch."""
        self.begin(1, 0)
        return self.source()

    def begin(self, epoch: int, step: int) -> None:
        """Picks the images of the epoch, unless they are there already."""
        del step
        if self._arrays is not None and self._epoch == epoch:
            return
        self._arrays, self._epoch = None, epoch  # frees its memory first
        size, count = self._batch_size, len(self._split)
        order = order_of_epoch(count, size, self._seed, epoch)
        mine = order[:, self._layout.rows(size)]
        rows = self._split.images[mine], self._split.labels[mine]
        images, labels = self._layout.spread(rows, size, 1)
        self._arrays = EpochArrays(images, labels, self._key)

    def source(self) -> EpochArrays:
        """The arrays, the same for all steps of an epoch."""
        assert self._arrays is not None  # begin() comes first
        return self._arrays

    def restart(self, key: jax.Array) -> None:
        """Takes the key for the augmentation."""
        self._key = self._layout.share(key)
        if self._arrays is not None:
            self._arrays = self._arrays._replace(key=self._key)


class StreamFeed:
    """Images decoded and augmented by worker processes, a batch for each step."""

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        seed: int,
        last_step: int,
        augment: bool,
        layout: Layout | None = None,
    ) -> None:
        self._layout = layout or Layout.alone()
        self._stream, self._batch_size, self._seed = stream, batch_size, seed
        self._last_step, self._augment = last_step, augment
        self._batches: Iterator[Batch] | None = None
        self._at = 0

    @staticmethod
    def pick(source: Batch, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The batch itself."""
        del step
        images, labels = source
        return jnp.asarray(images), jnp.asarray(labels)

    def example(self) -> Any:
        """The shapes of a batch."""
        size = self._stream.size
        shape = (self._batch_size, size, size, 3)
        make = self._layout.shape
        return make(shape, jnp.uint8), make(shape[:1], jnp.int32)

    def begin(self, epoch: int, step: int) -> None:
        """Goes on reading; starts the workers where it did not read up to ``step``."""
        del epoch
        if self._batches is None or self._at != step:
            self._at = step
            self._batches = self._stream.train_batches(
                self._batch_size,
                seed=self._seed,
                start=step,
                stop=self._last_step,
                augment=self._augment,
                rows=self._layout.rows(self._batch_size),
            )

    def source(self) -> Any:
        """The batch of the next step, on its way to the device."""
        assert self._batches is not None  # begin() comes first
        self._at += 1
        return self._layout.spread(next(self._batches), self._batch_size)

    def restart(self, key: jax.Array) -> None:
        """Nothing: augmentation is decided by the seed and the step."""


class EvaluationBatches:
    """All images of a split in batches of one size; what fills the last has weight 0.

    Those of an array stay on the devices; those of a stream are read each time.
    """

    def __init__(
        self, split: Split | Stream, size: int, layout: Layout | None = None
    ) -> None:
        """Takes a split, and the images of a batch, which the devices share evenly."""
        self._layout = layout or Layout.alone()
        self._split, self._size = split, size
        self._rows = self._layout.rows(size)
        self._resident: list[tuple[jax.Array, ...]] | None = None
        if isinstance(split, Split):
            self._resident = list(self._padded(self._slices(split)))

    def example(self) -> Any:
        """A batch, or its shapes, to compile for."""
        if self._resident is not None:
            return self._resident[0]
        assert isinstance(self._split, Stream)
        count, size, make = self._size, self._split.size, self._layout.shape
        return (
            make((count, size, size, 3), jnp.uint8),
            make((count,), jnp.int32),
            make((count,), jnp.float32),
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self._split)

    def __iter__(self) -> Iterator[tuple[jax.Array, ...]]:
        """Images, labels, weights."""
        if self._resident is not None:
            return iter(self._resident)
        assert isinstance(self._split, Stream)
        batches = self._split.test_batches(self._size, rows=self._rows)
        return self._padded(batches)

    def _padded(self, batches: Iterator[Batch]) -> Iterator[tuple[jax.Array, ...]]:
        for images, labels in batches:  # the rows of this process that there are
            missing = len(self._rows) - len(labels)
            weights = np.arange(len(self._rows)) < len(labels)
            padded = (
                np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
                np.pad(labels, (0, missing)),
                weights.astype(np.float32),
            )
            yield self._layout.spread(padded, self._size)

    def _slices(self, split: Split) -> Iterator[Batch]:
        for start in range(0, len(split), self._size):
            rows = start + self._rows
            rows = rows[rows < len(split)]
            yield split.images[rows], split.labels[rows]
