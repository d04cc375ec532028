"""The models: sizes, shapes and types, and that what is labelled a sphere is one."""

import functools
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import spherical_optax as so
from experiments.models import MODELS, label_spheres
from experiments.models.convnet import ConvNet
from experiments.models.densenet import DenseNet
from experiments.models.resnet import ResNet
from experiments.models.vgg import VGG
from spherical_optax.labels import leaves_with_paths

# Name: height of the images, channels, classes; parameters; convolutions by the height
# of what they compute.
PUBLISHED = {
    "small_resnet": ((8, 1, 10), 77_754, {8: 3, 4: 3, 2: 3}),
    "convnet": ((28, 1, 10), 30_274, {14: 1, 7: 1, 4: 1, 2: 1, 1: 1}),
    "resnet20": ((32, 3, 10), 272_474, {32: 7, 16: 7, 8: 7}),
    "resnet18": ((32, 3, 10), 11_173_962, {32: 5, 16: 5, 8: 5, 4: 5}),
    "vgg16": ((32, 3, 10), 14_724_042, {32: 2, 16: 2, 8: 3, 4: 3, 2: 3}),
    "densenet121": ((32, 3, 10), 6_956_298, {32: 14, 16: 25, 8: 49, 4: 32}),
    "resnet18_imagenet": (
        (224, 3, 1000),
        11_689_512,
        {112: 1, 56: 4, 28: 5, 14: 5, 7: 5},
    ),
}

# Every architecture, with few filters.
TINY = {
    "resnet": partial(ResNet, widths=(4, 8), blocks=(2, 1)),
    "resnet_large": partial(ResNet, widths=(4, 8), blocks=(1, 1), large_images=True),
    "vgg": partial(VGG, stages=((4,), (4, 8))),
    "densenet": partial(DenseNet, growth=3, blocks=(2, 2)),
    "convnet": partial(ConvNet, widths=(4, 8)),
}

every_model = pytest.mark.parametrize("name", MODELS)
every_tiny = pytest.mark.parametrize("make", TINY.values(), ids=TINY)
both_types = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def split(make, key, channels=3, classes=10, dtype=jnp.float32):
    """The model's graph, its parameters and its statistics."""
    model = make(
        channels=channels, num_classes=classes, rngs=nnx.Rngs(key), dtype=dtype
    )
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    return graph, nnx.as_pure(params), nnx.as_pure(stats)


@functools.cache
def abstract(make, **options):
    """As `split`, with shapes in place of arrays."""
    return nnx.eval_shape(partial(split, make, **options), jax.random.key(0))


def trained(make, length=1.0, **options):
    """As `split`, with weights as in the midst of training, filters of that length.

    Scales of 1 and biases of 0, as at the start, would hide what depends on them.
    """
    graph, params, stats = abstract(make, **options)
    random = np.random.default_rng(0)

    def draw(path, leaf):
        noise, kind = random.standard_normal(leaf.shape), path[-1].key
        if kind == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return noise / np.sqrt(fan_in) * (1 if path[0].key == "head" else length)
        return (kind == "scale") + 0.2 * noise

    params = jax.tree_util.tree_map_with_path(draw, params)
    stats = jax.tree.map(lambda leaf: np.ones(leaf.shape), stats)
    return graph, *jax.tree.map(jnp.asarray, (params, stats))


def images_of(height=12):
    random = np.random.default_rng(1)
    return jnp.asarray(random.standard_normal((8, height, height, 3)))


def compiled(function, *args):
    """For a few calls: compiling it fast matters more than its speed."""
    lowered = jax.jit(function).lower(*args)
    return lowered.compile({"xla_backend_optimization_level": 0})


def apply(graph, params, stats, images, train):
    """Logits, and the statistics after them."""
    model = nnx.merge(graph, params, stats, copy=True)
    logits = model(images, train=train)
    return logits, nnx.as_pure(nnx.state(model, nnx.BatchStat))


def loss_of(logits):
    labels = jnp.arange(len(logits)) % 10
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def compiled_loss(graph, params, stats, images):
    """The loss in training, a function of the parameters."""
    return compiled(
        lambda params: loss_of(apply(graph, params, stats, images, train=True)[0]),
        params,
    )


def leaves(tree):
    return dict(leaves_with_paths(tree))


