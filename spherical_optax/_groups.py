"""Arithmetic on the groups of one leaf, in double precision."""

from collections.abc import Sequence

import numpy as np

from spherical_optax import geometry
from spherical_optax._probe import wide
from spherical_optax.labels import ChannelAxesTable

# Gradients are inversely proportional to the scale, up to so much of their length.
DISAGREEMENT = 0.25


def candidates(shape: tuple[int, ...], table: ChannelAxesTable) -> list[str]:
    """The labels that may hold for a leaf, the finest first.

    Not those for which a leaf has too few axes, or groups of a single weight: there
    orthogonal to the weights means no gradient at all.
    """
    sizes = {}
    for label, axes in table.items():
        if axes is None or len(axes) > len(shape):
            continue
        if any(not -len(shape) <= n < len(shape) for n in axes):
            continue
        size = geometry.group_size(shape, axes)
        if size >= 2:
            sizes[label] = size
    return sorted(sizes, key=lambda label: sizes[label])


def inner_axes(shape: tuple[int, ...], axes: Sequence[int] | None) -> tuple[int, ...]:
    """The axes within a group; without channel axes, all."""
    return geometry.group_axes(len(shape), axes or ())


def length(x: np.ndarray) -> float:
    """The norm of a whole leaf."""
    return float(np.linalg.norm(np.ravel(wide(x))))


def lengths(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The norm of every group."""
    return np.sqrt(np.sum(np.abs(wide(x)) ** 2, axes))


def strength(g: np.ndarray, x: np.ndarray) -> float:
    """What a relative change of a whole leaf would do to the loss."""
    return length(g) * length(x)


def radial(g: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The absolute value of <g, x>, group by group."""
    return np.abs(np.sum(np.real(wide(g) * wide(x)), axes))


def alike(first: float, second: float) -> bool:
    """Whether two lengths are the same up to a factor of 4."""
    return first <= 4 * second and second <= 4 * first


def agree(g: np.ndarray, expected: np.ndarray) -> bool:
    """Whether gradients agree, slice by slice of the last axis."""

    def slices(x):
        return np.linalg.norm(x.reshape(-1, x.shape[-1] if x.ndim else 1), axis=0)

    usual = np.sqrt(np.mean(slices(expected) ** 2))
    allowed = DISAGREEMENT * slices(expected) + DISAGREEMENT / 5 * usual
    return bool(np.all(slices(g - expected) <= allowed))
