"""Labels measured on losses whose invariances are known."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
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
    layer_norm,
    normalize,
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


def test_a_deep_network_in_bfloat16():
    """Its gradients are mostly rounding errors, and are not taken for none."""
    names = [f"k{i}" for i in range(10)]

    def loss(params, x):
        for name in names:
            x = relu(batch_norm(x @ params[name]))
        return head(x, params["out"])

    shapes = {"k0": (12, 16), **dict.fromkeys(names[1:], (16, 16)), "out": (16, 4)}
    narrow = in_16_bits(loss, jnp.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = so.detect_invariance(narrow, start(shapes), vectors())
    assert labels["out"] == E


def test_parameters_in_bfloat16():
    """Also where the loss takes no other type."""
    loss, shapes, expected = MODELS["group_norm_right_behind"]
    params, x = optax.tree.cast((start(shapes), images()), "bfloat16")
    assert so.detect_invariance(loss, params, x) == expected


def test_a_loss_that_asks_for_bfloat16():
    """As kernels of accelerators do, with errors of many types."""
    loss, shapes, expected = MODELS["layer_norm_right_behind"]

    def narrow(params, x):
        if any(leaf.dtype != "bfloat16" for leaf in params.values()):
            raise NotImplementedError("only bfloat16")
        return loss(optax.tree.cast(params, "float32"), x)

    params = optax.tree.cast(start(shapes), "bfloat16")
    assert so.detect_invariance(narrow, params, vectors()) == expected


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


@pytest.mark.parametrize("bias", [-10.0, -1e3])
def test_units_that_a_bias_keeps_dead(bias):
    """Far from the parameters they come to life; close to them, nothing is known."""

    def loss(params, x):
        y = relu(x @ params["k"] + params["b"])
        y = relu(batch_norm(y @ params["k2"]))
        return head(y, params["kh"]) + jnp.sum((params["used"] - 1) ** 2)

    params = start({"k": (12, 16), "k2": (16, 8), "kh": (8, 4), "used": (3, 2)})
    params["b"] = np.full(16, bias, np.float32)
    with pytest.warns(UserWarning, match="no gradient reaches b, k, k2, kh:"):
        labels = so.detect_invariance(loss, params, vectors())
    assert labels == dict.fromkeys(params, E)


def test_units_of_which_some_are_dead():
    """What lives of a leaf is what it is labelled by."""

    def loss(params, x):
        y = relu(batch_norm(x @ params["k"]) + params["b"])
        rows = params["emb"] / jnp.linalg.norm(params["emb"], axis=1, keepdims=True)
        return head(y + rows[jnp.arange(16) % 3], params["kh"])

    params = start({"k": (12, 16), "emb": (10, 16), "kh": (16, 4)})
    params["b"] = np.float32([0] * 6 + [-100] * 10)
    table = {**so.CHANNEL_AXES, "row": (0,)}
    labels = so.detect_invariance(loss, params, vectors(), channel_axes=table)
    assert labels == {"k": F, "emb": "row", "kh": E, "b": E}


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


def test_a_mask_among_the_weights():
    """As modules of Equinox hold it: it is no weight, and may not be moved."""

    def loss(params, x):
        q, k = rms_norm(x @ params["q"]), rms_norm(x @ params["k"])
        return head(jax.nn.softmax(q @ k.T + params["mask"]) @ x, params["kh"])

    params = start({"q": (12, 12), "k": (12, 12), "kh": (12, 4)})
    params["mask"] = np.where(np.tri(16, dtype=bool), 0, -np.inf).astype(np.float32)
    labels = so.detect_invariance(loss, params, vectors())
    assert labels == {"q": L, "k": L, "kh": E, "mask": E}


# ---------------------------------------------------------------- sizes and layouts


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8, 1e20])
def test_losses_of_any_size(scale):
    loss, shapes, expected = MODELS["weight_norm"]
    labels = so.detect_invariance(
        lambda params, x: scale * loss(params, x), start(shapes), vectors()
    )
    assert labels == expected


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_bias_that_is_small_next_to_what_it_is_added_to(scale):
    """Unless it is perturbed enough, it hides that the kernel has a scale."""
    loss, shapes, expected = MODELS["bias_before_layer_norm"]
    assert so.detect_invariance(loss, start(shapes), scale * vectors()) == expected


@pytest.mark.parametrize(
    ("epsilon", "scale", "label"),
    [(1e-5, 1.0, F), (1e-3, 1.0, F), (1.0, 1.0, E), (1e-5, 1e-3, E)],
)
def test_the_epsilon_of_a_normalization(epsilon, scale, label):
    """Where it counts next to the variance, weights have a scale."""

    def loss(params, x):
        return head(relu(normalize(x @ params["k"], 0, epsilon)), params["kh"])

    labels = so.detect_invariance(
        loss, start({"k": (12, 16), "kh": (16, 4)}), scale * vectors()
    )
    assert labels == {"k": label, "kh": E}


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_deep_networks_without_shortcuts(epsilon):
    """What epsilon changes flips units further up, and so turns gradients."""
    names = [f"k{i:02}" for i in range(25)]

    def loss(params, x):
        for name in names:
            x = relu(normalize(x @ params[name], 0, epsilon))
        return head(x, params["out"])

    shapes = {"k00": (12, 16), **dict.fromkeys(names[1:], (16, 16)), "out": (16, 4)}
    labels = so.detect_invariance(loss, start(shapes), vectors())
    assert labels == {**dict.fromkeys(names, F), "out": E}


@pytest.mark.parametrize(
    ("activation", "depth", "scale", "seed"),
    [(jnp.tanh, 4, 10, 2), (relu, 2, 30, 0), (relu, 2, 100, 0)],
)
def test_biases_next_to_large_weights_before_a_norm(activation, depth, scale, seed):
    """They vanish next to larger ones, as an epsilon does, and yet are a scale."""
    names = [f"k{i}" for i in range(depth)]

    def loss(params, x):
        for name in names:
            x = activation(layer_norm(x @ params[name] + params[f"b{name}"]))
        return head(x, params["out"])

    shapes = {"k0": (12, 16), **dict.fromkeys(names[1:], (16, 16)), "out": (16, 4)}
    shapes |= {f"b{name}": (16,) for name in names}
    params = start(shapes, seed)
    params |= {name: scale * params[name] for name in names}
    labels = so.detect_invariance(loss, params, vectors(), seed=seed)
    assert set(labels.values()) == {E}


def test_standardized_weights_of_many_inputs():
    """Their variance is small, and epsilon counts for more than elsewhere."""

    def loss(params, x):
        k = normalize(params["k"], (0, 1, 2), 1e-5) * params["s"] / 17
        return head(relu(conv(x, k) + params["b"]), params["kh"])

    params = start({"k": (3, 3, 32, 8), "s": (8,), "b": (8,), "kh": (8, 4)})
    labels = so.detect_invariance(loss, params, images(32))
    assert labels == {"k": F, "s": E, "b": E, "kh": E}


@pytest.mark.parametrize(("layout", "axes"), [("OIHW", (0,)), ("HWOI", (-2,))])
def test_kernels_of_other_layouts(layout, axes):
    def loss(params, x):
        layouts = ("NHWC", layout, "NHWC")
        y = jax.lax.conv_general_dilated(
            x, params["k"], (1, 1), "SAME", dimension_numbers=layouts
        )
        return head(relu(batch_norm(y)), params["kh"])

    shape = (8, 3, 3, 3) if layout == "OIHW" else (3, 3, 8, 3)
    params = start({"k": shape, "kh": (8, 4)})
    table = {**so.CHANNEL_AXES, "out": axes}
    labels = so.detect_invariance(loss, params, images(), channel_axes=table)
    assert labels == {"k": "out", "kh": E}
    assert so.detect_invariance(loss, params, images()) == {"k": L, "kh": E}


@pytest.mark.parametrize(
    ("norm", "axes"),
    [(batch_norm, (0, -1)), (layer_norm, (0,))],
    ids=["batch", "layer"],
)
def test_layers_stacked_in_one_leaf(norm, axes):
    def loss(params, x):
        def layer(x, kernel):
            return jnp.tanh(norm(x @ kernel)), None

        x, _ = jax.lax.scan(layer, x, params["k"])
        return head(x, params["kh"])

    params = start({"k": (3, 12, 12), "kh": (12, 4)})
    table = {**so.CHANNEL_AXES, "stacked": axes}
    labels = so.detect_invariance(loss, params, vectors(), channel_axes=table)
    assert labels == {"k": "stacked", "kh": E}


def test_several_normalizations_of_one_convolution():
    def loss(params, x):
        x = conv(x, params["k0"])
        x = relu(batch_norm(x)) + relu(normalize(x, (1, 2)))
        y = conv(x, params["k1"])
        x = x + batch_norm(y) + normalize(y, (1, 2))
        return head(relu(x), params["kh"])

    params = start({"k0": (3, 3, 3, 8), "k1": (3, 3, 8, 8), "kh": (8, 4)})
    labels = so.detect_invariance(loss, params, images())
    assert labels == {"k0": F, "k1": F, "kh": E}


def test_any_container():
    def loss(params, x):
        kernel, (scale, [last]) = params["inner"]
        return head(relu(batch_norm(x @ kernel) * scale), last)

    start_ = start({"k": (12, 16), "s": (16,), "kh": (16, 4)})
    inner = (start_["k"], (start_["s"], [start_["kh"]]))
    expected = (F, (E, [E]))
    for container in (dict, FrozenDict):
        labels = so.detect_invariance(loss, container(inner=inner), vectors())
        assert labels == container(inner=expected)


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


def test_two_leaves_of_one_path_are_an_error():
    params = {"a": {"b": jnp.ones(3)}, "a/b": jnp.ones(3)}
    with pytest.raises(ValueError, match="'a/b'"):
        so.detect_invariance(lambda p: jnp.sum(p["a/b"] * p["a"]["b"]), params)


@pytest.mark.parametrize("names", [("k", "z_head"), ("k", "a_head")])
def test_arrays_of_one_variable_have_a_label_that_holds_for_all(names):
    k, kh = names
    values = start({k: (12, 16), kh: (16, 4)})
    params = {"p": nnx.Param(values)}

    def loss(params, x):
        p = params["p"].get_value()
        return head(relu(batch_norm(x @ p[k])), p[kh])

    labels, table = so.detect_invariance(loss, params, vectors(), explain=True)
    assert labels == {"p": E}
    assert [row.label for row in table] == [E]
