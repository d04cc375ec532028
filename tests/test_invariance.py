"""Labels measured on losses whose invariances are known."""

import itertools
import re
import warnings

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import io_callback
from normalized_models import (
    MODELS,
    E,
    F,
    L,
    batch_norm,
    batch_of,
    conv,
    head,
    images,
    relu,
    rms_norm,
    start,
    vectors,
)

import spherical_optax as so

# Leaves that no gradient reaches: batch norm subtracts them.
UNKNOWN = {"convolutions_with_batch_norm": "b0"}


def detect(name, **options):
    loss, shapes, _ = MODELS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no gradient reaches")
        return so.detect_invariance(loss, start(shapes), batch_of(shapes), **options)


# ---------------------------------------------------------------- what it finds


@pytest.mark.parametrize("name", MODELS)
def test_labels(name):
    loss, shapes, expected = MODELS[name]
    arguments = (loss, start(shapes), batch_of(shapes))
    if name in UNKNOWN:
        with pytest.warns(UserWarning, match=f"reaches {UNKNOWN[name]}:"):
            labels = so.detect_invariance(*arguments)
    else:
        labels = so.detect_invariance(*arguments)
    assert labels == expected


@pytest.mark.parametrize("name", ["no_norm", "norm_two_layers_later"])
def test_other_random_numbers(name):
    assert detect(name, seed=7) == MODELS[name][2]


def in_16_bits(loss, dtype):
    def rounded(params, x):
        params, x = optax.tree.cast((params, x), dtype)
        return loss(params, x).astype(jnp.float32)

    return rounded


@pytest.mark.parametrize(
    "name",
    [
        "convolutions_with_batch_norm",
        "bias_before_layer_norm",
        "one_filter_without_norm",
    ],
)
@pytest.mark.filterwarnings("ignore:no gradient reaches")
def test_computed_in_bfloat16(name):
    loss, shapes, expected = MODELS[name]
    narrow = in_16_bits(loss, jnp.bfloat16)
    labels = so.detect_invariance(narrow, start(shapes), batch_of(shapes))
    assert labels == expected


def test_parameters_in_bfloat16():
    """Also where the loss takes no other type."""
    loss, shapes, expected = MODELS["group_norm_right_behind"]
    params, x = optax.tree.cast((start(shapes), images()), "bfloat16")
    assert so.detect_invariance(loss, params, x) == expected


def test_double_precision(x64):
    loss, shapes, expected = MODELS["norm_two_layers_later"]
    params, x = jax.tree.map(np.float64, (start(shapes), images()))
    assert so.detect_invariance(loss, params, x) == expected


def test_complex_weights():
    def loss(params, x):
        y = x @ params["k"]
        y = y / jnp.sqrt(jnp.mean(jnp.abs(y) ** 2, axis=0) + 1e-6)
        return head(jnp.real(y) + jnp.imag(y) ** 2, params["kh"])

    params = start({"k": (12, 16), "kh": (16, 4)})
    params["k"] = (params["k"] * np.exp(1j * params["k"])).astype(np.complex64)
    assert so.detect_invariance(loss, params, vectors()) == {"k": F, "kh": E}


def test_dead_units_are_unknown():
    def loss(params, x):
        y = relu(x @ params["k"] - 1e4)
        return head(y, params["kh"]) + jnp.sum(params["used"] ** 2)

    params = start({"k": (12, 16), "kh": (16, 4), "used": (3, 2)})
    params["unused"] = jnp.ones(3)
    with pytest.warns(UserWarning, match="no gradient reaches k, kh, unused:") as found:
        labels, table = so.detect_invariance(loss, params, vectors(), explain=True)
    assert len(found) == 1
    assert labels == dict.fromkeys(params, E)
    known = {row.path: row.known for row in table}
    assert known == {"k": False, "kh": False, "unused": False, "used": True}


def test_a_layer_that_starts_at_zero():
    """Branches that are silent at first, and what lies before them."""

    def loss(params, x):
        y = batch_norm(x @ params["k"]) * params["silent"]
        return head(x @ params["kx"] + relu(y), params["zero"])

    params = start({"k": (12, 16), "kx": (12, 16), "zero": (16, 4)})
    params |= {"silent": np.zeros(16), "zero": 0 * params["zero"]}
    labels = so.detect_invariance(loss, params, vectors())
    assert labels == {"k": F, "kx": E, "zero": E, "silent": E}


def test_leaves_that_are_no_weights():
    loss, shapes, expected = MODELS["norm_two_layers_later"]
    others = {
        "count": jnp.arange(3),
        "key": jax.random.key(0),
        "flag": True,
        "name": relu,
        "empty": jnp.zeros((3, 3, 0, 4)),
    }

    def with_others(params, x, mode):
        assert mode == "train"
        assert params["flag"] is True
        noise = 0 * jax.random.normal(params["key"]) + 0 * params["count"].sum()
        return loss(params, x) + noise

    params = {**start(shapes), **others, "none": None}
    labels = so.detect_invariance(with_others, params, images(), "train")
    assert labels == {**dict.fromkeys(others, E), "none": None, **expected}


