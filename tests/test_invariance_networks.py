"""Labels measured on models of several frameworks, and trained with."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from normalized_models import (
    E,
    F,
    L,
    batch_norm,
    conv,
    head,
    images,
    relu,
    rms_norm,
    start,
    vectors,
)

import spherical_optax as so
from experiments.spheres import SPHERES, plot_spheres, sphere_metrics

# ---------------------------------------------------------------- frameworks


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(relu(self.norm(self.conv(x))).mean((1, 2)))


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3), use_bias=False, name="conv")(x)
        x = relu(linen.BatchNorm(use_running_average=False, name="norm")(x))
        return linen.Dense(4, name="head")(x.mean((1, 2)))


class EqxModel(eqx.Module):
    conv: dict
    norm: dict
    head: dict
    activation: object = relu

    def __call__(self, x):
        x = batch_norm(conv(x, self.conv["kernel"]))
        x = self.activation(x * self.norm["scale"] + self.norm["bias"])
        return x.mean((1, 2)) @ self.head["kernel"] + self.head["bias"]


EXPECTED = {
    "conv": {"kernel": F},
    "norm": {"scale": E, "bias": E},
    "head": {"kernel": E, "bias": E},
}


def cross_entropy(logits):
    return head(logits, jnp.eye(4))


def split(make):
    """A model's graph and random parameters, without compiling initializers."""
    graph, params, rest = nnx.split(
        nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...
    )
    rng = np.random.default_rng(0)

    def leaf(x):
        scale = 0.5 if x.ndim < 2 else np.sqrt(2 * x.shape[-1] / x.size)
        return jnp.asarray(scale * rng.normal(size=x.shape), x.dtype)

    return graph, jax.tree.map(leaf, params), jax.tree.map(jnp.zeros_like, rest)


@pytest.mark.parametrize("pure", [True, False])
def test_nnx(pure):
    graph, params, stats = split(NnxModel)
    params = nnx.as_pure(params) if pure else params

    def loss(params, stats, x):
        return cross_entropy(nnx.merge(graph, params, stats, copy=True)(x))

    labels = so.detect_invariance(loss, params, stats, images())
    assert nnx.to_pure_dict(nnx.State(labels)) == EXPECTED
    grads = jax.jit(jax.grad(loss))(params, stats, images())
    optimizer = so.adamg(0.1, labels=labels)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    norms = so.geometry.norm(jax.tree.leaves(moved["conv"])[0], (-1,))
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_a_model_that_counts_its_calls():
    graph, params, rest = split(NnxModel)

    def loss(params):
        return cross_entropy(nnx.merge(graph, params, rest)(images()))

    with pytest.raises(
        ValueError, match=r"loss_fn must .* nnx.merge\(..., copy=True\)"
    ):
        so.detect_invariance(loss, params)


