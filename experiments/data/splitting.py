"""The validation split of the protocol."""

from typing import overload

import numpy as np

from experiments.data.dataset import Dataset, Split
from experiments.data.streaming import Stream, StreamedDataset
from experiments.errors import UsageError

_PURPOSE = 0x76616C  # keeps the split apart from all else that a seed decides


@overload
def validation_split(
    dataset: Dataset, seed: int, fraction: float = 0.05
) -> tuple[Split, Split]: ...


@overload
def validation_split(
    dataset: StreamedDataset, seed: int, fraction: float = 0.05
) -> tuple[Stream, Stream]: ...


def validation_split(
    dataset: Dataset | StreamedDataset, seed: int, fraction: float = 0.05
) -> tuple[Split, Split] | tuple[Stream, Stream]:
    """Divides the training images into those to learn from and those to choose by.

    Args:
      dataset: its test images are left alone.
      seed: decides which images go where, and nothing else does.
      fraction: of the training images, for validation.

    Returns:
      The larger part to train on and the smaller one for validation, both in the
      order of the data set.
    """
    train = dataset.train
    kept, held_out = validation_indices(len(train), seed, fraction)
    return train.take(kept), train.take(held_out)  # type: ignore[return-value]


def validation_indices(
    count: int, seed: int, fraction: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of :func:`validation_split`, each part in rising order.

    They come from the raw output of a bit generator, which NumPy promises to keep:
    another version makes the same split.
    """
    held_out = round(count * fraction)
    if not 0 < held_out < count:
        raise UsageError(
            f"validation fraction {fraction} of {count} images leaves nothing for"
            f" {'validation' if held_out <= 0 else 'training'}"
        )
    bits = np.random.PCG64(np.random.SeedSequence((seed, _PURPOSE)))
    order = np.argsort(bits.random_raw(count), kind="stable")
    return np.sort(order[held_out:]), np.sort(order[:held_out])
