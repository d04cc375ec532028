"""What a folder and an archive of images have in common: paths, classes, images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from experiments.data.files import shown
from experiments.errors import UsageError

SPLITS = ("train", "test")
_CLUTTER = ("Thumbs.db", "desktop.ini", "__MACOSX")


def is_clutter(name: str) -> bool:
    """Whether it is a name that systems leave behind: .DS_Store, Thumbs.db, ..."""
    return name.startswith(".") or name in _CLUTTER


@dataclass(frozen=True)
class Item:
    """An image that was not decoded yet.

    Attributes:
      split: ``"train"`` or ``"test"``.
      label: name of its class.
      name: of the file within its class.
      where: names it in errors.
      read: its bytes.
    """

    split: str
    label: str
    name: str
    where: str
    read: Callable[[], bytes]


class Source(Protocol):
    """Where images come from."""

    path: Path

    def fingerprint(self) -> str:
        """A string that changes with the source, without reading its content."""
        ...

    def content(self) -> str:
        """A string that stands for the content alone, wherever it lies."""
        ...

    def items(self, layout: "Layout") -> Iterator[Item]:
        """Each image once; the layout takes note of everything that is met."""
        ...


@dataclass
class Layout:
    """The classes of ``train/CLASS/*`` and ``test/CLASS/*``, as they are met.

    Attributes:
      source: the folder or archive, named in errors.
      images: number of images of each class of each split.
    """

    source: str
    images: dict[str, dict[str, int]] = field(
        default_factory=lambda: {split: {} for split in SPLITS}
    )

    def add_folder(self, parts: tuple[str, ...]) -> None:
        """Takes note of a folder: an empty one shows that a class has no image."""
        if len(parts) == 2 and self._counts(parts):
            self.images[parts[0]].setdefault(parts[1], 0)

    def add_file(self, parts: tuple[str, ...]) -> bool:
        """Takes note of a file; False if it is none of the images.

        Raises:
          UsageError: it lies in train/ or test/, but not in a class.
        """
        if not self._counts(parts):
            return False
        if len(parts) != 3:
            raise UsageError(
                f"{self.source}: {shown('/'.join(parts))} does not lie in the folder of"
                f" a class, {parts[0]}/CLASS/IMAGE"
            )
        split, name, _ = parts
        self.images[split][name] = self.images[split].get(name, 0) + 1
        return True

    def classes(self) -> tuple[str, ...]:
        """The classes, sorted, when everything has been added.

        Raises:
          UsageError: there are none, one has no image, or train and test differ.
        """
        for split in SPLITS:
            if not self.images[split]:
                raise UsageError(
                    f"{self.source}: has no {split}/CLASS/IMAGE; train/ and test/"
                    " need a folder for each class"
                )
            for name in sorted(self.images[split]):
                if not self.images[split][name]:
                    raise UsageError(
                        f"{self.source}: class {split}/{shown(name)} has no image"
                    )
        train, test = (set(self.images[split]) for split in SPLITS)
        for split, missing in (("test", train - test), ("train", test - train)):
            if missing:
                raise UsageError(
                    f"{self.source}: {split}/ lacks {_some(missing)}; train/ and test/"
                    " need the same classes"
                )
        return tuple(sorted(train))

    def _counts(self, parts: tuple[str, ...]) -> bool:
        """Whether a path lies in train/ or test/ and is no clutter."""
        return len(parts) > 1 and parts[0] in SPLITS and not any(map(is_clutter, parts))


def _some(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted(map(shown, names))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
