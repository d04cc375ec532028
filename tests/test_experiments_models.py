"""The models: shapes, and that what is labelled a sphere is one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import spherical_optax as so
from experiments.models import MODELS
from experiments.steps import init_state
from spherical_optax.labels import leaves_with_paths


@pytest.fixture(scope="module")
def small_resnet():
    graph, _, state = init_state(
        partial(MODELS["small_resnet"], channels=1, num_classes=10),
        lambda _: optax.identity(),
        jax.random.key(0),
    )
    # Scales and biases as after some training: at the start many terms are absent.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x if x.ndim == 4 else x + 0.2 * rng.normal(size=x.shape).astype("f4"),
        state.params,
    )
    return graph, params, state.stats


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(2).normal(size=(32, 8, 8, 1)).astype(np.float32)
    return jnp.asarray(images), jnp.arange(32) % 10


@pytest.fixture(scope="module")
def loss(small_resnet, batch):
    graph, _, stats = small_resnet
    images, labels = batch

    @jax.jit
    def loss(params):
        logits = nnx.merge(graph, params, stats, copy=True)(images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def test_shapes_and_size(small_resnet, batch):
    graph, params, stats = small_resnet
    logits = nnx.merge(graph, params, stats, copy=True)(batch[0], train=False)
    assert logits.shape == (32, 10)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 77754


def test_paths_and_labels(small_resnet):
    _, params, _ = small_resnet
    labels = dict(leaves_with_paths(so.label_conv_filters(params)))
    kernels = {path for path, label in labels.items() if label == "filter"}
    assert "stage1/block0/conv1/kernel" in kernels
    assert kernels == {
        path for path, leaf in leaves_with_paths(params) if leaf.ndim > 2
    }
    assert len(kernels) == 1 + 3 * 2 + 2  # the stem, two a block, two shortcuts
    assert not any(kernel.replace("/kernel", "/bias") in labels for kernel in kernels)


def test_each_filter_is_scale_invariant(small_resnet, loss):
    _, params, _ = small_resnet
    expected = float(loss(params))
    leaves, treedef = jax.tree.flatten(params)
    for n, leaf in enumerate(leaves):
        if leaf.ndim < 4:
            continue
        for channel in range(leaf.shape[-1]):
            scaled = leaf.at[..., channel].multiply(3.0)
            found = float(
                loss(treedef.unflatten([*leaves[:n], scaled, *leaves[n + 1 :]]))
            )
            # The epsilon in batch norm leaves a trace.
            assert found == pytest.approx(expected, rel=1e-5)


def test_the_head_is_not_scale_invariant(small_resnet, loss):
    _, params, _ = small_resnet
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, x: 3 * x if so.labels.path_string(path) == "head/kernel" else x,
        params,
    )
    assert abs(loss(scaled) - loss(params)) > 1e-2


def test_training_moves_the_statistics_and_evaluation_does_not(small_resnet, batch):
    graph, params, stats = small_resnet
    after = {}
    for train in (True, False):
        model = nnx.merge(graph, params, stats, copy=True)
        model(batch[0], train=train)
        after[train] = nnx.as_pure(nnx.state(model, nnx.BatchStat))

    def changed(tree):
        return [
            not jnp.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(stats), strict=True)
        ]

    assert all(changed(after[True]))
    assert not any(changed(after[False]))
