"""Functions of a leaf, kept by their hyperparameters."""

import jax
import jax.numpy as jnp
import pytest

from spherical_optax._leaves import leaf_function


@pytest.fixture
def counted():
    """A function of a leaf, and how it was traced."""
    traced = []

    @leaf_function
    def scaled(x, *, factor):
        traced.append((x.shape, type(factor)))
        return (1 - factor) * x

    return scaled, traced


def test_it_is_traced_once_for_each_shape_and_number(counted):
    scaled, traced = counted
    for factor in (0.9, 0.9, 0.5):
        for size in (2, 3, 2):
            scaled(factor=factor)(jnp.ones(size))
    assert traced == 2 * [((2,), float), ((3,), float)]


def test_arrays_among_hyperparameters_are_arguments(counted):
    scaled, traced = counted
    found = [scaled(factor=jnp.asarray(n))(jnp.ones(2))[0] for n in (0.5, 0.25)]
    assert found == [0.5, 0.75]
    assert len(traced) == 1
    assert issubclass(traced[0][1], jax.core.Tracer)


def test_numbers_of_python_are_known_when_it_is_traced(counted):
    """``1 - 0.999`` of float32 is off by a part in 60,000."""
    scaled, _ = counted
    assert scaled(factor=0.999)(jnp.ones(1))[0] == jnp.float32(1 - 0.999)


def test_equal_numbers_of_other_types_are_others(counted):
    scaled, traced = counted
    for factor in (1, 1.0):
        scaled(factor=factor)(jnp.ones(2))
    assert [kind for _, kind in traced] == [int, float]


def test_gradients_and_maps_go_through(counted):
    scaled, _ = counted
    x = jnp.ones((2, 3))

    def total(factor):
        return jax.vmap(scaled(factor=factor))(x).sum()

    assert jax.grad(total)(0.5) == -6.0
