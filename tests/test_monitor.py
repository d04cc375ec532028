"""What ``monitor_sphere`` measures, against NumPy; where it is found again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from trajectories import random_tree

import spherical_optax as so

SHAPES = {"attention": (6, 4), "bias": (5,), "conv": (3, 2, 2, 4)}
LABELS = {"attention": "layer", "bias": "euclidean", "conv": "filter"}
AXES = {"attention": (), "conv": (-1,)}


def expected_statistics(x, x2, g, axes):
    """From the definitions, with the arc cosine that float64 can afford."""
    u = x2 - x
    norm, norm2 = reference.norm(x, axes), reference.norm(x2, axes)
    unit = x / norm
    tangent = u - reference.dot(unit, u, axes) * unit
    slope = g - reference.dot(unit, g, axes) * unit
    return {
        "norm_before": norm,
        "norm_after": norm2,
        "angle": np.arccos(reference.dot(x, x2, axes) / (norm * norm2)),
        "radial_share": np.abs(reference.dot(unit, u, axes)) / reference.norm(u, axes),
        "effective_learning_rate": reference.norm(tangent, axes)
        / (norm**2 * reference.norm(slope, axes)),
    }


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize(
    "inner", [optax.sgd(0.5), optax.adam(0.1), so.adamsrt(0.1, labels=LABELS)]
)
def test_numbers(inner, dtype, x64):
    params = random_tree(0, SHAPES, dtype)
    optimizer = so.monitor_sphere(inner, labels=LABELS)
    state, alone = optimizer.init(params), inner.init(params)
    for seed in range(1, 4):
        grads = random_tree(seed, SHAPES, dtype)
        updates, state = optimizer.update(grads, state, params)
        expected, alone = inner.update(grads, alone, params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        moved = optax.apply_updates(params, updates)
        found = so.sphere_statistics(state)
        assert found.keys() == AXES.keys()
        for path, axes in AXES.items():
            wanted = expected_statistics(
                params[path], np.asarray(moved[path]), grads[path], axes
            )
            for name, value in wanted.items():
                np.testing.assert_allclose(
                    getattr(found[path], name), value, rtol=1e-9, err_msg=name
                )
        params = moved


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_small_angles_in_single_precision(size):
    """Where an arc cosine would say 0."""
    x = np.float32(random_tree(1, SHAPES)["conv"])
    g = np.float32(random_tree(2, SHAPES)["conv"])
    optimizer = so.monitor_sphere(optax.sgd(np.float32(size)), labels="filter")
    _, state = optimizer.update({"w": g}, optimizer.init({"w": x}), {"w": x})
    (found,) = so.sphere_statistics(state).values()
    x, g = np.float64(x), np.float64(g)
    along = reference.dot(x, g, (-1,)) / reference.dot(x, x, (-1,))
    opposite = size * reference.norm(g - along * x, (-1,))
    adjacent = (1 - size * along) * reference.norm(x, (-1,))
    np.testing.assert_allclose(found.angle, np.arctan2(opposite, adjacent), rtol=1e-5)


def test_pure_growth_turns_nothing():
    params = {"w": jnp.full((8,), 3.0)}
    optimizer = so.monitor_sphere(optax.sgd(0.5), labels="layer")
    _, state = optimizer.update(params, optimizer.init(params), params)
    found = so.sphere_statistics(state)["w"]
    np.testing.assert_allclose(found.radial_share, 1, rtol=1e-6)
    np.testing.assert_allclose(found.angle, 0, atol=1e-6)
    np.testing.assert_allclose(found.norm_after, found.norm_before / 2, rtol=1e-6)


def test_turned_around():
    params = {"w": jnp.array([1.0, 0.0])}
    optimizer = so.monitor_sphere(optax.sgd(1.0), labels="layer")
    grads = {"w": jnp.array([3.0, 1e-3])}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    angle = so.sphere_statistics(state)["w"].angle
    np.testing.assert_allclose(angle, np.pi - 5e-4, rtol=1e-6)


# ---------------------------------------------------------------- wherever it is

PARAMS = {"a": {"conv": jnp.ones((3, 3, 2, 4))}, "b": jnp.ones(4)}
monitored = functools.partial(so.monitor_sphere, optax.adam(0.1))
PLACES = {
    "alone": lambda: monitored(),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), monitored()),
    "steps": lambda: optax.MultiSteps(monitored(), 2).gradient_transformation(),
    "finite": lambda: optax.apply_if_finite(monitored(), 3),
    "masked": lambda: optax.masked(monitored(), {"a": True, "b": False}),
    "injected": lambda: optax.inject_hyperparams(
        lambda rate: so.monitor_sphere(optax.adam(rate))
    )(rate=0.1),
    "partition": lambda: optax.partition(
        {"one": monitored(), "other": monitored()}, {"a": "one", "b": "other"}
    ),
    "nested": lambda: so.monitor_sphere(
        optax.chain(so.monitor_sphere(optax.adam(0.1), labels="euclidean"))
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_found_anywhere(place):
    optimizer = PLACES[place]()
    state = optimizer.init(PARAMS)
    for _ in range(2):
        _, state = optimizer.update(PARAMS, state, PARAMS)
    (path,) = so.sphere_statistics(state)
    assert path == "a/conv"
    found = so.sphere_statistics(state)[path]
    assert found.norm_before.shape == (1, 1, 1, 4)
    np.testing.assert_allclose(found.norm_before, np.sqrt(18), rtol=1e-6)


def test_paths_of_an_nnx_model():
    model = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, monitored(), wrt=nnx.Param)
    trainer.update(model, nnx.state(model, nnx.Param))
    assert list(so.sphere_statistics(trainer.opt_state)) == ["kernel"]


def test_none_or_two_monitors():
    with pytest.raises(ValueError, match=r"^state must hold .* monitor_sphere"):
        so.sphere_statistics(optax.adam(0.1).init(PARAMS))
    twice = optax.chain(monitored(), monitored()).init(PARAMS)
    with pytest.raises(ValueError, match="two monitors have the leaf 'a/conv'"):
        so.sphere_statistics(twice)
