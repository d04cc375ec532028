"""Data sets that do not fit on the device: batches decoded on the way, by workers.

A batch of training images is a function of the seed and the step alone: a run that
resumes asks for the batches from its step on, with any number of workers.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from experiments.data.augmentation import unchanged
from experiments.data.crops import central_crop, random_mirror, random_resized_crop
from experiments.data.dataset import Augment
from experiments.data.decoding import open_image
from experiments.errors import UsageError

_MOST_WORKERS = 16
_FEW_IMAGES = 64  # are decoded before a worker has even started

Batch = tuple[np.ndarray, np.ndarray]
"""Images (batch, size, size, 3), uint8, and labels (batch,), int32."""


class Records(Protocol):
    """Encoded images with their labels; worker processes get a pickled copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]: ...

    def where(self, index: int) -> str:
        """Names an image in an error."""
        ...


@dataclass(frozen=True)
class Stream:
    """Images that are read and decoded when they are needed.

    Attributes:
      records: all images of the split they belong to.
      indices: which of the records belong to this stream.
      num_classes: labels run from 0 to ``num_classes - 1``.
      size: height and width of the decoded images.
    """

    records: Records
    indices: np.ndarray
    num_classes: int
    size: int = 224

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: np.ndarray) -> "Stream":
        """The stream of some of the images."""
        return replace(self, indices=self.indices[indices])

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        augment: bool = True,
        rows: np.ndarray | None = None,
        workers: int | None = None,
    ) -> Iterator[Batch]:
        """The batches of the steps from ``start`` up to, not including, ``stop``.

        Steps are counted from 0 over all epochs; an epoch has ``len(self) //
        batch_size`` of them, and an order of its own. With augmentation each image is
        cropped and mirrored at random, by the seed, the epoch and its place in it.

        Args:
          batch_size: images a step.
          seed: decides order and augmentation, together with the step.
          start: the first step to make the batch of.
          stop: the step to stop before.
          augment: if false, images are cropped as for the test.
          rows: of each batch, the places to decode, in rising order: what one of
            several processes needs. All by default.
          workers: processes that decode; 0 decodes in this one, and so it is by
            default for a few images.
        """
        if not 0 < batch_size <= len(self):
            raise UsageError(
                f"--batch-size must be from 1 to {len(self)}, the training images, got"
                f" {batch_size}"
            )
        steps = _TrainSteps(self, batch_size, seed, augment, stop, rows)
        return _read(steps, start, workers)

    def test_batches(
        self,
        batch_size: int,
        *,
        start: int = 0,
        rows: np.ndarray | None = None,
        workers: int | None = None,
    ) -> Iterator[Batch]:
        """All images once, in order, cropped as for the test; the last batch is short.

        Args:
          batch_size: images a batch.
          start: the first batch to make.
          rows: as of the training; of the last batch there may be none.
          workers: as of the training.
        """
        return _read(_TestSteps(self, batch_size, rows), start, workers)

    def image(
        self, index: int, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, int]:
        """An image and its label; cropped and mirrored at random if ``rng`` is given.

        Raises:
          UsageError: it cannot be read, or its label is out of range.
        """
        record = int(self.indices[index])
        where = self.records.where(record)
        data, label = self.records[record]
        if not 0 <= label < self.num_classes:
            raise UsageError(
                f"{where}: label {label}; the labels of {self.num_classes} classes run"
                f" from 0 to {self.num_classes - 1}"
            )
        image = open_image(data, where).convert("RGB")
        if rng is None:
            image = central_crop(image, self.size)
        else:
            image = random_mirror(random_resized_crop(image, rng, self.size), rng)
        return np.asarray(image), label


@dataclass(frozen=True)
class StreamedDataset:
    """A data set that streams, with what training has to know about it.

    Attributes:
      name: the name that loads it.
      num_classes: labels run from 0 to ``num_classes - 1``.
      train: what the model learns from.
      test: what it is judged by; the same for every seed.
      mean: of each channel of the training images, in units of their bytes.
      std: likewise.
      augment: changes nothing: streamed images come augmented.
    """

    name: str
    num_classes: int
    train: Stream
    test: Stream
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = unchanged


@dataclass(frozen=True)
class _TrainSteps:
    """The batch of each step; made afresh in every worker."""

    stream: Stream
    batch_size: int
    seed: int
    augment: bool
    stop: int
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, len(self.stream) // self.batch_size)
        order = _order(self.seed, epoch, len(self.stream))
        chosen = order[place * self.batch_size :][: self.batch_size]
        if self.rows is not None:
            chosen = chosen[self.rows]
        rngs = (
            np.random.default_rng((self.seed, epoch, which)) if self.augment else None
            for which in chosen
        )
        return _stacked(self.stream, map(self.stream.image, chosen, rngs))


@dataclass(frozen=True)
class _TestSteps:
    """The batches of one pass in order."""

    stream: Stream
    batch_size: int
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return -(-len(self.stream) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        rows = np.arange(self.batch_size) if self.rows is None else self.rows
        places = index * self.batch_size + rows
        return _stacked(
            self.stream,
            map(self.stream.image, places[places < len(self.stream)].tolist()),
        )


def _stacked(stream: Stream, images: Iterable[tuple[np.ndarray, int]]) -> Batch:
    found = list(images)
    if not found:
        shape = (0, stream.size, stream.size, 3)
        return np.zeros(shape, np.uint8), np.zeros(0, np.int32)
    arrays, labels = zip(*found, strict=True)
    return np.stack(arrays), np.array(labels, np.int32)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the images in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class _Closing(Iterator[Batch]):
    """An iterator whose workers end with it, at the latest with the program."""

    def __init__(self, batches: Generator[Batch]) -> None:
        self._batches = batches
        self.close = weakref.finalize(self, batches.close)

    def __next__(self) -> Batch:
        return next(self._batches)


def _read(
    batches: _TrainSteps | _TestSteps, start: int, workers: int | None
) -> Iterator[Batch]:
    """The batches from ``start`` on, made ahead of time by worker processes."""
    if workers is None:
        few = (len(batches) - start) * batches.batch_size < _FEW_IMAGES
        workers = 0 if few else min(os.cpu_count() or 1, _MOST_WORKERS)
    workers = min(workers, len(batches) - start)
    if workers <= 0:
        return (batches[place] for place in range(start, len(batches)))
    return _Closing(_read_ahead(batches, start, workers))


def _read_ahead(
    batches: _TrainSteps | _TestSteps, start: int, workers: int
) -> Generator[Batch]:
    try:
        import grain  # type: ignore  # may be missing
        from absl import flags  # type: ignore
    except ImportError:
        raise UsageError(
            "this data set is streamed by grain, which is not installed: pip install"
            " 'spherical-optax[datasets]'"
        ) from None
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain asks for flags of a kind not used here
    dataset = grain.MapDataset.source(batches)[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    )
    # Through pipes: grain leaves shared memory behind when it is closed early, and
    # containers have so little of it that a process which writes a batch there dies.
    dataset = grain.experimental.WithOptionsIterDataset(
        dataset, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    )
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    with contextlib.closing(
        iter(dataset.mp_prefetch(options, worker_init_fn=_begin_worker))
    ) as iterator:
        yield from iterator


def _begin_worker(worker: int, workers: int) -> None:
    """Ctrl-C is for the process that reads the batches: it ends the workers.

    Where that is killed it cannot, and they would wait for it forever.
    """
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader = multiprocessing.parent_process()

    def end_with_reader() -> None:
        if reader is not None:
            reader.join()
            os._exit(1)

    threading.Thread(target=end_with_reader, daemon=True).start()
