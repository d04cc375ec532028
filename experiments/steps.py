"""The compiled functions: one step of training, many of them, and the evaluation.

All are pure functions of arrays. On a CPU a step is called from a Python loop: there a
convolution inside a loop of the compiled program runs many times slower.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.compiling import compile_ahead
from experiments.data import HasStatistics, normalize
from experiments.mesh import Layout


class TrainState(NamedTuple):
    """What a step changes; its buffers are donated to the next step."""

    step: jax.Array  # shape=(), dtype=int32: steps done
    params: Any  # pure tree of the model's nnx.Param
    stats: Any  # pure tree of the rest: running statistics of the batch norms
    opt_state: optax.OptState


class Means(NamedTuple):
    """Mean loss and accuracy over some batches."""

    loss: float
    accuracy: float
    batches: int


Pick = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
"""From what a feed hands over and the step, to its images, as bytes, and labels."""

Build = Callable[[Any], optax.GradientTransformation]
"""From the parameters' shapes to the optimizer."""

Step = Callable[..., tuple[TrainState, "Tally"]]
"""From state, tally and what a feed hands over to state and tally."""


class Tally(NamedTuple):
    """Sums over an epoch so far, up to the first step that was not finite."""

    loss: jax.Array  # shape=(), float32: sum of the batches' mean losses
    correct: jax.Array  # shape=(), int32
    batches: jax.Array  # shape=(), int32
    bad_step: jax.Array  # shape=(), int32: first step not finite, from 1; 0 for none
    bad_loss: jax.Array  # shape=(), float32: the loss at that step
    bad_leaf: jax.Array  # shape=(), int32: first leaf of its gradient not finite; or -1

    @classmethod
    def zero(cls) -> "Tally":
        """The tally before the first batch."""
        count, number = np.zeros([], np.int32), np.zeros([], np.float32)
        return cls(*jax.device_put((number, count, count, count, number, count - 1)))

    def means(self, batch_size: int) -> Means:
        """The means over the batches in it; NaN while there is none."""
        batches = int(self.batches)
        if batches == 0:
            return Means(math.nan, math.nan, 0)
        images = batches * batch_size
        return Means(float(self.loss) / batches, int(self.correct) / images, batches)


