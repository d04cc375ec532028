"""The data sets of tensorflow-datasets, and how each is augmented and normalized."""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.data.augmentation import crop_and_flip, unchanged
from experiments.data.dataset import Augment

Statistics = tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """What the published experiments do with a data set.

    Attributes:
      num_classes: labels run from 0 to ``num_classes - 1``.
      mean: of each channel, of values from 0 to 1.
      std: likewise.
      augment: what training does to images before they are normalized.
      test: the split that takes the place of the test.
      streamed: whether it is too large for the device.
    """

    num_classes: int
    mean: Statistics
    std: Statistics
    augment: Augment = unchanged
    test: str = "test"
    streamed: bool = False

    def in_bytes(self) -> tuple[Statistics, Statistics]:
        """Mean and standard deviation of values from 0 to 255."""
        return tuple(255 * m for m in self.mean), tuple(255 * s for s in self.std)


RECIPES: Mapping[str, Recipe] = {
    # The statistics of the training images; no augmentation is published for it.
    "mnist": Recipe(10, (0.1307,), (0.3081,)),
    # (x - 0.28) / 0.35, the lesson's rounded statistics, and like it no augmentation.
    "fashion_mnist": Recipe(10, (0.28,), (0.35,)),
    "cifar10": Recipe(
        10, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), crop_and_flip
    ),
    "cifar100": Recipe(
        100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), crop_and_flip
    ),
    # Scaled to [0, 1], and nothing else.
    "svhn_cropped": Recipe(10, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # Random resized crop and flip happen while it is decoded. Its test images have no
    # public labels: the validation images serve as the test.
    "imagenet2012": Recipe(
        1000,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        test="validation",
        streamed=True,
    ),
}
"""Name, as tensorflow-datasets has it, to recipe."""
