"""Crops of large photographs, on the host: the published ones for ImageNet."""

import math

import numpy as np
from PIL import Image

_BILINEAR = Image.Resampling.BILINEAR


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A part of the image, brought to ``size`` x ``size``.

    Args:
      image: any size.
      rng: decides which part.
      size: of the result.
      scale: bounds of the part's area, as a share of the image's.
      ratio: bounds of the part's width divided by its height.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        part_width = round(math.sqrt(area * aspect))
        part_height = round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = int(rng.integers(width - part_width + 1))
            top = int(rng.integers(height - part_height + 1))
            break
    else:  # a narrow image: its middle, as much as the ratio allows
        part_width = min(width, max(1, round(height * ratio[1])))
        part_height = min(height, max(1, round(width / ratio[0])))
        left, top = (width - part_width) // 2, (height - part_height) // 2
    box = (left, top, left + part_width, top + part_height)
    return image.crop(box).resize((size, size), _BILINEAR)


def random_mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image, mirrored left to right with probability 1/2."""
    if rng.random() < 0.5:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def central_crop(image: Image.Image, size: int) -> Image.Image:
    """The shorter side brought to ``size * 256 / 224``, and the middle of that."""
    shorter = round(size * 256 / 224)
    width, height = image.size
    factor = shorter / min(width, height)
    width = max(shorter, int(width * factor))
    height = max(shorter, int(height * factor))
    resized = image.resize((width, height), _BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))