def types(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.fixture
def computed(monkeypatch):
    """What every convolution of the test computes, in order."""
    outputs, call = [], nnx.Conv.__call__

    def recorded(self, images):
        outputs.append(call(self, images))
        return outputs[-1]

    monkeypatch.setattr(nnx.Conv, "__call__", recorded)
    return outputs


# Shapes


@every_model
def test_sizes_are_the_published_ones(name, computed):
    (height, channels, classes), count, heights = PUBLISHED[name]
    graph, params, stats = abstract(MODELS[name], channels=channels, classes=classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    images = jax.ShapeDtypeStruct((2, height, height, channels), jnp.float32)
    forward = partial(apply, graph, train=True)
    logits, _ = jax.eval_shape(forward, params, stats, images)
    assert (logits.shape, logits.dtype) == ((2, classes), jnp.float32)
    assert Counter(y.shape[1] for y in computed) == heights


@every_model
@pytest.mark.parametrize("height", [8, 28])
def test_images_of_other_sizes(name, height):
    graph, params, stats = abstract(MODELS[name], channels=1, classes=7)
    images = jax.ShapeDtypeStruct((3, height, height, 1), jnp.float32)
    forward = partial(apply, graph, train=False)
    logits, _ = jax.eval_shape(forward, params, stats, images)
    assert logits.shape == (3, 7)


def test_paths():
    paths = leaves(abstract(MODELS["resnet20"])[1])
    assert "stem/kernel" in paths
    assert "stage1/block0/conv1/kernel" in paths
    assert "stage3/block0/shortcut_norm/scale" in paths
    assert "head/bias" in paths
    assert "stage4/block15/conv2/kernel" in leaves(abstract(MODELS["densenet121"])[1])


# Scale invariance. The longer the filters, the less the epsilon in batch norm counts.


@every_model
def test_convolutions_are_filters_but_for_the_last_layer(name):
    params = abstract(MODELS[name])[1]
    labels = leaves(label_spheres(params))
    spheres = {path for path, label in labels.items() if label == "filter"}
    kernels = {path for path, leaf in leaves(params).items() if leaf.ndim == 4}
    assert spheres == kernels - {"head/kernel"}
    assert len(spheres) == sum(PUBLISHED[name][2].values()) - (name == "convnet")
    # Batch norm would undo a bias.
    assert not {path.replace("/kernel", "/bias") for path in spheres} & labels.keys()
    assert "head/bias" in labels


def test_layer_of_an_unknown_name_is_an_error_and_not_euclidean():
    kernel = jnp.ones((3, 3, 4, 8))
    params = {"stage1": {"depthwise": {"kernel": kernel}}, "stem": {"kernel": kernel}}
    with pytest.raises(
        ValueError, match=r"leaf 'stage1/depthwise/kernel' of shape \(3"
    ):
        label_spheres(params)
    # A convolution with a bias is not followed by a batch norm, whatever its name.
    with pytest.raises(ValueError, match="'conv1/bias'"):
        label_spheres({"conv1": {"kernel": kernel, "bias": jnp.ones(8)}})
    # Nor is what only looks like the last layer the last layer.
    with pytest.raises(ValueError, match="'stage1/head/kernel'"):
        label_spheres({"stage1": {"head": {"kernel": kernel}}})


def loss_after_scaling(make, label):
    """The loss, and for each filter of that label the loss with it 3 times as long."""
    graph, params, stats = trained(make, length=1e3, dtype=jnp.float64)
    loss = compiled_loss(graph, params, stats, images_of())
    flat, treedef = jax.tree.flatten(params)
    scaled = []
    for n, found in enumerate(jax.tree.leaves(label_spheres(params))):
        if flat[n].ndim == 4 and found == label:
            for factors in 1 + 2 * np.eye(flat[n].shape[-1]):
                new = [*flat[:n], flat[n] * factors, *flat[n + 1 :]]
                scaled.append(float(loss(treedef.unflatten(new))))
    return float(loss(params)), scaled


@every_tiny
@pytest.mark.usefixtures("x64")
def test_each_filter_is_scale_invariant(make):
    loss, scaled = loss_after_scaling(make, "filter")
    assert len(scaled) >= 12
    assert scaled == pytest.approx([loss] * len(scaled), rel=1e-8)


@pytest.mark.usefixtures("x64")
def test_no_filter_of_a_last_convolution_is_scale_invariant():
    loss, scaled = loss_after_scaling(TINY["convnet"], "euclidean")
    assert len(scaled) == 10
    assert min(abs(found - loss) for found in scaled) > 1e-3


@every_model
@pytest.mark.usefixtures("x64")
def test_all_filters_at_once_are_scale_invariant(name):
    graph, params, stats = trained(MODELS[name], length=1e3, dtype=jnp.float64)
    random = np.random.default_rng(2)
    scaled = jax.tree.map(
        lambda label, x: (
            x * random.uniform(1 / 3, 3, x.shape[-1]) if label == "filter" else x
        ),
        label_spheres(params),
        params,
    )
    loss = compiled_loss(graph, params, stats, images_of(16))
    assert float(loss(scaled)) == pytest.approx(float(loss(params)), rel=1e-8)
    # It would show if they were not.
    scaled["head"]["kernel"] *= 3
    assert abs(loss(scaled) - loss(params)) > 1e-3


# Types


@every_tiny
def test_bfloat16_computes_and_float32_remembers(make, computed):
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, params, stats = trained(make, dtype=dtype)
        assert types(abstract(make, dtype=dtype)[1:]) == {"float32"}
        forward = compiled(
            partial(apply, graph, train=True), params, stats, images_of()
        )
        found.append(forward(params, stats, images_of()))
        assert types(found[-1]) == {"float32"}
        if make is TINY["convnet"]:
            assert types(computed.pop()) == {"float32"}  # the logits
        assert types(computed) == {jnp.dtype(dtype).name}
        computed.clear()
    (exact, exact_stats), (rounded, rounded_stats) = found
    assert not jnp.array_equal(exact, rounded)
    assert float(loss_of(rounded)) == pytest.approx(float(loss_of(exact)), rel=2e-2)
    for x, y in zip(*map(jax.tree.leaves, (exact_stats, rounded_stats)), strict=True):
        assert jnp.abs(x - y).max() < 0.02 * jnp.abs(x).max()


# Training


@every_tiny
@both_types
def test_steps_of_training(make, dtype):
    graph, params, stats = trained(make, dtype=dtype)
    optimizer = so.adamsrt(1e-2, labels=label_spheres(params))

    def step(params, stats, state):
        def loss_fn(params):
            logits, after = apply(graph, params, stats, images_of(), train=True)
            return loss_of(logits), after

        (loss, after), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), after, state, loss

    state, before, losses = optimizer.init(params), params, []
    step = compiled(step, params, stats, state)
    for _ in range(5):
        params, stats, state, loss = step(params, stats, state)
        losses.append(loss)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, stats)))
    assert types((params, stats)) == {"float32"}
    assert losses[-1] < losses[0]
    after = leaves(params)
    assert [p for p, leaf in leaves(before).items() if (leaf == after[p]).all()] == []