def attention(params, x):
    q, k, v = (jnp.einsum("td,dhe->the", x, params[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("the,she->hts", rms_norm(q), rms_norm(k)))
    return head(jnp.einsum("hts,she->the", weights, v).reshape(len(x), -1), params["o"])


@pytest.mark.parametrize("label", [L, "head"])
def test_queries_and_keys(label):
    """Normalized head by head: finer than a layer, if there is a label for it."""
    shape = (12, 2, 4)
    params = start({"q": shape, "k": shape, "v": shape, "o": (8, 4)})
    table = {**so.CHANNEL_AXES, "head": (1,)} if label == "head" else None
    labels = so.detect_invariance(attention, params, vectors(), channel_axes=table)
    assert labels == {"q": label, "k": label, "v": E, "o": E}


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
def test_from_a_network_to_a_step(network):
    """Measure, hand the labels over, train; no name of a layer is spelled."""
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

    transformation = OPTIMIZERS[network](labels)
    state, losses = transformation.init(params), []

    @jax.jit
    def train(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(6):
        params, state, value = train(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------- the table


def test_the_table_prints():
    labels, table = detect("norm_two_layers_later", explain=True)
    assert labels == MODELS["norm_two_layers_later"][2]
    lines = str(table).splitlines()
    assert lines[0].split("  ")[0] == "path"
    assert [line.split()[:2] for line in lines[2:]] == [
        [path, label] for path, label in sorted(labels.items())
    ]
    assert len({line.index(line.split()[1]) for line in lines[2:]}) == 1
    assert max(map(len, lines)) == len(lines[1]) < 80
    for row in table:
        assert row.worst_cosine < 1e-3 if row.label != E else row.worst_cosine > 1e-2
        assert np.isnan(row.worst_loss_change) == (row.label == E)
        assert row.known
    assert len(table) == len(labels)
    assert table[0] in list(table)
    assert "norm_two" not in repr(table)
    assert "path='b'" in repr(table)


def test_the_loss_decides_in_the_end():
    """The gradient alone would call these invariant."""
    _, table = detect("orthogonal_gradient_alone", explain=True)
    row = next(row for row in table if row.path == "k")
    assert row.label == E
    assert row.worst_cosine < 1e-4
    assert row.worst_loss_change > 1e-2


def test_a_tighter_tolerance_allows_for_less():
    """Than what the epsilon inside of a normalization does."""
    assert set(detect("norm_two_layers_later", tolerance=1e-9).values()) == {E}


# ---------------------------------------------------------------- what it refuses


def refused(loss, match, **options):
    params = start({"k": (12, 4)})
    with pytest.raises(ValueError, match=match) as caught:
        so.detect_invariance(loss, params, vectors(), **options)
    assert "\n" not in str(caught.value)


def plain(params, x):
    return head(x, params["k"])


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda loss: loss[None], r"shape \(1,\)"),
        (lambda loss: (loss, {}), "tuple"),
        (lambda loss: None, "NoneType"),
        (lambda loss: 1, "int32"),
        (lambda loss: loss + 0j, "complex64"),
    ],
)
def test_no_real_number(change, got):
    refused(
        lambda params, x: change(plain(params, x)),
        f"loss_fn must return one real number, got .*{got}",
    )


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_not_finite(value):
    refused(lambda *x: plain(*x) * value, "loss_fn must be finite at params, got")


def test_nowhere_finite_but_at_the_parameters():
    k = start({"k": (12, 4)})["k"]

    def loss(params, x):
        return plain(params, x) + jnp.where(jnp.all(params["k"] == k), 0, jnp.nan)

    refused(loss, "loss_fn must be finite near params")


COUNT = itertools.count()


def keys_that_change(params, x):
    return plain(params, x + jax.random.normal(jax.random.key(next(COUNT)), x.shape))


def host_noise(params, x):
    noise = np.random.default_rng().normal(size=x.shape).astype(np.float32)
    return plain(params, x + noise)


def random_callback(params, x):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    noise = io_callback(lambda: np.float32(np.random.default_rng().normal()), shape)
    return plain(params, x) * noise


@pytest.mark.parametrize("loss", [keys_that_change, host_noise, random_callback])
def test_random_from_call_to_call(loss):
    message = "loss_fn must return the same number for the same input, got"
    refused(loss, re.escape(message))


def test_a_fixed_key_is_fine():
    def loss(params, x):
        kept = jax.random.bernoulli(jax.random.key(0), 0.8, (16, 16))
        return head(kept * relu(batch_norm(x @ params["k"])), params["kh"])

    params = start({"k": (12, 16), "kh": (16, 4)})
    assert so.detect_invariance(loss, params, vectors()) == {"k": F, "kh": E}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tolerance": 0.0}, "^tolerance must be"),
        ({"channel_axes": {"filter": (-1,)}}, "^channel_axes must have a label"),
        ({"channel_axes": 3}, "^channel_axes must be"),
    ],
)
def test_bad_arguments(options, match):
    refused(plain, match, **options)


def test_nothing_to_measure():
    assert so.detect_invariance(lambda _: 1.0, {}) == {}
    assert so.detect_invariance(lambda _: 1.0, {"n": jnp.arange(3)}) == {"n": E}
