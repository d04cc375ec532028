"""adam_abs: Adam with the mean of absolute gradients as its denominator."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax._checks import check_numbers, needs_params
from spherical_optax._limits import bounded_tree, in_range, root_floor
from spherical_optax._moments import (
    Number,
    add_decayed_weights,
    bias_correction,
    cast_tree,
    ema,
    increment,
    zeros_like_params,
    zeros_like_squares,
)


class ScaleByAdamAbsState(NamedTuple):
    """State of :func:`scale_by_adam_abs`."""

    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates  # shapes of the parameters
    nu: optax.Updates  # shapes of the parameters, averages of |g|


def scale_by_adam_abs(
    b1: Number = 0.9, b2: Number = 0.99, eps: Number = 1e-8
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates by a running mean of their absolute values.

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \qquad v \leftarrow b_2 v + (1 - b_2) |g|,
      \qquad u = \frac{m / (1 - b_1^t)}{v / (1 - b_2^t) + \epsilon}

    Args:
      b1: decay rate of the first moment.
      b2: decay rate of the mean of absolute values.
      eps: added to the denominator.

    Returns:
      A transformation.

    Raises:
      ValueError: a hyperparameter is out of range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> block = so.scale_by_adam_abs()
      >>> updates, _ = block.update(jnp.array([3.0, -5.0]), block.init(jnp.zeros(2)))
      >>> updates.round(3)
      Array([ 1., -1.], dtype=float32)
    """
    check_numbers(below_one={"b1": b1, "b2": b2}, non_negative={"eps": eps})

    def init_fn(params):
        return ScaleByAdamAbsState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like_params(params),
            nu=zeros_like_squares(params),
        )

    def update_fn(updates, state, params=None):
        del params
        count = increment(state.count)
        bias1, bias2 = bias_correction(b1, count), bias_correction(b2, count)
        rate, floor = bias2 / bias1, root_floor(eps * bias2)
        grads = bounded_tree(updates)
        mu = jax.tree.map(lambda g, m: ema(g, m, b1), grads, state.mu)
        nu = jax.tree.map(lambda g, v: ema(jnp.abs(g), v, b2), grads, state.nu)
        direction = jax.tree.map(lambda m, v: rate * m / (v + floor), mu, nu)
        return cast_tree(direction, updates), ScaleByAdamAbsState(
            count=count, mu=cast_tree(mu, state.mu), nu=cast_tree(nu, state.nu)
        )

    return optax.with_extra_args_support(
        optax.GradientTransformation(init_fn, update_fn)
    )


def adam_abs(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.99,
    eps: Number = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with the mean of absolute gradients in place of the root mean square.

    With :math:`g \leftarrow g + \lambda x` (coupled L2) and :math:`t = 1, 2, \dots`:

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \qquad v \leftarrow b_2 v + (1 - b_2) |g|,
      \qquad
      x \leftarrow x - \eta \frac{m / (1 - b_1^t)}{v / (1 - b_2^t) + \epsilon}

    The mean of absolute values is at most the root mean square, so steps are a
    little longer than Adam's at the same learning rate.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the mean of absolute gradients.
      eps: :math:`\epsilon`, added to the denominator.
      weight_decay: :math:`\lambda`, a number or a schedule.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, or ``params`` is ``None``.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.adam_abs(0.1)
      >>> x = jnp.array([1.0, -2.0])
      >>> state = optimizer.init(x)
      >>> updates, state = optimizer.update(2 * x, state, x)
      >>> optax.apply_updates(x, updates)
      Array([ 0.9, -1.9], dtype=float32)

    Differences:
      None in the arithmetic: it comes from a lesson's notes on optimizers written
      from scratch, which give the formula; weight decay is an addition. With
      ``b2 = 0.9`` it is the variant in those notes' table.
    """
    check_numbers(
        non_negative={"learning_rate": learning_rate, "weight_decay": weight_decay}
    )
    return needs_params(
        "adam_abs",
        in_range(
            optax.chain(
                add_decayed_weights(weight_decay),
                scale_by_adam_abs(b1, b2, eps),
                optax.scale_by_learning_rate(learning_rate),
            )
        ),
    )