@every_tiny
def test_training_moves_the_statistics_and_evaluation_does_not(make):
    graph, params, stats = trained(make)
    before = leaves(stats)
    for train in (True, False):
        forward = compiled(
            partial(apply, graph, train=train), params, stats, images_of()
        )
        _, stats_after = forward(params, stats, images_of())
        moved = {
            p: bool((x != before[p]).any()) for p, x in leaves(stats_after).items()
        }
        assert set(moved.values()) == {train}


@every_tiny
def test_an_image_is_judged_alone_in_evaluation(make):
    graph, params, stats = trained(make)
    forward = jax.jit(partial(apply, graph, train=False))
    together, _ = forward(params, stats, images_of())
    alone, _ = forward(params, stats, images_of()[:1])
    np.testing.assert_allclose(alone, together[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "path", "fan_in", "bound", "variance"),
    [
        ("resnet20", "stage2/block1/conv1/kernel", 9 * 32, 1, 1 / 3),
        ("vgg16", "stage2/conv1/kernel", 9 * 64, 1, 1 / 3),
        ("resnet18", "head/kernel", 512, 1, 1 / 3),
        ("vgg16", "head/bias", 512, 1, 1 / 3),
        ("convnet", "conv4/kernel", 9 * 32, 10, 2 / 1.01),
        ("convnet", "head/bias", 9 * 64, 1, 1 / 3),
        ("small_resnet", "stage3/block0/conv2/kernel", 9 * 64, 4, 2),
    ],
)
def test_initial_weights(name, path, fan_in, bound, variance):
    keys = jax.random.split(jax.random.key(0), 100 if path == "head/bias" else 1)
    draw = compiled(lambda key: leaves(split(MODELS[name], key)[1])[path], keys[0])
    scaled = np.stack([draw(key) for key in keys]) * np.sqrt(fan_in)
    assert np.abs(scaled).max() <= bound
    assert scaled.var() == pytest.approx(variance, rel=0.1)
    assert scaled.mean() == pytest.approx(0, abs=0.1)
