"""Losses that JAX differentiates, and that ask more of the measurement than most.

Weights that are free of scale on one side only, filters that are all but dead or see a
unit that is, thousands of groups, batches of which Python reads values, and parameters
that have to be positive.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from normalized_models import E, F, batch_norm, conv, head, relu, start

import spherical_optax as so

SHAPES = {"k": (12, 16), "head": (16, 4)}
X = np.random.default_rng(1).normal(size=(32, 12)).astype(np.float32)


def outputs(params, kernel, x):
    return jnp.mean((relu(x @ kernel + 0.2) @ params["head"] - 1) ** 2)


def lipschitz(params, x, most):
    """The kernel is divided by its spectral norm, where that is too large."""
    size = jnp.linalg.norm(params["k"], 2)
    return outputs(params, params["k"] / jnp.maximum(1.0, size / most), x)


def max_norm(params, x, most):
    size = jnp.linalg.norm(params["k"])
    return outputs(params, params["k"] * jnp.minimum(1.0, most / size), x)


def max_norm_of_filters(params, x, most):
    size = jnp.linalg.norm(params["k"], axis=0)
    return outputs(params, params["k"] * jnp.minimum(1.0, most / size), x)


@pytest.mark.parametrize("loss", [lipschitz, max_norm, max_norm_of_filters])
@pytest.mark.parametrize("seed", range(3))
def test_weights_without_a_scale_while_they_are_large(loss, seed):
    """Half as large they have one: no sphere."""
    params = start(SHAPES)
    sizes = {
        lipschitz: np.linalg.norm(params["k"], 2),
        max_norm: np.linalg.norm(params["k"]),
        max_norm_of_filters: np.linalg.norm(params["k"], axis=0).min(),
    }
    most = 0.6 * float(sizes[loss])
    labels = so.detect_invariance(loss, params, X, most, seed=seed)
    assert labels == {"k": E, "head": E}


def batch_renorm(params, x):
    """The batch is brought to running statistics, by as much as a bound allows."""
    y = x @ params["k"]
    size = jnp.sqrt(y.var(0) + 1e-5)
    scale = jnp.clip(size / 1.2, 0.1, 10)
    y = (y - y.mean(0)) / size * jax.lax.stop_gradient(scale)
    return head(relu(y), params["head"])


def saturating_norms(params, x):
    size = jnp.linalg.norm(params["k"], axis=0)
    kernel = params["k"] / size * jax.lax.stop_gradient(jnp.tanh(size))
    return head(relu(x @ kernel + 0.2), params["head"])


@pytest.mark.parametrize("loss", [batch_renorm, saturating_norms])
@pytest.mark.parametrize("seed", range(3))
def test_a_scale_that_gradients_hide_and_large_weights_lose(loss, seed):
    labels = so.detect_invariance(loss, start(SHAPES, seed), X, seed=seed)
    assert labels == {"k": E, "head": E}


@pytest.mark.parametrize(
    ("seed", "epsilon"), [(0, 1e-10), (1, 1e-10), (4, 1e-10), (7, 1e-10), (5, 1e-13)]
)
def test_filters_that_are_active_in_one_place(seed, epsilon):
    """Batch norm makes the same of them whatever their weights: gradients are noise."""
    params = start({"k": (3, 3, 3, 32), "head": (32, 4)}, seed)
    x = np.random.default_rng(seed).uniform(size=(16, 8, 8, 3)).astype(np.float32)

    def loss(params, x):
        y = relu(conv(x, params["k"]))
        y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + epsilon)
        return head(relu(y), params["head"])

    assert so.detect_invariance(loss, params, x)["k"] == F


SEPARABLE = {
    "k": (3, 3, 3, 32),
    **{f"{letter}{n}": (32,) for n in range(5) for letter in "sb"},
    **{f"d{n}": (3, 3, 1, 32) for n in (1, 3)},
    **{f"p{n}": (1, 1, 32, 32) for n in (2, 4)},
    "head": (32, 4),
}
KERNELS = ("k", "d1", "p2", "d3", "p4")


def separable(params, x):
    """Depthwise and pointwise convolutions, each with a normalization and a relu."""
    for n, name in enumerate(KERNELS):
        x = batch_norm(conv(x, params[name], groups=32 if name[0] == "d" else 1))
        x = relu(x * params[f"s{n}"] + params[f"b{n}"])
    return head(x, params["head"])


@pytest.mark.parametrize("seed", range(6))
def test_filters_that_see_a_unit_that_is_almost_dead(seed):
    """Its epsilon gives them a scale, and only where biases are far from the start."""
    x = np.random.default_rng(3).normal(size=(64, 8, 8, 3)).astype(np.float32)
    labels = so.detect_invariance(separable, start(SEPARABLE), x, seed=seed)
    assert labels == {name: F if name in KERNELS else E for name in SEPARABLE}


@pytest.mark.parametrize("strength", [1.0, 1e4])
@pytest.mark.parametrize("width", [16, 4096])
def test_groups_without_number(width, strength):
    """Each is seen, however many there are, and whatever another leaf does."""

    def loss(params, x):
        fixed = strength * jnp.sum(params["strong"] ** 2)
        return head(relu(batch_norm(x @ params["k"])), params["head"]) + fixed

    params = start({"k": (12, width), "head": (width, 4), "strong": (3, 2)})
    labels = so.detect_invariance(loss, params, X)
    assert labels == {"k": F, "head": E, "strong": E}


def per_example(params, x):
    return relu(batch_norm(x @ params["k"])) @ params["head"]


READ_BY_PYTHON = {
    "a mask": (lambda p, x, m: per_example(p, x)[m].mean(), np.arange(32) % 3 > 0),
    "a shape": (
        lambda p, x, n: per_example(p, x.reshape(n, -1)).mean(),
        np.int64(32),
    ),
    "a slice": (lambda p, x, n: per_example(p, x)[:n].mean(), np.int64(20)),
    "an array as a slice": (
        lambda p, x, n: per_example(p, x)[: n[0]].mean(),
        np.array([20]),
    ),
    "names": (
        lambda p, x, names: per_example(p, x).mean() + len(names),
        np.array(["a", "b"]),
    ),
}


@pytest.mark.parametrize("case", READ_BY_PYTHON)
def test_what_python_reads_of_a_batch(case):
    loss, other = READ_BY_PYTHON[case]
    params = start(SHAPES)
    jax.value_and_grad(loss)(params, X, other)  # JAX takes it
    assert so.detect_invariance(loss, params, X, other) == {"k": F, "head": E}


def gaussian(params, x):
    z = batch_norm(x @ params["k"])
    variance = params["variance"]
    return jnp.mean((z - x[:, :3]) ** 2 / variance + jnp.log(variance))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("check", [False, True])
def test_parameters_that_have_to_be_positive(seed, check):
    params = start({"k": (12, 3)})
    params["variance"] = np.array([0.001, 0.1, 10], np.float32)
    with jax.debug_nans(check):
        labels = so.detect_invariance(gaussian, params, X, seed=seed)
    assert labels == {"k": F, "variance": E}


def test_a_loss_that_is_finite_at_one_point_alone():
    def loss(params):
        return jnp.where(params["k"][0, 0] == 1.0, jnp.sum(params["k"]), jnp.nan)

    with pytest.raises(ValueError, match=r"finite near params: .* through args"):
        so.detect_invariance(loss, {"k": jnp.ones((4, 4))})


def test_parameters_that_lie_where_the_loss_wants_them():
    """A loss that is split over devices asks for weights that are split like it."""
    split = AxisType.Explicit
    mesh = jax.make_mesh((1,), ("x",), axis_types=(split,), devices=jax.devices()[:1])
    specs = {"k": PartitionSpec(None, "x"), "head": PartitionSpec("x", None)}
    put = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}

    @jax.shard_map(
        mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=PartitionSpec()
    )
    def loss(params, x):
        logits = relu(batch_norm(x @ params["k"])) @ params["head"]
        return head(jax.lax.psum(logits, "x"), jnp.eye(4))

    with jax.set_mesh(mesh):
        params = jax.device_put(start(SHAPES), put)
        labels = so.detect_invariance(loss, params, jax.device_put(X))
    assert labels == {"k": F, "head": E}


# ------------------------------------------------------------------ what it is told


def test_an_empty_label_is_a_label():
    def loss(params):
        return jnp.sum((params["k"] / jnp.linalg.norm(params["k"]) + 1) ** 4)

    table = {"": (), "euclidean": None}
    params = start({"k": (4, 3)})
    assert so.detect_invariance(loss, params, channel_axes=table) == {"k": ""}


def test_axes_that_are_one():
    table = {"out": (-1, 1), "euclidean": None}
    with pytest.raises(ValueError, match=r"^k: channel_axes \(-1, 1\) name the same"):
        so.detect_invariance(lambda p: 1.0, start({"k": (4, 3)}), channel_axes=table)


def test_a_label_of_more_axes_than_a_leaf_has():
    """As that of stacked filters, in a network with biases: it is not tried there."""

    def loss(params, x):
        for kernel in params["k"]:
            x = relu(batch_norm(x @ kernel))
        return head(x + params["b"], params["head"])

    table = {**so.CHANNEL_AXES, "stacked": (0, -1)}
    params = start({"k": (2, 12, 12), "b": (12,), "head": (12, 4)})
    labels = so.detect_invariance(loss, params, X, channel_axes=table)
    assert labels == {"k": "stacked", "b": E, "head": E}


@pytest.mark.parametrize("where", [0, 1])
def test_arrays_without_numbers(where):
    """An error that says so, in place of one from within the loss."""

    def loss(params, x):
        return jnp.sum(params["k"] @ x)

    given = [start({"k": (4, 3)}), np.ones(3, np.float32)]
    shapes = list(given)
    shapes[where] = jax.eval_shape(lambda: given[where])
    with pytest.raises(ValueError, match=r"^params and args must be arrays with numb"):
        so.detect_invariance(loss, *shapes)
    inside = jax.jit(
        lambda x: so.detect_invariance(loss, *given[:where], x, *given[2:])
    )
    with pytest.raises(ValueError, match=r"^detect_invariance must be called outside"):
        inside(given[where])


@pytest.mark.parametrize("seed", [-1, 0.5, None, jax.random.key(0)])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match=r"^seed must be an integer of at least 0"):
        so.detect_invariance(lambda p: jnp.sum(p["k"]), start({"k": (4, 3)}), seed=seed)
