"""AdaBound and AMSBound: Adam whose element-wise step sizes are clipped to SGD's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import check_flag, check_numbers, is_traced, needs_params
from spherical_optax._leaves import leaf_function, map_leaves
from spherical_optax._limits import bounded, capped, either, in_range, root_floor
from spherical_optax._moments import (
    Number,
    add_decayed_weights,
    bias_correction,
    cast_tree,
    ema,
    ema_of_squares,
    increment,
    value_at,
    zeros_like_params,
    zeros_like_squares,
)


class ScaleByAdaBoundState(NamedTuple):
    """State of :func:`scale_by_adabound`."""

    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates  # shapes of the parameters
    nu: optax.Updates  # shapes of the parameters
    nu_max: optax.Updates  # shapes of the parameters; empty unless amsbound
    first_rate: jax.Array  # shape=(); the learning rate of step 0, known after it


def scale_by_adabound(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    final_learning_rate: Number = 0.1,
    gamma: Number = 1e-3,
    eps: Number = 1e-8,
    *,
    amsbound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by AdaBound's clipped step sizes, learning rate included.

    See :func:`adabound` for the mathematics and the arguments. As with every block
    of Optax, the sign is that of the gradient: :func:`optax.scale` by -1 follows.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = optax.chain(so.scale_by_adabound(1e-3), optax.scale(-1.0))
      >>> state = optimizer.init(jnp.ones(3))
    """
    check_numbers(
        non_negative={
            "learning_rate": learning_rate,
            "final_learning_rate": final_learning_rate,
            "eps": eps,
        },
        positive={"gamma": gamma},
        below_one={"b1": b1, "b2": b2},
    )
    check_flag("amsbound", amsbound)
    _check_start(learning_rate)

    def init_fn(params):
        return ScaleByAdaBoundState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like_params(params),
            nu=zeros_like_squares(params),
            nu_max=zeros_like_squares(params) if amsbound else (),
            first_rate=jnp.zeros([]),
        )

    def update_fn(updates, state, params=None):
        del params
        count = increment(state.count)
        rate = jnp.asarray(value_at(learning_rate, state.count), float)
        first = either(state.count == 0, rate, state.first_rate)
        # Injected, a schedule may start at 0; nothing is relative to that.
        scaled = either(first > 0, geometry.divide(rate, first), 1.0)
        scaled = either(rate > 0, scaled, 0.0)
        final = capped(final_learning_rate * scaled)
        bias1, bias2 = bias_correction(b1, count), bias_correction(b2, count)
        corrected = capped(rate * jnp.sqrt(bias2) / bias1)
        age = capped(gamma * jnp.asarray(count, float))
        lower = final * (age / (age + 1))
        upper = capped(final * (1 + capped(1 / age)))
        numbers = corrected, lower, upper, root_floor(eps)
        step = _step(b1=b1, b2=b2, amsbound=amsbound)
        steps, mu, nu, nu_max = map_leaves(
            4,
            lambda *leaf: step(*leaf, *numbers),
            updates,
            state.mu,
            state.nu,
            state.nu_max if amsbound else state.nu,
        )
        nu_max = nu_max if amsbound else ()
        return steps, ScaleByAdaBoundState(count, mu, nu, nu_max, first)

    return optax.with_extra_args_support(
        optax.GradientTransformation(init_fn, update_fn)
    )


@leaf_function
def _step(g, m, v, v_max, corrected, lower, upper, floor, *, b1, b2, amsbound):
    mu, nu = ema(bounded(g), m, b1), ema_of_squares(bounded(g), v, b2)
    nu_max = jnp.maximum(v_max, nu) if amsbound else nu
    step = mu * jnp.clip(corrected / (jnp.sqrt(nu_max) + floor), lower, upper)
    return cast_tree((step, mu, nu, nu_max), (g, m, v, v_max))


def adabound(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    final_learning_rate: Number = 0.1,
    gamma: Number = 1e-3,
    eps: Number = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    amsbound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBound: starts as Adam, ends as SGD, element by element.

    With :math:`g \leftarrow g + \lambda x` (coupled L2), moments as in Adam and
    :math:`\eta_t = \eta \sqrt{1 - b_2^t} / (1 - b_1^t)`:

    .. math::
      f = \alpha\, \eta / \eta(0), \qquad
      x \leftarrow x - \mathrm{clip}\left(\frac{\eta_t}{\sqrt{v} + \epsilon},
        f \left(1 - \frac{1}{\gamma t + 1}\right),
        f \left(1 + \frac{1}{\gamma t}\right)\right) m

    With ``amsbound`` the running maximum of :math:`v` stands in place of :math:`v`.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule. A schedule also scales the
        final learning rate, relative to its value at step 0.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      final_learning_rate: :math:`\alpha`, the learning rate of the SGD it ends as.
      gamma: :math:`\gamma`, how fast the bounds close; after :math:`1 / \gamma` steps
        they are half and twice the final learning rate.
      eps: :math:`\epsilon`, added to the denominator.
      weight_decay: :math:`\lambda`, a number or a schedule.
      amsbound: whether to use the running maximum (one more array of the
        parameters' size in the state).

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, a learning rate schedule starts
        at 0 (the final learning rate is relative to it), or ``params`` is ``None``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.adabound(1e-3, final_learning_rate=0.1)
      >>> x = jnp.array([1.0, -2.0])
      >>> state = optimizer.init(x)
      >>> updates, state = optimizer.update(2 * x, state, x)
      >>> optax.apply_updates(x, updates)
      Array([ 0.999, -1.999], dtype=float32)

    Differences:
      The paper divides the learning rate by :math:`\sqrt{t}`; its first
      implementation, which this follows, does not. There a scheduler scales the
      final learning rate through the ratio to the initial one; so it does here, also
      for a learning rate that :func:`optax.inject_hyperparams` changes. Where that
      starts at 0, :math:`f = \alpha` from then on. While it is 0, nothing moves.

    References:
      Luo et al., `Adaptive gradient methods with dynamic bound of learning rate
      <https://arxiv.org/abs/1902.09843>`_, 2019
    """
    check_numbers(non_negative={"weight_decay": weight_decay})
    return needs_params(
        "adabound",
        in_range(
            optax.chain(
                add_decayed_weights(weight_decay),
                scale_by_adabound(
                    learning_rate,
                    b1,
                    b2,
                    final_learning_rate,
                    gamma,
                    eps,
                    amsbound=amsbound,
                ),
                optax.scale(-1.0),
            )
        ),
    )


def _check_start(learning_rate: optax.ScalarOrSchedule) -> None:
    if not callable(learning_rate):
        return
    start = learning_rate(jnp.zeros([], jnp.int32))
    if not is_traced(start) and not jnp.greater(start, 0):
        raise ValueError(
            "learning_rate must start above 0, as final_learning_rate is relative to"
            f" its value at step 0; got {start}"
        )
