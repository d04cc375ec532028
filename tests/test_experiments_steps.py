"""The compiled step: what it counts, and what it says when a number is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.data import Dataset, Split
from experiments.steps import (
    Tally,
    compile_ahead,
    init_state,
    make_evaluate,
    make_train_step,
    repeat_step,
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
    dataset = make_dataset(marked_image)
    graph, optimizer, state = init_state(
        lambda rngs: Marked(breaks=breaks, rngs=rngs),
        lambda _: optax.sgd(0.01),
        jax.random.key(0),
    )
    batches = (
        jnp.asarray(dataset.train.images).reshape(3, 4, 2, 2, 1),
        jnp.asarray(dataset.train.labels).reshape(3, 4),
    )
    step = make_train_step(graph, optimizer, dataset, pick)
    tally = Tally.zero()
    if in_one_call:
        step = compile_ahead(repeat_step(step), state, tally, batches, np.int32(0))
        return step(state, tally, batches, np.int32(steps))[1]
    step = compile_ahead(step, state, tally, batches, donate=0)
    for _ in range(steps):
        state, tally = step(state, tally, batches)
    return tally


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
