"""Small image folders and archives, made for the tests of the data sets."""

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(array: np.ndarray, file_format: str = "PNG") -> bytes:
    """An image file with these pixels."""
    file = io.BytesIO()
    image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    image.save(file, file_format)
    return file.getvalue()


def some_images(
    classes: Iterable[str] = ("ant", "bee", "cat"),
    train: int = 4,
    test: int = 2,
    shape: tuple[int, ...] = (32, 32, 3),
) -> dict[str, bytes]:
    """Path to file, in the layout of ``folder:PATH``."""
    files = {}
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            for number in range(count):
                path = f"{split}/{name}/{number}.png"
                files[path] = encoded(pixels(len(files), shape))
    return files


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the files below a folder."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def write_tar(
    path: Path,
    files: Mapping[str, bytes],
    mode: str = "w",
    extra: Iterable[tarfile.TarInfo] = (),
) -> Path:
    """Packs the files, and members without content after them."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member)
    return path


def change_keeping_times(path: Path, data: bytes) -> None:
    """Overwrites a file and sets back what can be set back."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
