"""Runs optimizers over gradients that are given beforehand, and compares."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference

# Leaves of every rank, and the number of steps, of comparisons with the reference.
SHAPES = {
    "attention": (6, 4),
    "bias": (5,),
    "conv": (3, 2, 2, 4),
    "conv1d": (3, 2, 5),
    "scale": (),
}
STEPS = 25


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


def falling(start, end=0.0):
    """A linear schedule in the precision of the session, whatever the count's."""
    return lambda count: start + (end - start) * jnp.asarray(count, float) / (2 * STEPS)


def wavy(count):
    """A schedule that goes up and down."""
    return 0.5 + 0.4 * jnp.cos(0.3 * jnp.asarray(count, float))


def random_tree(seed, shapes=SHAPES, dtype=np.float64):
    rng = np.random.default_rng(seed)

    def leaf(shape):
        x = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return np.asarray(x, dtype)

    return {name: leaf(shape) for name, shape in shapes.items()}


def gradients_of(seed, tangent=None, shapes=SHAPES, dtype=np.float64):
    """Gradients with a common direction, so that the weights travel.

    Leaves named in ``tangent`` get gradients orthogonal to each of their groups,
    as those of a scale-invariant loss are.
    """
    drift = random_tree((seed, 0), shapes, dtype)

    def gradient(step, x):
        noise = random_tree((seed, 1, step), shapes, dtype)
        grads = {name: drift[name] + noise[name] for name in shapes}
        for name, axes in (tangent or {}).items():
            g, at = grads[name], x[name]
            radial = reference.dot(at, g, axes) / reference.dot(at, at, axes)
            grads[name] = g - radial * at
        return grads

    return gradient


def compare(optimizer, coroutine, gradient):
    """The library against a reference that drives the gradients."""
    start = next(coroutine)
    gradients, trajectory = reference.walk(coroutine, start, gradient, STEPS)
    actual, state = follow_slowly(optimizer, start, gradients)
    assert_same_trajectory(actual, stack(trajectory), tolerance=1e-9)
    return actual, state
