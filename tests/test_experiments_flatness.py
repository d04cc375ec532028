"""Measures of flatness, on functions whose answer is known."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import find_lr, flatness
from experiments.flatness import (
    epsilon_sharpness,
    largest_eigenvalue,
    relative_sharpness,
)

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(64, 6)), jnp.float32)
TARGETS = jnp.asarray(RNG.normal(size=(64, 3)), jnp.float32)


@pytest.mark.parametrize("module", [flatness, find_lr])
def test_examples_run(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def relu_network(params):
    """A network of two layers, as Dinh et al. rescale."""
    hidden = jax.nn.relu(INPUTS @ params["first"] + params["bias"])
    return jnp.mean((hidden @ params["second"] - TARGETS) ** 2)


@pytest.fixture(scope="module")
def trained():
    params = {
        "first": jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32),
        "bias": jnp.asarray(RNG.normal(size=8), jnp.float32),
        "second": jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32),
    }

    def step(_, params):
        grads = jax.grad(relu_network)(params)
        return jax.tree.map(lambda x, g: x - 0.05 * g, params, grads)

    return jax.lax.fori_loop(0, 400, step, params)


def rescaled(params, alpha):
    """The same function of the inputs."""
    return {
        "first": alpha * params["first"],
        "bias": alpha * params["bias"],
        "second": params["second"] / alpha,
    }


@pytest.mark.parametrize("curvature", [1.0, 40.0])
@pytest.mark.parametrize("epsilon", [1e-2, 1e-1])
def test_sharpness_of_a_parabola(curvature, epsilon):
    """The highest corner of the box: at 0 all sides are epsilon long."""

    def loss(x):
        return curvature * jnp.sum(x**2) / 2

    expected = 100 * curvature * 5 * epsilon**2 / 2
    found = epsilon_sharpness(loss, jnp.zeros(5), epsilon)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sharpness_away_from_zero():
    """The box grows with the weights, and the value at the point is taken off."""

    def loss(x):
        return jnp.sum(x**2)

    x, epsilon = jnp.array([2.0, -3.0]), 0.01
    corner = float(jnp.sum((jnp.abs(x) + epsilon * (jnp.abs(x) + 1)) ** 2))
    expected = 100 * (corner - 13) / 14
    np.testing.assert_allclose(epsilon_sharpness(loss, x, epsilon), expected, rtol=1e-4)


def test_relative_sharpness_of_an_angle():
    """1 - cos of the angle: the ball of radius epsilon is seen under arcsin epsilon."""

    def loss(params):
        x = params["w"]
        return 1 - x[0] / jnp.linalg.norm(x)

    for scale in (0.1, 1.0, 50.0):
        params = {"w": jnp.array([scale, 0.0, 0.0])}
        found = relative_sharpness(loss, params, 0.2, labels={"w": "layer"}, steps=200)
        expected = 100 * (1 - np.cos(np.arcsin(0.2)))
        np.testing.assert_allclose(found, expected, rtol=0.02)


def test_relative_sharpness_of_groups():
    """Each filter by itself: a parabola around unit vectors of two sizes."""

    def loss(params):
        return jnp.sum((params["w"] - jnp.diag(jnp.array([1.0, 10.0]))) ** 2)

    params = {"w": jnp.diag(jnp.array([1.0, 10.0]))}
    by_filter = relative_sharpness(loss, params, 0.1, labels={"w": "filter"})
    np.testing.assert_allclose(by_filter, 100 * (0.1**2 + 1.0**2), rtol=1e-4)
    by_layer = relative_sharpness(loss, params, 0.1, labels={"w": "layer"})
    np.testing.assert_allclose(by_layer, 100 * 0.1**2 * 101, rtol=1e-4)


def test_the_objection_of_dinh(trained):
    """Same outputs: another sharpness in a box and another Hessian, the same angles."""
    other = rescaled(trained, 100.0)
    np.testing.assert_allclose(relu_network(other), relu_network(trained), rtol=1e-5)
    box = [epsilon_sharpness(relu_network, p, 1e-3) for p in (trained, other)]
    assert box[1] > 5 * box[0]
    top = [largest_eigenvalue(relu_network, p) for p in (trained, other)]
    assert top[1] > 5 * top[0]
    labels = dict.fromkeys(trained, "layer")
    ball = [
        relative_sharpness(relu_network, p, 0.01, labels=labels)
        for p in (trained, other)
    ]
    np.testing.assert_allclose(ball[1], ball[0], rtol=1e-3)


def normalized_network(params):
    """Batch norm after every product, so that no column's length counts; then ReLU."""
    hidden = INPUTS @ params["first"]
    hidden = (hidden - hidden.mean(0)) / jnp.std(hidden, 0)
    return jnp.mean((jax.nn.relu(hidden) @ params["second"] - TARGETS) ** 2)


