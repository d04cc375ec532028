"""The handwritten digits of scikit-learn: no download."""

import numpy as np

from experiments.data.augmentation import shift_by_one
from experiments.data.dataset import Dataset, Split


def load_digits() -> Dataset:
    """The 1,797 handwritten digits of scikit-learn, 8x8, one channel, bytes 0 to 16.

    Of each class every fifth image, in the order of the package, is for the test:
    355 images.
    """
    from sklearn import datasets  # slow to import, and of use here alone

    images, labels = datasets.load_digits(return_X_y=True)
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
        augment=shift_by_one,
    )
