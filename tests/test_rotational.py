"""Rotational: against NumPy, and what it must not turn."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_spheres as reference
from labelled_leaves import BASES, LABELLED, by_base, by_type, follows
from trajectories import falling, random_tree

import spherical_optax as so


@pytest.mark.parametrize("rate", [0.03, falling(0.1)], ids=["number", "schedule"])
@by_type
@by_base
def test_rotational(base, dtype, rate, x64):
    transformation, direction = BASES[base]
    options = {"weight_decay": 0.2, "b1": 0.8, "norm_decay": 0.7, "eps": 1e-3}
    follows(
        so.rotational(transformation, rate, **options, **LABELLED),
        lambda x, axes: reference.rotational(x, axes, direction(), rate, **options),
        dtype,
    )


@pytest.mark.parametrize("shape", [(3, 3, 16, 4), (1, 4)], ids=str)
@pytest.mark.parametrize("angle", [0.2, 0.01])
def test_rotational_does_not_turn_by_rounding_errors(shape, angle):
    """Where the direction is along the weights, or a group is of a single one."""
    start = {"w": random_tree(7, {"w": shape}, np.float32)["w"]}
    optimizer = so.rotational(
        optax.identity(), angle**2, 0.5, b1=0.0, labels={"w": "filter"}
    )
    step = jax.jit(cases.make_step(optimizer))
    params, state = start, optimizer.init(start)
    for _ in range(20):
        params, state = step(params, state, {"w": 0.37 * params["w"]})
        np.testing.assert_allclose(params["w"], start["w"], rtol=1e-5)


def test_a_centred_group_of_two_does_not_turn():
    """It has one direction and its opposite, whatever the gradient says."""
    start = {"w": jnp.asarray([[1.0, -0.7], [-1.0, 0.7]])}
    optimizer = so.rotational(optax.scale_by_adam(), 0.01, 0.1, labels={"w": "filter"})
    step = jax.jit(cases.make_step(optimizer))
    params, state = start, optimizer.init(start)
    for seed in range(20):
        grads = random_tree(seed, {"w": (2, 2)}, np.float32)
        params, state = step(params, state, grads)
        np.testing.assert_allclose(params["w"], start["w"], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rotational_tells_what_is_not_a_number_from_rounding_errors(bad):
    """NaN stays, for who looks for it; the infinite counts as the largest."""
    params = {"conv": random_tree(7, {"conv": (3, 3, 2, 4)}, np.float32)["conv"]}
    grads = {"conv": jnp.asarray(params["conv"]).at[0, 0, 0, 0].set(bad)}
    optimizer = so.rotational(optax.identity(), 0.1, 0.5)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert bool(jnp.any(jnp.isnan(updates["conv"]))) == np.isnan(bad)


def test_no_weight_decay_no_rotation():
    params = {"conv": random_tree(6, {"conv": (3, 3, 2, 4)}, np.float32)["conv"]}
    optimizer = so.rotational(optax.scale_by_adam(), 0.1, weight_decay=0.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["conv"], 0, atol=1e-6)
