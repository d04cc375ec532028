"""Inner products, norms and moves on spheres, for any shape and any axes."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spherical_optax import geometry

pytestmark = pytest.mark.usefixtures("strict_ranks")
LOW = ("float16", "bfloat16")


# Shapes with channel axes: none, one, several, all; from the front and the end.
# Drawn from a list, because every new shape is compiled anew.
GROUPS = [
    ((), ()),
    ((1,), ()),
    ((5,), (0,)),
    ((4, 3), ()),
    ((4, 3), (-1,)),
    ((4, 3), (0, 1)),
    ((2, 1, 3), (-2,)),
    ((2, 1, 3), (2, 0)),
    ((2, 3, 2, 4), (-1,)),
    ((2, 3, 2, 4), (-2, -1)),
    ((2, 3, 2, 4), (1, -4)),
]
groups = st.tuples(st.sampled_from(GROUPS), st.integers(0, 2**16)).map(
    lambda drawn: (*drawn[0], drawn[1])
)


def arrays(shape, seed, number, dtype=np.float64):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        x = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        yield np.asarray(x, dtype)


def summed(shape, axes):
    kept = {axis % len(shape) for axis in axes} if shape else set()
    return tuple(axis for axis in range(len(shape)) if axis not in kept)


def reduced(shape, axes):
    return tuple(1 if a in summed(shape, axes) else n for a, n in enumerate(shape))


def close(x, y, tolerance=1e-12):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


both = pytest.mark.parametrize("dtype", [np.float64, np.complex128])


@both
@given(groups)
def test_dot_and_norm(dtype, group):
    shape, axes, seed = group
    x, y = arrays(shape, seed, 2, dtype)
    with jax.enable_x64(True):
        dot, norm = geometry.dot(x, y, axes), geometry.norm(x, axes)
    chex.assert_shape((dot, norm), reduced(shape, axes))
    assert dot.dtype == norm.dtype == np.float64
    inside = summed(shape, axes)
    close(dot, np.sum((x.conj() * y).real, axis=inside, keepdims=True))
    close(norm, np.sqrt(np.sum(np.abs(x) ** 2, axis=inside, keepdims=True)))


@both
@given(groups)
def test_dot_is_an_inner_product(dtype, group):
    shape, axes, seed = group
    x, y, z = arrays(shape, seed, 3, dtype)
    with jax.enable_x64(True):
        close(geometry.dot(x, y, axes), geometry.dot(y, x, axes))
        close(
            geometry.dot(x, 2 * y - z, axes),
            2 * geometry.dot(x, y, axes) - geometry.dot(x, z, axes),
        )
        product = geometry.norm(x, axes) * geometry.norm(y, axes)
        assert np.all(np.abs(geometry.dot(x, y, axes)) <= product * (1 + 1e-12))


@both
@given(groups)
def test_projection_is_orthogonal_and_idempotent(dtype, group):
    shape, axes, seed = group
    x, y = arrays(shape, seed, 2, dtype)
    with jax.enable_x64(True):
        tangent = geometry.project(x, y, axes)
        chex.assert_equal_shape([tangent, y])
        close(geometry.dot(x, tangent, axes), np.zeros(reduced(shape, axes)), 1e-11)
        close(geometry.project(x, tangent, axes), tangent, 1e-11)
        # What is removed lies along x, group by group: a number times x.
        share = geometry.dot(x, y, axes) / geometry.dot(x, x, axes)
        close(y - tangent, share * x, 1e-11)
        close(geometry.project(-3.0 * x, y, axes), tangent, 1e-11)
        close(geometry.project(x, x, axes), np.zeros(shape), 1e-11)


@both
@given(groups)
def test_transport(dtype, group):
    shape, axes, seed = group
    x, y, m = arrays(shape, seed, 3, dtype)
    with jax.enable_x64(True):
        carried = geometry.transport(x, y, m, axes)
        chex.assert_equal_shape([carried, m])
        xy, my, yy = (geometry.dot(*p, axes) for p in ((x, y), (m, y), (y, y)))
        close(carried, (xy * m - my * x) / yy, 1e-9)
        scale = geometry.norm(carried, axes) * geometry.norm(y, axes) + 1.0
        assert np.all(np.abs(geometry.dot(y, carried, axes)) <= 1e-11 * scale)
        with_eps = geometry.transport(x, y, m, axes, eps=0.25)
        close(with_eps * (yy + 0.25), carried * yy, 1e-9)


@both
@given(groups)
def test_transport_of_a_tangent_vector(dtype, group):
    """It stays as long relative to the radius, once more relative to that."""
    shape, axes, seed = group
    x, _, m = arrays(shape, seed, 3, dtype)
    with jax.enable_x64(True):
        # A step along m itself, as without momentum, stays in the plane of x and m.
        m = geometry.project(x, m, axes)
        y = x + 0.3 * m
        shrink = geometry.norm(x, axes) / geometry.norm(y, axes)
        carried = geometry.transport(x, y, m, axes)
        close(geometry.norm(carried, axes), shrink * geometry.norm(m, axes), 1e-9)
        # Growing alone divides by the growth: m at c x is the gradient m / c.
        close(geometry.transport(x, 2.0 * x, m, axes), m / 2, 1e-9)
        # Nothing happens without a step.
        close(geometry.transport(x, x, m, axes), m, 1e-9)
        # The same in a larger world.
        close(geometry.transport(5 * x, 5 * y, m, axes), carried, 1e-9)


@both
@given(groups, st.floats(0.1, 10.0))
def test_retraction(dtype, group, radius):
    shape, axes, seed = group
    x, step = arrays(shape, seed, 2, dtype)
    ones = np.ones(reduced(shape, axes))
    with jax.enable_x64(True):
        kept = geometry.retract(x, step, axes)
        close(geometry.norm(kept, axes), geometry.norm(x, axes), 1e-11)
        fixed = geometry.retract(x, step, axes, radius=radius)
        close(geometry.norm(fixed, axes), radius * ones, 1e-11)
        cosine = geometry.dot(fixed, x + step, axes) / (
            radius * geometry.norm(x + step, axes)
        )
        close(cosine, ones, 1e-11)
        close(geometry.retract(x, np.zeros_like(x), axes), x, 1e-11)
        each = radius * (1 + np.arange(ones.size).reshape(ones.shape))
        many = geometry.retract(x, step, axes, radius=each)
        close(geometry.norm(many, axes), each, 1e-11)


def test_eps_of_the_retraction():
    x, step = np.array([3.0, 0.0], np.float32), np.array([0.0, 4.0], np.float32)
    moved = geometry.retract(x, step, (), radius=2.0, eps=5.0)
    close(moved, 2.0 / (5.0 + 5.0) * np.array([3.0, 4.0]), 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_types(dtype):
    """Arrays keep their type; numbers a group are real, float32 at least."""
    x, y, m = (jnp.asarray(a).astype(dtype) for a in arrays((3, 4), 0, 3))
    for axes in ((), (-1,), (0, 1)):
        assert geometry.dot(x, y, axes).dtype == jnp.float32
        assert geometry.norm(x, axes).dtype == jnp.float32
        assert geometry.project(x, y, axes).dtype == dtype
        assert geometry.transport(x, y, m, axes).dtype == dtype
        assert geometry.retract(x, y, axes).dtype == dtype
        assert geometry.retract(x, y, axes, radius=1.0).dtype == dtype
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        assert geometry.dot(x, x, ()).dtype == jnp.float32
        assert geometry.dot(jnp.real(x).astype(float), x, ()).dtype == jnp.float64


@pytest.mark.parametrize("dtype", LOW)
def test_sums_are_wider_than_the_arrays(dtype):
    x = jnp.full((64, 64, 2), 100, dtype)
    close(geometry.dot(x, x, (-1,)), np.full((1, 1, 2), 64 * 64 * 1e4), 1e-6)
    tangent = geometry.project(x, x.at[0].multiply(2), (-1,))
    assert bool(jnp.all(jnp.isfinite(tangent)))
    # Ten thousand small terms: a float16 sum would stop growing at 2048.
    many = jnp.ones(10_000, dtype)
    assert float(geometry.dot(many, many, ()).item()) == 10_000.0


def test_groups_of_zeros():
    zero, y = jnp.zeros((2, 3)), jnp.ones((2, 3))
    for result in (
        geometry.project(zero, y, (-1,)),
        geometry.transport(zero, zero, y, (-1,)),
        geometry.transport(y, zero, y, (-1,)),
        geometry.retract(zero, zero, (-1,)),
        geometry.retract(y, -y, (-1,), radius=1.0),
    ):
        assert bool(jnp.all(jnp.isfinite(result)))
    close(geometry.project(zero, y, (-1,)), y)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("axes", [(), (-1,)])
def test_empty_arrays(shape, axes):
    x = jnp.zeros(shape)
    chex.assert_shape(geometry.dot(x, x, axes), reduced(shape, axes))
    for result in (
        geometry.project(x, x, axes),
        geometry.transport(x, x, x, axes),
        geometry.retract(x, x, axes, radius=1.0),
    ):
        chex.assert_shape(result, shape)


@pytest.mark.parametrize(
    ("shape", "axes", "culprit"),
    [
        ((2, 3), (2,), "2"),
        ((2, 3), (-3,), "-3"),
        ((), (0,), "0"),
        ((2, 3), (0, -4), "-4"),
        ((2, 3), (-1, 1), "twice"),
        ((2, 3), (0.5,), "0.5"),
        ((2, 3), 0, "0"),
        ((2, 3), None, "None"),
        ((2, 3), "ab", "ab"),
    ],
)
def test_bad_axes(shape, axes, culprit):
    x = jnp.ones(shape)
    for function in (geometry.dot, geometry.project):
        with pytest.raises(ValueError, match="channel_axes") as caught:
            function(x, x, axes)
        assert culprit in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="channel_axes"):
        geometry.norm(x, axes)


def test_shapes_must_agree():
    x, y = jnp.ones((2, 3)), jnp.ones((1, 3))
    for arguments in ((x, y), (y, x)):
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            geometry.dot(*arguments, (-1,))
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            geometry.project(*arguments, (-1,))


@pytest.mark.parametrize(("shape", "axes"), GROUPS)
def test_size_and_shape_of_groups(shape, axes):
    inside = summed(shape, axes)
    assert geometry.group_axes(len(shape), axes) == inside
    assert geometry.group_size(shape, axes) == math.prod(shape[a] for a in inside)
    assert geometry.group_shape(shape, axes) == reduced(shape, axes)


def test_differentiable_at_zero():
    """No NaN hides behind a where: gradients through a group of zeros are finite."""
    x = jnp.zeros((2, 3)).at[:, 0].set(1.0)
    y = jnp.ones((2, 3))
    grads = jax.grad(lambda x: jnp.sum(geometry.project(x, y, (-1,))))(x)
    assert bool(jnp.all(jnp.isfinite(grads)))
