"""Decoded images on disk, so that a data set is decoded once.

An entry is a folder with four arrays and ``entry.json``. It has a key that stands for
the content it was made from; it is complete or not there at all.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import Split
from experiments.data.files import lock, new_file, new_folder, say
from experiments.errors import UsageError

FORMAT = 1  # part of every key: raise it when an entry has to look different
_ENTRY = "entry.json"
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Arrays:
    """What an entry holds.

    Attributes:
      train: images and labels to learn from.
      test: images and labels to be judged by.
      classes: their names, in the order of the labels.
      mean: of each channel of the training images, in bytes.
      std: likewise.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def cache_root() -> Path:
    """``$SPHERICAL_OPTAX_CACHE``, or ``~/.cache/spherical_optax``."""
    root = os.environ.get("SPHERICAL_OPTAX_CACHE")
    return Path(root or "~/.cache/spherical_optax").expanduser().absolute()


def key_of(*parts: Any) -> str:
    """A name for whatever determines an entry."""
    text = json.dumps([FORMAT, *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached_arrays(key: str, source: str, build: Callable[[], Arrays]) -> Arrays:
    """The entry of this key, built if it is not there.

    Args:
      key: from :func:`key_of`.
      source: what it is made from, for the reader.
      build: makes the arrays; called by one process at a time.
    """
    entry = cache_root() / "arrays" / key
    arrays = _read(entry)
    if arrays is not None:
        return arrays
    with contextlib.ExitStack() as stack:
        waiting_for = f"it decodes {source} into {entry}"
        with _usable(entry):
            stack.enter_context(lock(cache_root() / "locks" / key, waiting_for))
        arrays = _read(entry)  # made by the process that had the lock
        if arrays is None:
            if entry.exists():
                say(f"{entry}: damaged; made anew")
            arrays = build()
            with _usable(entry):
                _write(entry, source, arrays)
    return arrays


def remembered_key(source: Path, fingerprint: str, make_key: Callable[[], str]) -> str:
    """The key of a source, without reading its content a second time.

    Args:
      source: a file or a folder.
      fingerprint: of the source, cheap, and another one after every change.
      make_key: makes the key from the content.
    """
    note = cache_root() / "sources" / f"{key_of(str(source))}.json"
    try:
        known = json.loads(note.read_text())
        if known["fingerprint"] == fingerprint:
            return str(known["key"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # never seen, or another version's note: it is written again
    key = make_key()
    with _usable(note), new_file(note) as file:
        known = {"source": str(source), "fingerprint": fingerprint, "key": key}
        file.write_text(json.dumps(known, indent=2))
    return key


def entries() -> list[tuple[str, Path, int]]:
    """Source, folder and bytes of each entry."""
    found = []
    for entry in sorted(cache_root().glob(f"arrays/*/{_ENTRY}")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            source = str(json.loads(entry.read_text())["source"])
            size = sum(file.stat().st_size for file in entry.parent.iterdir())
            found.append((source, entry.parent, size))
    return found


def _write(entry: Path, source: str, arrays: Arrays) -> None:
    with new_folder(entry) as folder:
        shapes = {}
        for split in _SPLITS:
            for kind, array in vars(getattr(arrays, split)).items():
                np.save(folder / f"{split}_{kind}.npy", array)
                shapes[f"{split}_{kind}"] = [list(array.shape), str(array.dtype)]
        facts = {
            "source": source,
            "classes": arrays.classes,
            "mean": arrays.mean,
            "std": arrays.std,
            "arrays": shapes,
            "labels": {s: _digest(getattr(arrays, s).labels) for s in _SPLITS},
        }
        (folder / _ENTRY).write_text(json.dumps(facts, indent=2))


def _read(entry: Path) -> Arrays | None:
    """The arrays of an entry; None where it is missing or not as it was written.

    Of the images only shape and type are looked at: they may be more than fits into
    memory.
    """
    try:
        facts = json.loads((entry / _ENTRY).read_text())
        loaded = {}
        for name, (shape, dtype) in facts["arrays"].items():
            # Mapped: of several processes each reads what it needs.
            array = np.load(entry / f"{name}.npy", mmap_mode="c")
            if [list(array.shape), str(array.dtype)] != [shape, dtype]:
                return None
            loaded[name] = array
        train, test = (
            Split(loaded[f"{s}_images"], loaded[f"{s}_labels"]) for s in _SPLITS
        )
        mean, std = (tuple(map(float, facts[name])) for name in ("mean", "std"))
        labels = {s: _digest(loaded[f"{s}_labels"]) for s in _SPLITS}
        # An entry of an older version has no digests.
        if labels != facts.get("labels", labels):
            return None
        if {len(mean), len(std)} != {train.images.shape[-1]}:
            return None
        return Arrays(train, test, tuple(facts["classes"]), mean, std)
    except (OSError, EOFError, ValueError, LookupError, TypeError):
        return None


def _digest(labels: np.ndarray) -> str:
    return hashlib.sha256(labels.tobytes()).hexdigest()


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Names the cache in the error if it cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror or error}; SPHERICAL_OPTAX_CACHE can name another"
            " folder for decoded images"
        ) from error