SCALES = st.lists(
    st.floats(1e-3, 1e3, allow_subnormal=False), min_size=8, max_size=8
).map(lambda scales: jnp.asarray(scales, jnp.float32))


@settings(max_examples=5)
@given(SCALES)
def test_sharpness_on_spheres_does_not_see_the_scale_of_filters(trained, scales):
    labels = {"first": "filter", "second": "euclidean"}
    weights = {name: trained[name] for name in labels}
    scaled = {**weights, "first": weights["first"] * scales}
    one, other = (
        relative_sharpness(normalized_network, p, 0.02, labels=labels, steps=8)
        for p in (weights, scaled)
    )
    np.testing.assert_allclose(other, one, rtol=2e-3)


@settings(max_examples=5)
@given(st.floats(1e-2, 1e2))
def test_sharpness_on_spheres_does_not_see_the_scale_of_layers(trained, alpha):
    labels = dict.fromkeys(trained, "layer")
    one, other = (
        relative_sharpness(relu_network, p, 0.02, labels=labels, steps=8)
        for p in (trained, rescaled(trained, alpha))
    )
    np.testing.assert_allclose(other, one, rtol=2e-3)


def test_the_other_measures_see_the_scale_of_filters(trained):
    """So that the tests above are no tests of a constant."""
    weights = {name: trained[name] for name in ("first", "second")}
    scaled = {**weights, "first": weights["first"] * jnp.logspace(-2, 2, 8)}
    for measure in (epsilon_sharpness, largest_eigenvalue):
        one, other = (measure(normalized_network, p) for p in (weights, scaled))
        assert not 0.5 < other / one < 2
    labels = {"first": "layer", "second": "euclidean"}  # no groups, no invariance
    one, other = (
        relative_sharpness(normalized_network, p, 0.02, labels=labels, steps=8)
        for p in (weights, scaled)
    )
    assert not 0.9 < other / one < 1.1


@pytest.mark.parametrize("size", [3, 40])
def test_eigenvalue_of_a_quadratic_form(size):
    rng = np.random.default_rng(size)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    values = np.linspace(-20, 12, size)  # the largest is not the largest in size
    matrix = jnp.asarray(basis @ np.diag(values) @ basis.T, jnp.float32)

    def loss(params):
        x = jnp.concatenate([params["a"], params["b"]])
        return x @ matrix @ x / 2

    params = {"a": jnp.ones(2), "b": jnp.zeros(size - 2)}
    np.testing.assert_allclose(largest_eigenvalue(loss, params), 12, rtol=1e-3)


def test_eigenvalue_is_that_of_the_whole_hessian(trained):
    flat, unravel = jax.flatten_util.ravel_pytree(trained)
    hessian = jax.hessian(lambda x: relu_network(unravel(x)))(flat)
    expected = np.linalg.eigvalsh(np.asarray(hessian, np.float64))[-1]
    np.testing.assert_allclose(
        largest_eigenvalue(relu_network, trained), expected, rtol=1e-4
    )


def test_a_flat_loss():
    def loss(x):
        return 1.0 + 0 * jnp.sum(x)

    assert epsilon_sharpness(loss, jnp.ones(3)) == 0
    assert relative_sharpness(loss, jnp.ones(3)) == 0
    assert largest_eigenvalue(loss, jnp.ones(3)) == 0
