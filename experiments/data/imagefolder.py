"""``--dataset folder:PATH``: a folder or archive with train/CLASS/* and test/CLASS/*.

The images are decoded once, into the cache; later starts find them by a fingerprint
of the source, and read its content again only when that has changed.
"""

import functools
import stat
import time
from pathlib import Path

import numpy as np

from experiments.data.archives import Archive
from experiments.data.augmentation import crop_and_flip, unchanged
from experiments.data.cache import Arrays, cached_arrays, key_of, remembered_key
from experiments.data.dataset import Dataset, Split, channel_statistics
from experiments.data.decoding import decode, in_threads
from experiments.data.files import say
from experiments.data.folders import Folder
from experiments.data.layout import SPLITS, Item, Layout, Source
from experiments.errors import UsageError

PREFIX = "folder:"


def load_folder(name: str, image_size: int | None = None) -> Dataset:
    """Loads ``folder:PATH``.

    Images of 32x32 are augmented as CIFAR; others are not augmented. All are
    normalized with the statistics of the training images.

    Args:
      name: with its prefix.
      image_size: bring every image to this height and width; without it they must
        have the same.

    Raises:
      UsageError: the source is missing or damaged; the message names the file.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"--image-size must be at least 1, got {image_size}")
    source = open_source(Path(name.removeprefix(PREFIX)), f"--dataset {name}")
    fingerprint = source.fingerprint()
    content = remembered_key(source.path, fingerprint, source.content)
    arrays = cached_arrays(
        key_of("folder", content, image_size),
        str(source.path),
        lambda: _decode_all(source, fingerprint, image_size),
    )
    height, width, _ = arrays.train.images.shape[1:]
    return Dataset(
        name=name,
        num_classes=len(arrays.classes),
        train=arrays.train,
        test=arrays.test,
        mean=arrays.mean,
        std=arrays.std,
        augment=crop_and_flip if height == width == 32 else unchanged,
    )


def open_source(path: Path, option: str) -> Source:
    """The source at a path; ``option`` names it in the error if there is none."""
    try:
        path = path.expanduser().resolve()
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{option}: {error.strerror or error}") from None
    except (RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise UsageError(f"{option}: {error}") from None
    if stat.S_ISDIR(mode):
        return Folder(path)
    if stat.S_ISREG(mode):
        return Archive(path)
    raise UsageError(f"{option}: neither a folder nor a file")


def _decode_all(source: Source, fingerprint: str, image_size: int | None) -> Arrays:
    """Reads the source from beginning to end."""
    say(f"decoding the images of {source.path}, once")
    began = time.perf_counter()
    layout = Layout(str(source.path))
    work = functools.partial(_decoded, image_size=image_size)
    decoded = dict(in_threads(work, source.items(layout)))
    classes = layout.classes()
    if source.fingerprint() != fingerprint:
        raise UsageError(f"{source.path}: changed while it was read; start again")
    channels = max(image.shape[-1] for image in decoded.values())
    train, test = (_stacked(decoded, split, classes, channels) for split in SPLITS)
    say(f"decoded {len(decoded):,} images in {time.perf_counter() - began:.1f} s")
    return Arrays(train, test, classes, *channel_statistics(train.images))


_Place = tuple[str, str, str, str]  # split, class, name, and the name for errors


def _decoded(item: Item, image_size: int | None) -> tuple[_Place, np.ndarray]:
    try:
        data = item.read()
    except OSError as error:
        raise UsageError(f"{item.where}: {error.strerror or error}") from None
    place = (item.split, item.label, item.name, item.where)
    return place, decode(data, item.where, image_size)


def _stacked(
    decoded: dict[_Place, np.ndarray],
    split: str,
    classes: tuple[str, ...],
    channels: int,
) -> Split:
    """The images of a split in the order of their paths, whatever the source's order.

    Gray images among coloured ones become coloured.
    """
    places = sorted(place for place in decoded if place[0] == split)
    first = min(decoded)
    height, width, _ = decoded[first].shape
    images = np.empty((len(places), height, width, channels), np.uint8)
    for index, place in enumerate(places):
        image = decoded[place]
        if image.shape[:2] != (height, width):
            raise UsageError(
                f"{place[3]}: {image.shape[1]}x{image.shape[0]} pixels, and"
                f" {first[3]} has {width}x{height}: --image-size N brings all images"
                " to one size"
            )
        images[index] = image
    numbers = {name: number for number, name in enumerate(classes)}
    return Split(images, np.array([numbers[place[1]] for place in places], np.int32))
