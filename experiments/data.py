"""The data sets by name, and augmentation on the device.

A small set lives on the device as uint8. Batches are picked, augmented and normalized
there, inside the compiled step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import check_name

Augment = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Split:
    """Images (n, height, width, channel), uint8, and labels (n,), int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


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


def load_dataset(name: str) -> Dataset:
    """Loads the data set called ``name``; a UsageError if there is none."""
    check_name("--dataset", name, DATASETS)
    return DATASETS[name]()


def normalize(dataset: Dataset, images: jax.Array) -> jax.Array:
    """Brings bytes to mean 0 and standard deviation 1 in each channel."""
    mean = jnp.asarray(dataset.mean, jnp.float32)
    std = jnp.asarray(dataset.std, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Moves each image by up to ``pixels`` in both directions; zeros move in."""
    batch, height, width, channels = images.shape
    margin = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(
            image, (corner[0], corner[1], 0), (height, width, channels)
        )

    return jax.vmap(crop)(jnp.pad(images, margin), corners)


def _digits() -> Dataset:
    """The 1,797 handwritten digits of scikit-learn, 8x8, one channel, bytes 0 to 16.

    Of each class every fifth image, in the order of the package, is for the test:
    355 images.
    """
    from sklearn.datasets import load_digits  # slow to import, and of use here alone

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    labels = labels.astype(np.int32)
    rank_in_class = np.zeros(len(labels), int)
    for label in range(10):
        members = labels == label
        rank_in_class[members] = np.arange(members.sum())
    held_out = rank_in_class % 5 == 4
    train = Split(images[~held_out], labels[~held_out])
    return Dataset(
        name="digits",
        num_classes=10,
        train=train,
        test=Split(images[held_out], labels[held_out]),
        mean=(float(train.images.mean()),),
        std=(float(train.images.std()),),
        augment=lambda key, images: random_shift(key, images, pixels=1),
    )


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits}
"""Name to loader. A new data set needs a line here."""
