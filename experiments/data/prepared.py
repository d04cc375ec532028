"""Reading what tensorflow-datasets has prepared; TensorFlow is not needed for it."""

import bisect
import importlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.cache import Arrays, cached_arrays, key_of
from experiments.data.dataset import Dataset, Split, channel_statistics, check_labels
from experiments.data.decoding import decode, in_threads
from experiments.data.files import identity, say
from experiments.data.recipes import RECIPES
from experiments.data.streaming import Stream, StreamedDataset
from experiments.errors import UsageError

FILE_FORMAT = "array_record"  # can be read at any place, and without TensorFlow
_INFO = "dataset_info.json"


def data_dir() -> Path:
    """Where tensorflow-datasets keeps its data: ``$TFDS_DATA_DIR`` or its default."""
    chosen = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def import_tfds() -> Any:
    """The package, imported when needed: it takes a while, and is an extra."""
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise UsageError(
            f"this needs tensorflow-datasets ({error}): pip install"
            " 'spherical-optax[datasets]'"
        ) from None


@dataclass(frozen=True)
class Prepared:
    """A folder with a prepared data set.

    Attributes:
      path: the folder, named after the version.
      name: of the data set.
      shards: images in each file of each split.
    """

    path: Path
    name: str
    shards: dict[str, tuple[int, ...]]

    def file(self, split: str, shard: int) -> Path:
        """The path of a shard."""
        count = len(self.shards[split])
        name = f"{self.name}-{split}.{FILE_FORMAT}-{shard:05d}-of-{count:05d}"
        return self.path / name

    def files(self) -> Iterator[Path]:
        """The paths of all shards."""
        for split, lengths in self.shards.items():
            yield from (self.file(split, shard) for shard in range(len(lengths)))


def find_prepared(name: str) -> Prepared | None:
    """The newest version of a data set that is prepared; None if there is none.

    Raises:
      UsageError: it is incomplete, or in a format that is not read here.
    """
    folder = _newest_version(data_dir() / name)
    if folder is None:
        return None
    info_path = folder / _INFO
    try:
        info = json.loads(info_path.read_text())
        file_format = str(info.get("fileFormat", "tfrecord"))
        shards = {
            str(split["name"]): tuple(map(int, split["shardLengths"]))
            for split in info["splits"]
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{info_path}: damaged ({error}); {_again(folder)}") from None
    if file_format != FILE_FORMAT:
        raise UsageError(
            f"{folder}: prepared as {file_format}, and {FILE_FORMAT} is needed: move it"
            " away, or set TFDS_DATA_DIR to a folder without it"
        )
    prepared = Prepared(folder, name, shards)
    for split in ("train", RECIPES[name].test):
        if not sum(shards.get(split, ())):
            raise UsageError(f"{folder}: has no {split} images; {_again(folder)}")
    for file in prepared.files():
        if not file.is_file():
            raise UsageError(f"{file}: missing; {_again(folder)}")
    return prepared


def _newest_version(folder: Path) -> Path | None:
    """The folder of the highest version; unfinished ones have other names."""
    versions = [
        path.parent
        for path in folder.glob(f"*/{_INFO}")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return max(
        versions, key=lambda path: [*map(int, path.name.split("."))], default=None
    )


class PreparedRecords:
    """The encoded images of a split, with their labels."""

    def __init__(self, prepared: Prepared, split: str) -> None:
        self._prepared, self._split = prepared, split
        self._ends = list(itertools.accumulate(prepared.shards[split]))
        self._source: Any = None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.read([index])[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_source": None}  # a worker opens its own files

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Several at once: faster than one after another."""
        try:
            if self._source is None:
                tfds = import_tfds()
                builder = tfds.builder_from_directory(self._prepared.path)
                self._source = builder.as_data_source(
                    self._split, decoders={"image": tfds.decode.SkipDecoding()}
                )
            examples = self._source.__getitems__(list(indices))
            return [(example["image"], int(example["label"])) for example in examples]
        except UsageError:
            raise
        except Exception as error:  # a damaged file can do anything to its reader
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"{self._shard(indices[0])}: damaged ({reason});"
                f" {_again(self._prepared.path)}"
            ) from error

    def where(self, index: int) -> str:
        """Names an image in an error."""
        return f"{self._shard(index)}: image {index} of {self._split}"

    def _shard(self, index: int) -> Path:
        shard = bisect.bisect_right(self._ends, index)
        return self._prepared.file(self._split, shard)


def load_prepared(prepared: Prepared) -> Dataset:
    """A small data set, decoded into memory, once: then from the cache."""
    recipe = RECIPES[prepared.name]
    files = [[str(file), *identity(file.stat())] for file in prepared.files()]
    arrays = cached_arrays(
        key_of("prepared", files), str(prepared.path), lambda: _decode_all(prepared)
    )
    where = str(prepared.path)
    check_labels(arrays.train.labels, recipe.num_classes, f"{where}, train")
    check_labels(arrays.test.labels, recipe.num_classes, f"{where}, {recipe.test}")
    mean, std = recipe.in_bytes()
    return Dataset(
        name=prepared.name,
        num_classes=recipe.num_classes,
        train=arrays.train,
        test=arrays.test,
        mean=mean,
        std=std,
        augment=recipe.augment,
    )


def stream_prepared(prepared: Prepared) -> StreamedDataset:
    """A large data set, read while it is used."""
    recipe = RECIPES[prepared.name]
    train, test = (
        Stream(records, np.arange(len(records)), recipe.num_classes)
        for records in (
            PreparedRecords(prepared, "train"),
            PreparedRecords(prepared, recipe.test),
        )
    )
    mean, std = recipe.in_bytes()
    return StreamedDataset(prepared.name, recipe.num_classes, train, test, mean, std)


def _decode_all(prepared: Prepared) -> Arrays:
    say(f"decoding the images of {prepared.path}, once")
    recipe = RECIPES[prepared.name]
    train, test = (_decode_split(prepared, s) for s in ("train", recipe.test))
    classes = tuple(map(str, range(recipe.num_classes)))
    return Arrays(train, test, classes, *channel_statistics(train.images))


def _decode_split(prepared: Prepared, split: str) -> Split:
    records = PreparedRecords(prepared, split)

    def encoded() -> Iterator[tuple[int, bytes]]:
        for start in range(0, len(records), 1000):
            chunk = range(start, min(start + 1000, len(records)))
            for index, (data, label) in zip(chunk, records.read(chunk), strict=True):
                labels[index] = label
                yield index, data

    def decoded(item: tuple[int, bytes]) -> np.ndarray:
        index, data = item
        return decode(data, records.where(index))

    labels = np.empty(len(records), np.int32)
    images: np.ndarray | None = None
    for index, image in enumerate(in_threads(decoded, encoded())):
        if images is None:
            images = np.empty((len(records), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise UsageError(
                f"{records.where(index)}: of shape {image.shape}, and the others"
                f" {images.shape[1:]}"
            )
        images[index] = image
    assert images is not None  # a split without images is not taken for prepared
    return Split(images, labels)


def _again(folder: Path) -> str:
    return f"delete {folder}, and it is prepared again"
