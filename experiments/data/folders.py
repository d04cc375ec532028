"""Image folders on disk."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from experiments.data.files import identity, sha256_of, shown
from experiments.data.layout import SPLITS, Item, Layout, is_clutter
from experiments.errors import UsageError

# Paths are strings here: of so many, Path objects would take most of the time.
_Met = tuple[tuple[str, ...], str, os.stat_result]


class Folder:
    """A folder with ``train/CLASS/*`` and ``test/CLASS/*``; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fingerprint(self) -> str:
        """Of the name, size and times of every file; contents are not read."""
        digest = hashlib.sha256()
        for parts, _, status in self._walk():
            is_folder = stat.S_ISDIR(status.st_mode)
            digest.update(_line(parts, [] if is_folder else identity(status)))
        return digest.hexdigest()

    def content(self) -> str:
        """Of the name and bytes of every file."""
        digest = hashlib.sha256()
        for parts, path, status in self._walk():
            with _named(path):
                is_folder = stat.S_ISDIR(status.st_mode)
                digest.update(
                    _line(parts, [] if is_folder else [sha256_of(Path(path))])
                )
        return digest.hexdigest()

    def items(self, layout: Layout) -> Iterator[Item]:
        """The images, in the order of their paths."""
        for parts, path, status in self._walk():
            if stat.S_ISDIR(status.st_mode):
                layout.add_folder(parts)
            elif layout.add_file(parts):
                yield Item(*parts, where=shown(path), read=Path(path).read_bytes)

    def _walk(self) -> Iterator[_Met]:
        """All that lies in train/ and test/, in the order of its paths."""
        for split in SPLITS:
            if (self.path / split).is_dir():
                yield from self._below((split,), str(self.path / split))

    def _below(self, parts: tuple[str, ...], folder: str) -> Iterator[_Met]:
        with _named(folder):
            names = sorted(os.listdir(folder))
        for name in names:
            if is_clutter(name):
                continue
            path, inner = os.path.join(folder, name), (*parts, name)
            try:
                status = os.stat(path)
            except OSError as error:
                raise _unreadable(path, error) from None
            if stat.S_ISDIR(status.st_mode):
                yield inner, path, status
                if len(inner) < 4:  # a level too many, for the error to name a file
                    yield from self._below(inner, path)
            elif stat.S_ISREG(status.st_mode):
                yield inner, path, status
            else:
                raise UsageError(f"{shown(path)}: not a regular file")


def _line(parts: tuple[str, ...], facts: list) -> bytes:
    return repr((parts, facts)).encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> UsageError:
    return UsageError(f"{shown(path)}: {error.strerror or error}")
