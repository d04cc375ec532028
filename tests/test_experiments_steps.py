"""The compiled step: what it counts, and what it says when a number is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.compiling import compile_ahead
from experiments.data import Dataset, Split
from experiments.models.resnet import ResNet
from experiments.steps import (
    Tally,
    init_state,
    make_evaluate,
    make_train_step,
    repeat_step,
    skipping,
)

MARK = 255  # an image with it makes one gradient, or the loss, not finite


class Marked(nnx.Module):
    """A linear model of which the mark breaks one leaf's gradient, or the loss."""

    def __init__(self, *, breaks, rngs):
        self.breaks = breaks
        self.first = nnx.Linear(4, 3, rngs=rngs)
        self.second = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, images, *, train):
        marked = jnp.any(images == MARK)
        x = jnp.where(images == MARK, 0, images).reshape(len(images), 4)
        x = self.first(x) + self.second(x)
        if self.breaks == "loss":
            return x + jnp.where(marked, jnp.inf, 0.0)
        # Nothing is added, but at 0 the derivative of the root is infinite.
        inside = jnp.where(marked, 0.0 * self.second.kernel[...].sum(), 1.0)
        return x + jnp.sqrt(inside) - jnp.where(marked, 0.0, 1.0)


def make_dataset(marked_image=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (12, 2, 2, 1)).astype(np.uint8)
    if marked_image is not None:
        images[marked_image, 0, 0] = MARK
    split = Split(images, (np.arange(12) % 3).astype(np.int32))
    return Dataset("toy", 3, split, split, (0.0,), (1.0,), lambda key, images: images)


def train(breaks, marked_image, steps, in_one_call=False):
    """The tally after some steps of four images, in their order."""
    return train_on(breaks, marked_image, steps, in_one_call=in_one_call)[1]


def train_on(
    breaks, marked_image, steps, *, in_one_call=False, parts=1, skip_nonfinite=0
):
    """State and tally after some steps of four images, in their order."""
    dataset = make_dataset(marked_image)
    graph, optimizer, state = init_state(
        lambda rngs: Marked(breaks=breaks, rngs=rngs),
        skipping(sgd, skip_nonfinite) if skip_nonfinite else sgd,
        jax.random.key(0),
    )
    batches = (
        jnp.asarray(dataset.train.images).reshape(3, 4, 2, 2, 1),
        jnp.asarray(dataset.train.labels).reshape(3, 4),
    )
    options = {"parts": parts, "skip_nonfinite": skip_nonfinite}
    step = make_train_step(graph, optimizer, dataset, pick, **options)
    tally = Tally.zero()
    if in_one_call:
        step = compile_ahead(repeat_step(step), state, tally, batches, np.int32(0))
        return step(state, tally, batches, np.int32(steps))
    step = compile_ahead(step, state, tally, batches, donate=0)
    for _ in range(steps):
        state, tally = step(state, tally, batches)
    return state, tally


def sgd(_):
    return optax.sgd(0.01, momentum=0.9)


def pick(batches, step):
    images, labels = batches
    return images[step % 3], labels[step % 3]


def test_tally_counts_finite_batches():
    tally = train("loss", None, steps=3)
    assert (tally.batches, tally.bad_step, tally.bad_leaf) == (3, 0, -1)
    means = tally.means(4)
    assert means.batches == 3
    assert means.accuracy == int(tally.correct) / 12
    assert means.loss == pytest.approx(float(tally.loss) / 3)


