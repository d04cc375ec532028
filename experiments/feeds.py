"""Where the batches of a run come from: arrays on the device, or a stream."""

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
    """All images on the device, picked and augmented there.

    The images of a step are a function of the seed, the epoch and the step alone.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        key: jax.Array,
        augment: Augment | None,
        layout: Layout | None = None,
    ) -> None:
        self._count, self._batch_size, self._seed = len(split), batch_size, seed
        self._augment = augment
        self._share = (layout or Layout.alone()).share
        images, labels = self._share((split.images, split.labels))
        self._arrays = Arrays(images, labels, self._order(1), self._share(key))

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
        self._arrays = self._arrays._replace(key=self._share(key))

    def _order(self, epoch: int) -> jax.Array:
        shuffle = np.random.default_rng((self._seed, epoch))
        order = shuffle.permutation(self._count).astype(np.int32)
        steps = self._count // self._batch_size
        return self._share(order[: steps * self._batch_size].reshape(steps, -1))


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
        self._share = (layout or Layout.alone()).share
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
        return (
            jax.ShapeDtypeStruct(shape, jnp.uint8),
            jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        )

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
            )

    def source(self) -> Any:
        """The batch of the next step, on its way to the device."""
        assert self._batches is not None  # begin() comes first
        self._at += 1
        return self._share(next(self._batches))

    def restart(self, key: jax.Array) -> None:
        """Nothing: augmentation is decided by the seed and the step."""


class EvaluationBatches:
    """All images of a split in batches of one size; what fills the last has weight 0.

    Those of an array stay on the device; those of a stream are read each time.
    """

    def __init__(
        self, split: Split | Stream, size: int, layout: Layout | None = None
    ) -> None:
        self._share = (layout or Layout.alone()).share
        self._split, self._size = split, size
        self._resident: list[tuple[jax.Array, ...]] | None = None
        if isinstance(split, Split):
            self._resident = list(self._padded(_slices(split, self._size)))

    def example(self) -> Any:
        """A batch, or its shapes, to compile for."""
        if self._resident is not None:
            return self._resident[0]
        assert isinstance(self._split, Stream)
        count, size = self._size, self._split.size
        return (
            jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8),
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct((count,), jnp.float32),
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self._split)

    def __iter__(self) -> Iterator[tuple[jax.Array, ...]]:
        """Images, labels, weights."""
        if self._resident is not None:
            return iter(self._resident)
        assert isinstance(self._split, Stream)
        return self._padded(self._split.test_batches(self._size))

    def _padded(self, batches: Iterator[Batch]) -> Iterator[tuple[jax.Array, ...]]:
        for images, labels in batches:
            missing = self._size - len(labels)
            weights = np.arange(self._size) < len(labels)
            yield self._share(
                (
                    np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
                    np.pad(labels, (0, missing)),
                    weights.astype(np.float32),
                )
            )


def _slices(split: Split, size: int) -> Iterator[Batch]:
    for start in range(0, len(split), size):
        stop = start + size
        yield split.images[start:stop], split.labels[start:stop]