class Plan(NamedTuple):
    """A model and its optimizer, before there are arrays.

    Attributes:
      graph: of the model, without arrays.
      optimizer: what turns gradients into updates.
      init: from a random key to the state before the first step.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    init: Callable[[jax.Array], TrainState]


def plan(
    model: Callable[..., nnx.Module], make_optimizer: Build, key: jax.Array
) -> Plan:
    """Traces the model for its shapes, and makes the optimizer from them.

    Args:
      model: constructor, called with ``rngs``.
      make_optimizer: called with the parameters' shapes.
      key: of the kind that decides the initial weights.
    """

    def split(key: jax.Array) -> tuple[nnx.GraphDef, Any, Any]:
        graph, params, stats = nnx.split(model(rngs=nnx.Rngs(key)), nnx.Param, ...)
        return graph, nnx.as_pure(params), nnx.as_pure(stats)

    graph, shapes, _ = nnx.eval_shape(split, key)
    optimizer = make_optimizer(shapes)

    def init(key: jax.Array) -> TrainState:
        _, params, stats = split(key)
        return TrainState(
            jnp.zeros([], jnp.int32), params, stats, optimizer.init(params)
        )

    return Plan(graph, optimizer, init)


def init_state(
    model: Callable[..., nnx.Module],
    make_optimizer: Build,
    key: jax.Array,
) -> tuple[nnx.GraphDef, optax.GradientTransformation, TrainState]:
    """Makes the model, the optimizer and the state before the first step.

    Args:
      model: constructor, called with ``rngs``.
      make_optimizer: called with the parameters' shapes.
      key: decides the initial weights.

    Returns:
      The model's graph, without arrays; the optimizer; the state.
    """
    graph, optimizer, init = plan(model, make_optimizer, key)
    # It runs once: compiling it fast matters more than its speed.
    compiled = compile_ahead(init, key, options={"xla_backend_optimization_level": 0})
    return graph, optimizer, compiled(key)


def skipping(build: Build, most: int) -> Build:
    """A builder of the same optimizer, which leaves out what is not finite.

    Args:
      build: of the optimizer.
      most: so many steps in a row.
    """
    return lambda params: optax.apply_if_finite(build(params), most)


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    dataset: HasStatistics,
    pick: Pick,
    *,
    parts: int = 1,
    skip_nonfinite: int = 0,
    layout: Layout | None = None,
) -> Step:
    """Makes the function of one step.

    Args:
      graph: of the model.
      optimizer: what turns gradients into updates.
      dataset: says how images are normalized.
      pick: finds the images of the step.
      parts: of a batch, whose gradients are averaged; they share its images evenly.
      skip_nonfinite: how many steps in a row may be left out; more than 0 needs an
        optimizer made by :func:`skipping`.
      layout: of images and weights on the devices.
    """
    layout = layout or Layout.alone()

    def loss_fn(
        params: Any, stats: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        stats = nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))
        correct = jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32)
        return jnp.mean(losses), (stats, correct)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if parts > 1:
        gradient = _in_parts(gradient, parts, layout)

    def train_step(
        state: TrainState, tally: Tally, source: Any
    ) -> tuple[TrainState, Tally]:
        images, labels = map(layout.batch, pick(source, state.step))
        (loss, (stats, correct)), grads = gradient(
            state.params, state.stats, normalize(dataset, images), labels
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        skipped = jnp.zeros([], bool)
        if skip_nonfinite:
            assert isinstance(opt_state, optax.ApplyIfFiniteState)
            count = opt_state.notfinite_count
            skipped = (count > 0) & (count <= skip_nonfinite)
            stats = jax.tree.map(
                lambda new, old: jnp.where(skipped, old, new), stats, state.stats
            )
        state = layout.keep(TrainState(state.step + 1, params, stats, opt_state))
        return state, _add(tally, state.step, loss, correct, grads, skipped)

    return train_step


def _in_parts(
    gradient: Callable[..., Any], parts: int, layout: Layout
) -> Callable[..., Any]:
    """The same gradient as the mean over parts of the batch, one after another."""
    # Convolutions are slow in loops of a program on the CPU: there it is unrolled.
    unrolled = jax.default_backend() == "cpu"

    def mean_gradient(params: Any, stats: Any, *batch: jax.Array) -> Any:
        batches = [x.reshape(parts, len(x) // parts, *x.shape[1:]) for x in batch]

        def add(carry: Any, part: Sequence[jax.Array]) -> tuple[Any, None]:
            loss, stats, correct, grads = carry
            images, labels = map(layout.batch, part)
            if unrolled:
                images = _after(grads, images)
            (other, (stats, right)), more = gradient(params, stats, images, labels)
            grads = jax.tree.map(lambda g, m: g + m / parts, grads, more)
            return (loss + other / parts, stats, correct + right, grads), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        carry = (jnp.zeros([]), stats, jnp.zeros([], jnp.int32), zeros)
        carry, _ = jax.lax.scan(add, carry, batches, unroll=parts if unrolled else 1)
        loss, stats, correct, grads = carry
        return (loss, (stats, correct)), grads

    return mean_gradient


def _after(tree: Any, x: jax.Array) -> jax.Array:
    """``x``, which is not to be had before the tree is.

    So a part of a batch begins when the gradients of the one before it are there, and
    its memory is used again. XLA would begin all at once; it takes barriers away before
    it decides on the order. What is added is 0, also where there is NaN.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    beyond = [jnp.ravel(leaf)[0] > jnp.inf for leaf in leaves]
    return x + sum(flag.astype(x.dtype) for flag in beyond)


def repeat_step(step: Step) -> Step:
    """Makes the function of many steps, for devices that need no host in between.

    Its last argument is how many; another number does not compile it again.
    """

    def train_steps(
        state: TrainState, tally: Tally, source: Any, count: jax.Array
    ) -> tuple[TrainState, Tally]:
        return jax.lax.fori_loop(
            0, count, lambda _, c: step(*c, source), (state, tally)
        )

    return train_steps


def make_evaluate(
    graph: nnx.GraphDef, dataset: HasStatistics
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Makes the function of one batch of the test: summed loss, correct answers."""

    def evaluate(
        params: Any,
        stats: Any,
        images: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(normalize(dataset, images), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.argmax(logits, -1) == labels
        return jnp.sum(losses * weights), jnp.sum(correct * weights)

    return evaluate


def finite_leaves(tree: Any) -> jax.Array:
    """Of each leaf, in the order of the tree, whether all of it is finite."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def _add(
    tally: Tally,
    step: jax.Array,
    loss: jax.Array,
    correct: jax.Array,
    grads: Any,
    skipped: jax.Array,
) -> Tally:
    """Adds a batch to the tally, or records that it is the first not finite.

    A step that was skipped is neither.

    From then on nothing is added, so that it does not matter how many steps later
    the tally is read.
    """
    leaves = finite_leaves(grads)
    finite = jnp.isfinite(loss) & jnp.all(leaves)
    good_so_far = tally.bad_step == 0
    good, first_bad = good_so_far & finite, good_so_far & ~finite & ~skipped
    leaf = jnp.where(jnp.all(leaves), -1, jnp.argmin(leaves)).astype(jnp.int32)
    return Tally(
        loss=tally.loss + jnp.where(good, loss, 0.0),
        correct=tally.correct + jnp.where(good, correct, 0),
        batches=tally.batches + good,
        bad_step=jnp.where(first_bad, step, tally.bad_step),
        bad_loss=jnp.where(first_bad, loss, tally.bad_loss),
        bad_leaf=jnp.where(first_bad, leaf, tally.bad_leaf),
    )
