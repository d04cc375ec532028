"""The optimizers of the fifth study: those of the lesson, and kinds of weight decay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import spherical_optax as so


class FirstSquareState(NamedTuple):
    """State of :func:`scale_by_rms_of_the_first`."""

    count: jax.Array  # shape=(), dtype=int32
    nu: optax.Updates  # shapes of the parameters


class GradientState(NamedTuple):
    """State of :func:`record_gradients`: of each leaf's gradient at the last step."""

    mean: optax.Updates  # one number a leaf
    std: optax.Updates  # one number a leaf


@dataclass(frozen=True)
class Row:
    """A row of the lesson's table.

    Attributes:
      title: of the optimizer.
      short: the same, for small figures.
      make: the optimizer.
      epochs: how long it is trained.
      train: published accuracy on the training images, as they were trained on.
      test: published accuracy on the test images.
    """

    title: str
    short: str
    make: Callable[[], optax.GradientTransformation]
    epochs: int
    train: float
    test: float


def scale_by_rms_of_the_first(decay: float, eps: float) -> optax.GradientTransformation:
    """RMSprop whose average begins with the first squared gradient, not with zeros."""

    def init_fn(params: Any) -> FirstSquareState:
        return FirstSquareState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params))

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        share = jnp.where(state.count == 0, 0.0, decay)
        nu = jax.tree.map(
            lambda g, v: share * v + (1 - share) * g**2, updates, state.nu
        )
        steps = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), updates, nu)
        return steps, FirstSquareState(state.count + 1, nu)

    return optax.GradientTransformation(init_fn, update_fn)


def record_gradients() -> optax.GradientTransformation:
    """Changes nothing; its state has mean and deviation of each leaf's gradient."""

    def numbers(tree: Any, function: Callable[[jax.Array], jax.Array]) -> Any:
        return jax.tree.map(function, tree)

    def init_fn(params: Any) -> GradientState:
        zeros = numbers(params, lambda x: jnp.zeros([], x.dtype))
        return GradientState(zeros, numbers(params, lambda x: jnp.zeros([], x.dtype)))

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        del state, params
        return updates, GradientState(
            numbers(updates, jnp.mean), numbers(updates, jnp.std)
        )

    return optax.GradientTransformation(init_fn, update_fn)


ROWS = {
    "sgd": Row("SGD", "SGD", lambda: optax.sgd(0.4), 1, 0.758, 0.826),
    "rmsprop": Row(
        "RMSprop from the first square",
        "RMSprop",
        lambda: optax.chain(
            scale_by_rms_of_the_first(0.99, 1e-5), optax.scale_by_learning_rate(3e-3)
        ),
        1,
        0.766,
        0.829,
    ),
    "adam": Row(
        "Adam", "Adam", lambda: optax.adam(6e-3, 0.9, 0.99, 1e-5), 2, 0.877, 0.874
    ),
    "adam_abs": Row(
        "Adam with the mean of absolute gradients",
        "Adam, absolute",
        lambda: so.adam_abs(6e-3, 0.9, 0.9, 1e-8),
        2,
        0.876,
        0.876,
    ),
}
"""Rows of the lesson's table."""

KINDS = ("none", "L2", "decoupled")
RATES = {"sgd": 0.4, "adam": 6e-3, "adams": 6e-3, "adamsrt": 6e-3, "sgdmrt": 0.04}
"""Learning rates of the comparison of decays; sgdmrt has momentum 0.9."""
_BASES: dict[str, Callable[[Any, float], optax.GradientTransformation]] = {
    "sgd": lambda labels, decay: _with_l2(optax.sgd(RATES["sgd"]), decay),
    "adam": lambda labels, decay: _with_l2(optax.adam(RATES["adam"]), decay),
    "adams": lambda labels, decay: so.adams(
        RATES["adams"], weight_decay=decay, labels=labels
    ),
    "adamsrt": lambda labels, decay: so.adamsrt(
        RATES["adamsrt"], weight_decay=decay, labels=labels
    ),
    "sgdmrt": lambda labels, decay: so.sgdmrt(
        RATES["sgdmrt"], 0.9, weight_decay=decay, labels=labels
    ),
}


def with_decay(
    name: str, kind: str, decay: float, labels: Any
) -> optax.GradientTransformation:
    """An optimizer with L2, with decoupled weight decay, or with none.

    L2 adds ``decay`` times the weights to the gradient, and the optimizer does with it
    what it does with gradients. Decoupled decay takes learning rate times ``decay``
    times the weights off, whatever the gradient is.

    Args:
      name: of one of ``RATES``.
      kind: of ``KINDS``.
      decay: how strong.
      labels: of the parameters, for optimizers on spheres.
    """
    if kind == "L2":
        return _BASES[name](labels, decay)
    base = _BASES[name](labels, 0.0)
    if kind == "none":
        return base
    return optax.chain(base, optax.add_decayed_weights(-RATES[name] * decay))


def _with_l2(
    base: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay), base) if decay else base