def test_linen():
    model = LinenModel()
    variables = model.init(jax.random.key(0), images())

    def loss(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        return cross_entropy(model.apply(variables, x, mutable=["batch_stats"])[0])

    labels = so.detect_invariance(
        loss, variables["params"], variables["batch_stats"], images()
    )
    assert labels == EXPECTED


def test_equinox():
    shapes = {"conv": (3, 3, 3, 8), "head": (8, 4)}
    kernels = start(shapes)
    model = EqxModel(
        {"kernel": kernels["conv"]},
        {"scale": jnp.ones(8), "bias": jnp.zeros(8)},
        {"kernel": kernels["head"], "bias": jnp.zeros(4)},
    )

    def loss(model, x):
        return cross_entropy(model(x))

    labels = so.detect_invariance(loss, model, images())
    assert {name: getattr(labels, name) for name in EXPECTED} == EXPECTED
    params = eqx.filter(model, eqx.is_inexact_array_like)
    params = jax.tree.map(jnp.asarray, params)
    optimizer = so.adamg(0.1, labels=labels)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not np.allclose(updates.conv["kernel"], 0)


# ---------------------------------------------------------------- whole networks


class Transformer(nnx.Module):
    """One block with layer norm before and query-key norm within; one head."""

    def __init__(self, rngs, width=16, tokens=10):
        self.embed = nnx.Embed(tokens, width, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.norm3 = nnx.RMSNorm(width, rngs=rngs)
        dense = {"use_bias": False, "rngs": rngs}
        self.query = nnx.Linear(width, width, **dense)
        self.key = nnx.Linear(width, width, **dense)
        self.value = nnx.Linear(width, width, **dense)
        self.out = nnx.Linear(width, width, **dense)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        y = self.norm1(x)
        q, k = rms_norm(self.query(y)), rms_norm(self.key(y))
        weights = jax.nn.softmax(q @ k.mT)
        x = x + self.out(weights @ self.value(y))
        x = x + self.down(jax.nn.gelu(self.up(self.norm2(x))))
        return self.embed.attend(self.norm3(x))


def transformer_loss(model):
    tokens = jnp.arange(24).reshape(4, 6) % 7
    logits = model(tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


class Block(nnx.Module):
    def __init__(self, cin, cout, rngs):
        self.conv = nnx.Conv(cin, cout, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(cout, num_groups=2, rngs=rngs)

    def __call__(self, x):
        return nnx.silu(self.norm(self.conv(x)))


class UNet(nnx.Module):
    """Down, across and up again, with a skip connection, for images of 8 by 8."""

    def __init__(self, rngs):
        self.down = Block(1, 4, rngs)
        self.across = Block(4, 8, rngs)
        self.up = nnx.ConvTranspose(8, 4, (2, 2), (2, 2), rngs=rngs)
        self.join = Block(8, 4, rngs)
        self.out = nnx.Conv(4, 1, (1, 1), rngs=rngs)

    def __call__(self, x):
        high = self.down(x)
        low = self.across(nnx.avg_pool(high, (2, 2), (2, 2)))
        joined = jnp.concatenate([high, self.up(low)], axis=-1)
        return self.out(self.join(joined))


def unet_loss(model):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    return jnp.mean((model(x) - jnp.cos(3 * x)) ** 2)


class WeightNormMlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.WeightNorm(nnx.Linear(12, 16, rngs=rngs), rngs=rngs)
        self.second = nnx.WeightNorm(nnx.Linear(16, 16, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(relu(self.second(relu(self.first(x)))))


def mlp_loss(model):
    return cross_entropy(model(vectors()))


NETWORKS = {
    "transformer": (Transformer, transformer_loss, L, {"query/kernel", "key/kernel"}),
    "unet": (
        UNet,
        unet_loss,
        L,
        {"down/conv/kernel", "across/conv/kernel", "join/conv/kernel"},
    ),
    "mlp": (
        WeightNormMlp,
        mlp_loss,
        F,
        {"first/layer_instance/kernel", "second/layer_instance/kernel"},
    ),
}
OPTIMIZERS = {
    "transformer": lambda labels: so.adamsrt(1e-2, labels=labels),
    "unet": lambda labels: so.adamh(1e-2, labels=labels),
    "mlp": lambda labels: so.muonh(1e-2, labels=labels),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_from_a_network_to_a_figure(network, tmp_path):
    """Measure, hand the labels over, train, draw; no name of a layer is spelled."""
    make, loss_fn, label, on_spheres = NETWORKS[network]
    if make is WeightNormMlp:  # does not work without initializers
        graph, params, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
    else:
        graph, params, rest = split(make)

    def loss(params):
        return loss_fn(nnx.merge(graph, params, rest, copy=True))

    labels = so.detect_invariance(loss, params)
    pure = so.label_by_path({"nothing": L})(params)
    assert jax.tree.structure(labels) == jax.tree.structure(pure)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(labels)
    }
    assert {path for path, leaf in found.items() if leaf == label} == on_spheres
    assert {leaf for path, leaf in found.items() if path not in on_spheres} == {E}

    transformation = so.monitor_sphere(OPTIMIZERS[network](labels), labels=labels)
    state, losses, lines = transformation.init(params), [], []

    @jax.jit
    def train(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for step in range(6):
        params, state, value = train(params, state)
        losses.append(float(value))
        lines.append({"epoch": step, SPHERES: sphere_metrics(state)})
    assert losses[-1] < losses[0]
    assert set(lines[0][SPHERES]) == on_spheres
    assert all(leaf["angle"] > 0 for line in lines for leaf in line[SPHERES].values())
    plot_spheres(lines, network, tmp_path / "spheres.png")
    assert (tmp_path / "spheres.png").stat().st_size > 10_000
