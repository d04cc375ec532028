"""Decoding with Pillow, in parallel.

Threads do it: Pillow lets go of the interpreter while it decodes, and, unlike
processes, they cost nothing to start beside a process that has started JAX.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from experiments.errors import UsageError

_T = TypeVar("_T")
_Result = TypeVar("_Result")

_CHUNK = 128  # images a task
_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def open_image(data: bytes, where: str) -> Image.Image:
    """Decodes an image to bytes of gray (mode L) or colour (mode RGB).

    Args:
      data: a file in any format that Pillow reads.
      where: names it in the error.

    Raises:
      UsageError: it cannot be read, or its values are not bytes.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in _GRAY + _COLOUR:
                raise ValueError(f"its values (mode {image.mode}) are not bytes")
            mode = "L" if image.mode in _GRAY else "RGB"
            return image if image.mode == mode else image.convert(mode)
    except Exception as error:  # a damaged file can do anything to a decoder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{where}: unreadable image ({reason})") from error


def decode(data: bytes, where: str, size: int | None = None) -> np.ndarray:
    """The bytes of an image, shape (height, width, 1 or 3).

    Args:
      data: a file in any format that Pillow reads.
      where: names it in the error.
      size: bring the shorter side to this, and cut a square from the middle.
    """
    image = open_image(data, where)
    if image.getexif().get(0x0112, 1) != 1:  # held sideways
        image = ImageOps.exif_transpose(image)
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)


def in_threads(
    function: Callable[[_T], _Result], items: Iterable[_T], workers: int | None = None
) -> Iterator[_Result]:
    """``map(function, items)``, in parallel and in order.

    Items are taken as they are needed, some chunks ahead: they need not fit into
    memory together.
    """
    Image.init()  # all formats now: threads that load them at once miss some
    workers = workers or os.cpu_count() or 1
    items = iter(items)
    pending: deque[Future[list[_Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while chunk := list(islice(items, _CHUNK)):
                pending.append(
                    pool.submit(lambda chunk: [*map(function, chunk)], chunk)
                )
                if len(pending) > 2 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