@pytest.mark.parametrize("marked_image", [None, 6])
def test_steps_in_one_call_are_the_steps(marked_image):
    one_by_one = train("gradient", marked_image, steps=5)
    at_once = train("gradient", marked_image, steps=5, in_one_call=True)
    for one, other in zip(one_by_one, at_once, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("steps_after", [0, 1, 2])
@pytest.mark.parametrize(("breaks", "leaf"), [("gradient", 3), ("loss", 0)])
def test_first_step_that_is_not_finite_is_recorded(breaks, leaf, steps_after):
    """However late it is read; leaf 3 of the tree is second/kernel, 0 first/bias."""
    good = train(breaks, None, steps=1)
    tally = train(breaks, marked_image=6, steps=2 + steps_after)
    assert (tally.bad_step, tally.bad_leaf) == (2, leaf)
    assert np.isfinite(tally.bad_loss) == (breaks == "gradient")
    assert tally.means(4) == good.means(4)


def leaves_of(state):
    return [np.asarray(x) for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("in_one_call", [False, True])
def test_a_step_that_is_not_finite_is_left_out(in_one_call):
    once = {"skip_nonfinite": 2, "in_one_call": in_one_call}
    before, tally_before = train_on("gradient", 6, 1, **once)
    after, tally = train_on("gradient", 6, 2, **once)
    for one, other in zip(
        leaves_of((before.params, before.opt_state.inner_state)),
        leaves_of((after.params, after.opt_state.inner_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert (tally.batches, tally.bad_step) == (1, 0)
    assert tally.means(4) == tally_before.means(4)
    assert int(after.opt_state.total_notfinite) == 1
    later, tally = train_on("gradient", 6, 6, **once)  # twice past the mark
    assert (tally.batches, tally.bad_step) == (4, 0)
    assert int(later.opt_state.total_notfinite) == 2
    assert all(np.isfinite(x).all() for x in leaves_of(later))


def test_too_many_in_a_row_are_not_left_out():
    dataset = make_dataset()
    dataset.train.images[:, 0, 0] = MARK
    graph, optimizer, state = init_state(
        lambda rngs: Marked(breaks="gradient", rngs=rngs),
        skipping(sgd, 2),
        jax.random.key(0),
    )
    batch = (
        jnp.asarray(dataset.train.images[:4]),
        jnp.asarray(dataset.train.labels[:4]),
    )
    step = jax.jit(
        make_train_step(graph, optimizer, dataset, lambda b, _: b, skip_nonfinite=2)
    )
    tally, bad = Tally.zero(), []
    for _ in range(4):
        state, tally = step(state, tally, batch)
        bad.append(int(tally.bad_step))
    assert bad == [0, 0, 3, 3]
    assert int(tally.bad_leaf) == 3


@pytest.mark.parametrize("in_one_call", [False, True])
def test_parts_of_a_batch_make_the_same_step(in_one_call):
    whole, tally = train_on("loss", None, 5, in_one_call=in_one_call)
    for parts in (2, 4):
        state, other = train_on("loss", None, 5, in_one_call=in_one_call, parts=parts)
        for one, another in zip(leaves_of(whole), leaves_of(state), strict=True):
            np.testing.assert_allclose(one, another, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(tally.loss, other.loss, rtol=1e-6)
        assert int(tally.correct) == int(other.correct)


@pytest.mark.parametrize("marked_image", [4, 7])
def test_parts_after_one_that_is_not_finite_name_its_leaf(marked_image):
    tally = train_on("gradient", marked_image, 2, parts=4)[1]
    assert (tally.bad_step, tally.bad_leaf) == (2, 3)


def test_parts_need_the_memory_of_one_part():
    """Also where they are unrolled: XLA would begin all of them at once."""
    dataset = Dataset("toy", 10, None, None, (0.5,), (0.5,), lambda key, images: images)
    graph, optimizer, state = init_state(
        functools.partial(ResNet, (8, 8), (1, 1), channels=1, num_classes=10),
        sgd,
        jax.random.key(0),
    )
    batch = (
        jax.ShapeDtypeStruct((256, 16, 16, 1), jnp.uint8),
        jax.ShapeDtypeStruct((256,), jnp.int32),
    )

    def bytes_needed(parts):
        step = make_train_step(
            graph, optimizer, dataset, lambda source, step: source, parts=parts
        )
        compiled = jax.jit(step).lower(state, Tally.zero(), batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_needed(8) < 0.25 * bytes_needed(1)


def test_evaluation_leaves_the_padding_out():
    dataset = make_dataset()
    graph, _, state = init_state(
        lambda rngs: Marked(breaks="loss", rngs=rngs),
        lambda _: optax.identity(),
        jax.random.key(0),
    )
    evaluate = jax.jit(make_evaluate(graph, dataset))
    images, labels = dataset.test.images, dataset.test.labels
    weights = (np.arange(12) < 7).astype(np.float32)
    loss, correct = evaluate(state.params, state.stats, images, labels, weights)
    logits = nnx.merge(graph, state.params, state.stats)(
        jnp.asarray(images, jnp.float32), train=False
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert float(loss) == pytest.approx(float(losses[:7].sum()), rel=1e-5)
    assert correct == np.sum(np.argmax(logits, -1)[:7] == labels[:7])
