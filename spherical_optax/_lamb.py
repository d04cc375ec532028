"""LAMB: Adam's direction with a step as long as each layer's weights allow."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import check_flag, check_numbers, is_traced, needs_params
from spherical_optax._leaves import leaf_function, map_leaves
from spherical_optax._limits import (
    bounded,
    capped,
    either,
    finite,
    in_range,
    quotient,
    root_floor,
    square_floor,
)
from spherical_optax._moments import (
    Number,
    adam_rate,
    cast_tree,
    ema,
    ema_of_squares,
    increment,
    value_at,
    zeros_like_params,
    zeros_like_squares,
)
from spherical_optax.geometry import real_dtype, widen, working_dtype


class ScaleByLambState(NamedTuple):
    """State of :func:`scale_by_lamb`."""

    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates  # shapes of the parameters
    nu: optax.Updates  # shapes of the parameters
    weight_norm: optax.Updates  # one number a leaf: min(|x|, max_weight_norm)
    adam_norm: optax.Updates  # one number a leaf: |r|
    trust_ratio: optax.Updates  # one number a leaf


def scale_by_lamb(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    bias_correction: bool = False,
    max_weight_norm: Number = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by LAMB's direction and trust ratio, without learning rate.

    See :func:`lamb` for the mathematics and the arguments.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> block = so.scale_by_lamb()
      >>> x = jnp.array([3.0, 4.0])
      >>> _, state = block.update(x, block.init(x), x)
      >>> state.weight_norm
      Array(5., dtype=float32)
    """
    unbounded = not is_traced(max_weight_norm) and max_weight_norm == math.inf
    check_numbers(
        non_negative={"eps": eps, "weight_decay": weight_decay},
        positive={} if unbounded else {"max_weight_norm": max_weight_norm},
        below_one={"b1": b1, "b2": b2},
    )
    check_flag("bias_correction", bias_correction)

    def init_fn(params):
        def per_leaf(value):
            return jax.tree.map(
                lambda x: jnp.full_like(
                    x, value, real_dtype(working_dtype(x)), shape=()
                ),
                params,
            )

        return ScaleByLambState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like_params(params),
            nu=zeros_like_squares(params),
            weight_norm=per_leaf(0.0),
            adam_norm=per_leaf(0.0),
            trust_ratio=per_leaf(1.0),
        )

    def update_fn(updates, state, params=None):
        count = increment(state.count)
        rate, floor = jnp.ones(()), root_floor(eps)
        if bias_correction:
            rate, floor = adam_rate(b1, b2, eps, count)
        decay = capped(value_at(weight_decay, state.count))
        longest = square_floor(jnp.square(widen(max_weight_norm)))
        numbers = rate, floor, decay, longest
        step = _step(b1=b1, b2=b2)
        steps, mu, nu, *norms = map_leaves(
            6,
            lambda *leaf: step(*leaf, *numbers),
            updates,
            state.mu,
            state.nu,
            params,
        )
        kept = state.weight_norm, state.adam_norm, state.trust_ratio
        return steps, ScaleByLambState(count, mu, nu, *cast_tree(tuple(norms), kept))

    return needs_params(
        "scale_by_lamb", optax.GradientTransformation(init_fn, update_fn)
    )


@leaf_function
def _step(g, m, v, x, rate, floor, decay, longest, *, b1, b2):
    """The step, both moments, both norms and the trust ratio."""
    bound = bounded(g)
    mu, nu = ema(bound, m, b1), ema_of_squares(bound, v, b2)
    r = quotient(rate * mu, jnp.sqrt(nu) + floor) + decay * widen(x)
    xx, rr = (geometry.squared_norm(a, ()).reshape(()) for a in (x, r))
    weight_norm = _root(jnp.minimum(xx, longest.astype(xx.dtype)))
    adam_norm = _root(rr)
    trust = _trust_ratio(weight_norm, adam_norm)
    kept = finite(trust * finite(r)), mu, nu  # the trust ratio may vanish
    return *cast_tree(kept, (g, m, v)), weight_norm, adam_norm, trust


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    bias_correction: bool = False,
    max_weight_norm: Number = 10.0,
) -> optax.GradientTransformationExtraArgs:
    r"""LAMB: layer-wise adaptive moments for large batches.

    Moments :math:`m`, :math:`v` as in Adam, norms over the whole leaf:

    .. math::
      r = \frac{m}{\sqrt{v} + \epsilon} + \lambda x, \qquad
      \tau = \frac{\min(|x|, c)}{|r|}, \qquad
      x \leftarrow x - \eta\, \tau\, r

    with :math:`\tau = 1` where either norm is 0.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: :math:`\epsilon`, added to the denominator.
      weight_decay: :math:`\lambda`, a number or a schedule.
      bias_correction: whether to divide the moments by :math:`1 - b^t`.
      max_weight_norm: :math:`c`, the largest weight norm that counts; ``math.inf``
        if all do.

    Returns:
      An optimizer. ``update`` needs the parameters. Its state keeps, of the last
      step and for every leaf, ``weight_norm`` (:math:`\min(|x|, c)`), ``adam_norm``
      (:math:`|r|`) and ``trust_ratio``; :func:`optax.tree.get` finds them.

    Raises:
      ValueError: a hyperparameter is out of range, or ``params`` is ``None``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.lamb(1e-2)
      >>> x = {"kernel": jnp.array([3.0, 4.0])}
      >>> state = optimizer.init(x)
      >>> updates, state = optimizer.update(x, state, x)
      >>> optax.tree.get(state, "weight_norm")
      {'kernel': Array(5., dtype=float32)}

    Differences:
      The paper leaves the scaling function of the weight norm open; clipping to
      [0, 10] and leaving bias uncorrected come from the first public
      implementation. :func:`optax.lamb` corrects bias and does not clip.

    References:
      You et al., `Large batch optimization for deep learning: training BERT in 76
      minutes <https://arxiv.org/abs/1904.00962>`_, 2019
    """
    check_numbers(non_negative={"learning_rate": learning_rate})
    return needs_params(
        "lamb",
        in_range(
            optax.chain(
                scale_by_lamb(
                    b1,
                    b2,
                    eps,
                    weight_decay,
                    bias_correction=bias_correction,
                    max_weight_norm=max_weight_norm,
                ),
                optax.scale_by_learning_rate(learning_rate),
            )
        ),
    )


def _trust_ratio(weight_norm: jax.Array, adam_norm: jax.Array) -> jax.Array:
    some_zero = (weight_norm == 0) | (adam_norm == 0)
    return either(some_zero, 1.0, capped(weight_norm / root_floor(adam_norm)))


def _root(square: jax.Array) -> jax.Array:
    """Its root, with a derivative of 0 at 0.

    Divided last: XLA does that once, and not in all that needs a norm.
    """
    return square / jnp.sqrt(square_floor(square))
