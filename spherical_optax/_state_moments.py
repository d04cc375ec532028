"""Finds the moments in the state of any optimizer, by the names of their fields."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import GetAttrKey

from spherical_optax._adam_abs import ScaleByAdamAbsState
from spherical_optax._limits import saturated
from spherical_optax.geometry import widen
from spherical_optax.labels import path_string

_VECTORS = ("mu", "trace", "m1", "m2")  # the last two are AdEMAMix's
_SECOND_MOMENTS = ("nu", "nu_max")

Carry = Callable[[jax.Array], jax.Array]


class Move(NamedTuple):
    """What becomes of the moments of a leaf, and the shape of the leaf.

    ``magnitude`` is for means of absolute values, which go as gradients do.
    """

    shape: tuple[int, ...]
    vector: Carry
    magnitude: Carry
    second_moment: Carry


def check_not_centered(state: optax.OptState) -> None:
    """Raises a ValueError for second moments that are used less the first, squared."""

    def is_centered(node: Any) -> bool:
        return isinstance(node, optax.ScaleByRStdDevState)

    if any(map(is_centered, jax.tree.leaves(state, is_leaf=is_centered))):
        raise ValueError(
            "inner must not be centered: a variance nu - mu^2 does not follow the"
            " weights, and would become negative"
        )


def carry_moments(
    state: optax.OptState, moves: Mapping[tuple[Any, ...], Move]
) -> optax.OptState:
    """Carries all moments in a state; ``moves`` has the paths of the parameters.

    Raises:
      ValueError: a moment does not fit its leaf, or is of no leaf.
    """

    def has_means(node: Any) -> bool:
        return isinstance(node, ScaleByAdamAbsState)

    means = {
        path
        for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=has_means)
        if has_means(node)
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _carry_leaf(path, leaf, moves, means), state
    )


def _carry_leaf(path, leaf, moves, means):
    """Carries one leaf of a state if its path says that it is a moment.

    The path of a moment is the field's name followed by the path of a parameter;
    ``means`` are those of states whose ``nu`` is a mean of absolute values.
    """
    names = [key.name if isinstance(key, GetAttrKey) else None for key in path]
    for depth, name in enumerate(names):
        if name in _VECTORS + _SECOND_MOMENTS and path[depth + 1 :] in moves:
            move, carried = moves[path[depth + 1 :]], None
            if name in _SECOND_MOMENTS:
                scale = move.magnitude if path[:depth] in means else move.second_moment
                carried = scale(widen(leaf))
            elif leaf.shape == move.shape:
                carried = move.vector(widen(leaf))
            if carried is None or carried.shape != leaf.shape:
                where = path_string(path[depth + 1 :])
                raise ValueError(
                    f"the moment {name!r} of the leaf {where!r} has shape"
                    f" {leaf.shape}, which does not fit the parameter's {move.shape}"
                )
            return saturated(carried, leaf.dtype)
    slices = itertools.combinations(range(len(path) + 1), 2)
    if not any(path[start:end] in moves for start, end in slices):
        for name in names:
            if name in _VECTORS + _SECOND_MOMENTS:
                raise ValueError(
                    f"inner must keep its moments leaf by leaf: {name!r} is of no leaf"
                    " of the parameters, as under optax.flatten"
                )
    return leaf
