"""What weight decay does to spheres: where it leads, and how to keep it there."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import check_choice, check_numbers, needs_params
from spherical_optax._limits import bounded, capped, finite
from spherical_optax._moments import Number, increment, value_at
from spherical_optax.geometry import widen
from spherical_optax.labels import ChannelAxesTable, Labels, partition_by_label

DECOUPLED = ("adamw",)
NORMALIZED = ("adam", "adams", "adamsrt")
MOMENTUM = ("sgd", "sgdmrt")
TRANSPORTED = ("sgdmrt", "adamsrt")
PREDICTED = (*MOMENTUM, *DECOUPLED, *NORMALIZED)


class CorrectedDecayState(NamedTuple):
    """State of the part of :func:`add_corrected_weight_decay` on spheres."""

    count: jax.Array  # shape=(), dtype=int32


def equilibrium_rotation(
    optimizer: str,
    learning_rate: Number,
    weight_decay: Number,
    *,
    momentum: Number = 0.0,
    b1: Number = 0.9,
    group_size: int | None = None,
    gradient_norm: Number | None = None,
) -> Number:
    r"""Predicts the angle by which a group on a sphere turns at each step.

    A step along a tangent makes a group grow, weight decay makes it shrink, and after
    about :math:`1 / (2 \eta \lambda)` steps the two balance. If gradients are as good
    as independent from step to step, with :math:`\eta` the learning rate and
    :math:`\lambda` the weight decay, the root mean square of the angle is, in radians,

    .. math:: \sqrt{\frac{2 \eta \lambda}{1 + \mu}}

    for ``"sgd"`` with momentum :math:`\mu`, and

    .. math:: \sqrt{2 \eta \lambda \frac{1 - b_1}{1 + b_1}}

    for ``"adamw"``: neither depends on the gradient or on the layer. Where weight decay
    is added to the gradient before Adam divides by its size, the angle does: for
    ``"adam"`` (with coupled L2) and ``"adams"`` it is

    .. math::
      \sqrt{\frac{1 - b_1}{1 + b_1}} \,
      \left( \frac{2 \eta^2 \lambda d}{\gamma} \right)^{1/3}

    with :math:`d` the size of the group and :math:`\gamma = |x|\,|g|` the length that
    the gradient has on the unit sphere.

    A momentum that is transported is a tangent at every step: weight decay does not
    gather in it, and groups settle at a smaller norm. For ``"sgdmrt"`` the angle is
    :math:`\sqrt{2 \eta \lambda}` whatever the momentum, and for ``"adamsrt"`` it is
    that of ``"adam"`` times :math:`(1 + b_1)^{1/3}`.

    Args:
      optimizer: one of the names above. Weight decay is coupled L2, but for
        ``"adamw"``.
      learning_rate: :math:`\eta`, a number or an array, as all that follow.
      weight_decay: :math:`\lambda`.
      momentum: :math:`\mu` of SGD, without dampening.
      b1: :math:`b_1`, decay rate of Adam's first moment.
      group_size: :math:`d`, for Adam with coupled L2 alone.
      gradient_norm: :math:`\gamma`, likewise.

    Returns:
      The angle, small against 1; a number, or an array if an argument is one.

    Raises:
      ValueError: the optimizer is unknown, a number is out of range, or
        ``group_size`` and ``gradient_norm`` are missing where they are needed.

    Example:
      >>> import spherical_optax as so
      >>> round(so.equilibrium_rotation("sgd", 0.1, 5e-4, momentum=0.9), 4)
      0.0073

    References:
      Kosson, Messmer and Jaggi, `Rotational equilibrium: how weight decay balances
      learning across neural networks <https://arxiv.org/abs/2305.17212>`_, 2024
    """
    check_choice("optimizer", optimizer, PREDICTED)
    check_numbers(
        non_negative={"learning_rate": learning_rate, "weight_decay": weight_decay},
        below_one={"momentum": momentum, "b1": b1},
        arrays=True,
    )
    if getattr(learning_rate, "dtype", jnp.float32) in (jnp.float16, jnp.bfloat16):
        learning_rate = widen(learning_rate)  # its products would underflow
    strength = 2 * (learning_rate * weight_decay)
    if optimizer in MOMENTUM:
        gathered = 1 if optimizer in TRANSPORTED else 1 + momentum
        return _power(strength / gathered, 0.5)
    averaging = (1 - b1) / (1 + b1)
    if optimizer in DECOUPLED:
        return _power(strength * averaging, 0.5)
    if group_size is None or gradient_norm is None:
        raise ValueError(
            f"group_size and gradient_norm must be given for {optimizer!r}, whose"
            " rotation depends on them"
        )
    check_numbers(
        positive={"group_size": group_size, "gradient_norm": gradient_norm}, arrays=True
    )
    if optimizer in TRANSPORTED:
        strength = strength * (1 + b1)
    turn = _power(strength * learning_rate * group_size / gradient_norm, 1 / 3)
    return _power(averaging, 0.5) * turn


def add_corrected_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    learning_rate: optax.ScalarOrSchedule,
    peak_learning_rate: Number,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds weight decay that falls with the learning rate, on spheres.

    .. math::
      u \leftarrow u + \lambda \frac{\eta_t}{\eta_{\max}} x \text{ on spheres}, \qquad
      u \leftarrow u + \lambda x \text{ elsewhere}

    The norm at which a group settles depends on :math:`\eta / \lambda` (see
    :func:`equilibrium_rotation`). A schedule that lowers :math:`\eta` alone lowers that
    norm, and gradients, which are inversely proportional to it, grow towards the end
    of training. With both lowered alike the norm stays.

    Args:
      weight_decay: :math:`\lambda`, a number or a schedule.
      learning_rate: :math:`\eta_t`, the same number or schedule that the optimizer has.
      peak_learning_rate: :math:`\eta_{\max}`, the largest value of the schedule.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.

    Returns:
      A transformation that needs parameters. It stands where
      :func:`optax.add_decayed_weights` would: after Adam's direction and before the
      learning rate for decoupled weight decay.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or, naming
        the path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> rate = optax.cosine_decay_schedule(1e-3, 1000)
      >>> optimizer = optax.chain(
      ...     optax.scale_by_adam(),
      ...     so.add_corrected_weight_decay(0.1, rate, peak_learning_rate=1e-3),
      ...     optax.scale_by_learning_rate(rate))
      >>> state = optimizer.init({"kernel": jnp.ones((3, 3, 2, 4))})

    References:
      Defazio, `Why gradients rapidly increase near the end of training
      <https://arxiv.org/abs/2506.02285>`_, 2025
    """
    check_numbers(
        non_negative={"weight_decay": weight_decay, "learning_rate": learning_rate},
        positive={"peak_learning_rate": peak_learning_rate},
    )

    def decay_at(count):
        peak = jnp.asarray(peak_learning_rate, float)
        share = geometry.divide(value_at(learning_rate, count), peak)
        return value_at(weight_decay, count) * capped(share)

    return needs_params(
        "add_corrected_weight_decay",
        partition_by_label(
            lambda _: _add_decayed_weights(decay_at),
            _add_decayed_weights(lambda count: value_at(weight_decay, count)),
            labels,
            channel_axes,
        ),
    )


def _add_decayed_weights(
    decay_at: Callable[[jax.Array], Number],
) -> optax.GradientTransformation:
    """``u + decay x`` with a decay that is always a schedule, in float32 at least."""

    def init_fn(params):
        del params
        return CorrectedDecayState(jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None):
        decay = capped(decay_at(state.count))
        decayed = jax.tree.map(
            lambda u, x: finite(widen(u) + decay * bounded(x)), updates, params
        )
        return decayed, CorrectedDecayState(increment(state.count))

    return optax.GradientTransformation(init_fn, update_fn)


def _power(x: Number, exponent: float) -> Number:
    """``x**exponent`` of a number or an array."""
    if isinstance(x, (int, float)):
        return math.pow(x, exponent)
    return jnp.power(x, exponent)
