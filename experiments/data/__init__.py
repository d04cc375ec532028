"""The data sets by name, their augmentation, and their splits.

``python -m experiments.data list`` shows what there is. A small set is a
:class:`Dataset`, in memory as bytes, to be put on the device and augmented there; a
large one is a :class:`StreamedDataset`, decoded by worker processes on the way.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments.data.augmentation import crop_and_flip, random_flip, random_shift
from experiments.data.dataset import (
    Augment,
    Dataset,
    HasStatistics,
    Split,
    check_labels,
    normalize,
)
from experiments.data.digits import load_digits
from experiments.data.imagefolder import PREFIX, load_folder
from experiments.data.prepared import load_prepared, stream_prepared
from experiments.data.preparing import prepare
from experiments.data.recipes import RECIPES
from experiments.data.splitting import validation_indices, validation_split
from experiments.data.streaming import Batch, Stream, StreamedDataset
from experiments.errors import UsageError, check_name

__all__ = [
    # By name
    "DATASETS",
    "STREAMED",
    "check_dataset_name",
    "dataset_label",
    "dataset_names",
    "load_dataset",
    "load_streamed",
    # What a data set is
    "Augment",
    "Batch",
    "Dataset",
    "HasStatistics",
    "Split",
    "Stream",
    "StreamedDataset",
    "check_labels",
    # What is done with it
    "crop_and_flip",
    "normalize",
    "random_flip",
    "random_shift",
    "validation_indices",
    "validation_split",
]


def _load_prepared(name: str) -> Dataset:
    return load_prepared(prepare(name))


DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": load_digits,
    **{
        name: partial(_load_prepared, name)
        for name, recipe in RECIPES.items()
        if not recipe.streamed
    },
}
"""Name to loader. A new data set needs a line here or in ``recipes.py``."""

STREAMED = tuple(name for name, recipe in RECIPES.items() if recipe.streamed)
"""Names of the data sets that :func:`load_streamed` loads."""


def dataset_names() -> list[str]:
    """Everything that ``--dataset`` takes."""
    return [*DATASETS, *STREAMED, f"{PREFIX}PATH"]


def check_dataset_name(name: str, option: str = "--dataset") -> None:
    """Raises a UsageError that lists the known names unless ``name`` is one."""
    if not name.startswith(PREFIX):
        check_name(option, name, dataset_names())
    elif name == PREFIX:
        raise UsageError(f"{option} {PREFIX}PATH: names no folder or archive")


def dataset_label(name: str) -> str:
    """The name in file names: of ``folder:PATH``, the file's without its endings."""
    if not name.startswith(PREFIX):
        return name
    file = Path(name.removeprefix(PREFIX)).expanduser().absolute()
    return (file.name if file.is_dir() else file.name.split(".")[0]) or "folder"


def load_dataset(name: str, *, image_size: int | None = None) -> Dataset:
    """Loads the data set called ``name`` into memory.

    Args:
      name: one of :data:`DATASETS`, or ``folder:PATH``.
      image_size: for ``folder:PATH``, the height and width to bring all images to.

    Raises:
      UsageError: there is none of this name, or it cannot be loaded; the message says
        why and what to do.
    """
    check_dataset_name(name)
    if name.startswith(PREFIX):
        return load_folder(name, image_size)
    if image_size is not None:
        raise UsageError(f"--image-size: only for {PREFIX}PATH, not for {name}")
    if name in STREAMED:
        raise UsageError(f"--dataset {name}: too large for memory; it is streamed")
    return DATASETS[name]()


def load_streamed(name: str) -> StreamedDataset:
    """Opens the data set called ``name``, one of :data:`STREAMED`.

    Raises:
      UsageError: there is none of this name, or it cannot be read; the message says
        why and what to do.
    """
    check_name("--dataset", name, STREAMED)
    return stream_prepared(prepare(name))
