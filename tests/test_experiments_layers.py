"""Layers that models are built from: the same numbers as Flax's, in fewer passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.bench.traffic import traffic_of
from experiments.models.layers import (
    FLAX,
    PYTORCH,
    BatchNorm,
    Layers,
    halve_by_max,
    relu,
)
from experiments.models.resnet import ResNet
from spherical_optax.labels import leaves_with_paths

both_types = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_relu_is_that_of_flax(dtype):
    x = jnp.array([-jnp.inf, -1.5, -0.0, 0.0, 1e-30, 2.0, jnp.inf, jnp.nan], dtype)
    for ours, theirs in (
        (relu(x), nnx.relu(x)),
        (jax.grad(lambda x: relu(x).sum())(x[:-1]), [0, 0, 0, 0, 1, 1, 1]),
    ):
        assert ours.dtype == x.dtype
        np.testing.assert_array_equal(
            np.asarray(ours, float), np.asarray(theirs, float)
        )


@both_types
def test_batch_norm_of_parts_sees_each_apart(dtype):
    """Outputs are those of the parts alone; statistics are the means of theirs."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 3, 3, 2)) + np.arange(8).reshape(8, 1, 1, 1))
    x = x.astype(dtype)

    def norm():
        return BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))

    together = norm()
    together.parts = 4
    y = together(x, train=True)
    assert y.dtype == x.dtype
    apart = [norm() for _ in range(4)]
    for part, layer in enumerate(apart):
        mine = slice(2 * part, 2 * part + 2)
        np.testing.assert_allclose(
            y[mine], layer(x[mine], train=True), rtol=1e-5, atol=1e-5
        )
    for name in ("mean", "var"):
        of_parts = [getattr(layer, name)[...] for layer in apart]
        np.testing.assert_allclose(
            getattr(together, name)[...], np.mean(of_parts, 0), rtol=1e-5, atol=1e-6
        )
    whole = norm()
    whole(x, train=True)
    np.testing.assert_allclose(together.mean[...], whole.mean[...], rtol=1e-5)
    assert (together.var[...] < whole.var[...] / 2).all()


@pytest.mark.parametrize("train", [True, False])
@both_types
def test_batch_norm_agrees_with_flax(train, dtype):
    x = np.random.default_rng(1).standard_normal((8, 12, 12, 3))
    x = jnp.asarray(3 * x + 1, dtype)
    ours, theirs = (
        kind(3, momentum=0.9, rngs=nnx.Rngs(0)) for kind in (BatchNorm, nnx.BatchNorm)
    )
    for norm in (ours, theirs):
        norm.scale.set_value(jnp.array([0.5, 1.0, 2.0]))
        norm.bias.set_value(jnp.array([-1.0, 0.0, 1.0]))
        norm.mean.set_value(jnp.array([0.1, 0.2, 0.3]))
    y, expected = ours(x, train=train), theirs(x, use_running_average=not train)
    assert (y.dtype, expected.dtype) == (dtype, jnp.float32)
    # Nothing but the outcome is rounded.
    rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected, rtol=rounding, atol=1e-5
    )
    state, expected_state = (
        dict(leaves_with_paths(nnx.state(norm))) for norm in (ours, theirs)
    )
    assert state.keys() == expected_state.keys()
    for path, leaf in state.items():
        np.testing.assert_allclose(leaf, expected_state[path], rtol=1e-5)


def test_layers_are_those_of_pytorch():
    layers = Layers(nnx.Rngs(0))
    norm = layers.batch_norm(4)
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    # Both sides are padded alike.
    conv = layers.conv(1, 1, 3, stride=2)
    conv.kernel.set_value(jnp.ones((3, 3, 1, 1)))
    corners = conv(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(corners, [[4, 6], [6, 9]])


@pytest.mark.parametrize("size", [(2, 2), (1, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("defaults", [PYTORCH, FLAX], ids=["pytorch", "flax"])
def test_kernels_larger_than_the_image(size, stride, defaults):
    conv = Layers(nnx.Rngs(0), defaults=defaults).conv(3, 5, 3, stride)
    x = jnp.asarray(
        np.random.default_rng(0).standard_normal((2, *size, 3)), jnp.float32
    )
    plain = nnx.clone(conv)
    plain.conv_general_dilated = jax.lax.conv_general_dilated
    grads = nnx.grad(lambda conv, x: jnp.sum(jnp.sin(conv(x))), argnums=(0, 1))
    for y, expected in zip(
        jax.tree.leaves((conv(x), grads(conv, x))),
        jax.tree.leaves((plain(x), grads(plain, x))),
        strict=True,
    ):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1), (1, 6)])
def test_halve_by_max_agrees_with_max_pool(size):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *size, 3)))

    def pool(x):
        return nnx.max_pool(x, (2, 2), (2, 2), padding="SAME")

    np.testing.assert_array_equal(halve_by_max(x), pool(x))
    grads = [
        jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (halve_by_max, pool)
    ]
    np.testing.assert_allclose(*grads, rtol=1e-6)


def gradients_of(norm, x, **mode):
    """Of scale, bias and inputs."""
    graph, *values = nnx.split(norm, nnx.Param, ...)
    params, rest = map(nnx.as_pure, values)
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def loss(params, x, rest):
        return jnp.sum(weights * jnp.square(nnx.merge(graph, params, rest)(x, **mode)))

    return jax.tree.leaves(jax.grad(loss, (0, 1))(params, x, rest))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_gradients_of_batch_norm_agree_with_those_of_flax(train, mean):
    """Also where the mean is many times the deviation; both work in float32."""
    x = jnp.linspace(0.5, 2.0, 3) * jax.random.normal(jax.random.key(0), (8, 5, 5, 3))
    ours, theirs = (
        kind(3, momentum=0.9, rngs=nnx.Rngs(0)) for kind in (BatchNorm, nnx.BatchNorm)
    )
    for norm in (ours, theirs):
        norm.scale.set_value(jnp.array([0.5, 1.0, 2.0]))
        norm.bias.set_value(jnp.array([-1.0, 0.0, 1.0]))
        norm.mean.set_value(jnp.full(3, mean + 0.1))
    for y, expected in zip(
        gradients_of(ours, mean + x, train=train),
        gradients_of(theirs, mean + x, use_running_average=not train),
        strict=True,
    ):
        rounding = (1 + mean) * 2e-6 * float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(y, expected, rtol=0, atol=rounding)


def bytes_of_a_step(blocks):
    """Of arrays that a gradient reads or writes, by its compiled program."""
    model = ResNet((8,), (blocks,), channels=3, num_classes=4, rngs=nnx.Rngs(0))
    graph, *values = nnx.split(model, nnx.Param, ...)
    params, rest = map(nnx.as_pure, values)
    images = jnp.zeros((16, 16, 16, 3))

    def loss(params, rest, images):
        return jnp.sum(nnx.merge(graph, params, rest)(images, train=True) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(params, rest, images).compile()
    return traffic_of(compiled.as_text() or "").read_or_written


def test_a_shortcut_is_added_once():
    """A block more costs no more where many are before it."""
    costs = {blocks: bytes_of_a_step(blocks) for blocks in (1, 2, 5, 6)}
    assert costs[6] - costs[5] == pytest.approx(costs[2] - costs[1], rel=1e-3)
