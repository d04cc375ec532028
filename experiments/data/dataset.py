"""What a data set is, once it is in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UsageError

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""From a random key and a batch of images to images of the same shape."""


@dataclass(frozen=True)
class Split:
    """Images (n, height, width, channel), uint8, and labels (n,), int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """The images of these indices, in their order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """A data set with what training has to know about it.

    Attributes:
      name: the name that loads it.
      num_classes: labels run from 0 to ``num_classes - 1``.
      train: what the model learns from.
      test: what it is judged by; the same for every seed.
      mean: of each channel of the training images, in units of their bytes.
      std: likewise.
      augment: from a random key and a batch of images to images of the same shape.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment


class HasStatistics(Protocol):
    """Anything with the mean and standard deviation of each channel, in bytes."""

    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102


def normalize(dataset: HasStatistics, images: jax.Array) -> jax.Array:
    """Brings bytes to mean 0 and standard deviation 1 in each channel."""
    mean = jnp.asarray(dataset.mean, jnp.float32)
    std = jnp.asarray(dataset.std, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std


def channel_statistics(
    images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in bytes.

    A channel that is the same everywhere gets the standard deviation 1, so that it
    can be divided by.
    """
    values = np.arange(256)
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256, np.int64)  # exact, whatever the number of images
        for start in range(0, len(images), 1000):
            block = images[start : start + 1000, ..., channel]
            counts += np.bincount(block.ravel(), minlength=256)
        mean = float(counts @ values / counts.sum())
        std = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
        means.append(mean)
        stds.append(std or 1.0)
    return tuple(means), tuple(stds)


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raises a UsageError that names the first label out of range."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UsageError(
            f"{where}: image {wrong[0]} has label {labels[wrong[0]]}; the labels of"
            f" {num_classes} classes run from 0 to {num_classes - 1}"
        )
