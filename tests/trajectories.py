"""Runs an optimizer over gradients that are given beforehand."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax


def follow(
    optimizer: optax.GradientTransformation,
    params: Mapping[str, Any],
    gradients: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], Any]:
    """Feeds ``gradients`` (stacked over steps) one by one, in a compiled loop.

    Returns the parameters after each step, stacked, and the last state.
    """

    @jax.jit
    def run(params, gradients):
        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        carry = (params, optimizer.init(params))
        (_, state), trajectory = jax.lax.scan(step, carry, gradients)
        return trajectory, state

    trajectory, state = run(dict(params), dict(gradients))
    return {name: np.asarray(leaf) for name, leaf in trajectory.items()}, state


def follow_slowly(
    optimizer: optax.GradientTransformation,
    params: Mapping[str, Any],
    gradients: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, np.ndarray], Any]:
    """The same without compiling, which pays where there are few steps."""
    state, trajectory = optimizer.init(params), []
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return stack(trajectory), state


def stack(trees: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """A list of trees as one tree of stacked leaves."""
    return {name: np.stack([tree[name] for tree in trees]) for name in trees[0]}


def assert_same_trajectory(
    actual: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: float = 1e-9,
) -> None:
    """Compares every leaf at every step, as a whole and number by number.

    As a whole: the largest difference is at most ``tolerance`` times the largest
    number. Number by number: the same relative to each number, with an absolute
    allowance of ``1e-4 tolerance`` of the largest for those that pass near zero.
    """
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        got = np.asarray(actual[name])
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype, name
        off = np.abs(got - want).reshape(len(want), -1)
        magnitude = np.abs(want).reshape(len(want), -1)
        largest = magnitude.max(axis=1, keepdims=True)
        relative = off.max(axis=1) / np.where(largest > 0, largest, 1.0)[:, 0]
        worst = int(np.argmax(~(relative <= tolerance)))
        assert np.all(relative <= tolerance), (
            f"{name}: relative error {relative[worst]:.2e} at step {worst + 1}"
        )
        allowed = tolerance * magnitude + 1e-4 * tolerance * largest
        assert np.all(off <= allowed), f"{name}: a number differs from its reference"
