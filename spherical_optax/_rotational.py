"""Rotational optimizers: every group turns by the angle it would settle at anyway."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import check_numbers, check_transformation, needs_params
from spherical_optax._equilibrium import equilibrium_rotation
from spherical_optax._leaves import leaf_function, map_leaves
from spherical_optax._limits import (
    bounded,
    capped,
    clip,
    either,
    in_range,
    root_floor,
    saturated,
    within_reach,
)
from spherical_optax._moments import (
    Number,
    abs_sq,
    bias_correction,
    ema,
    in_working_precision,
    increment,
    value_at,
)
from spherical_optax._transport import norm_or_shape, told
from spherical_optax.geometry import ChannelAxes, widen
from spherical_optax.labels import (
    ChannelAxesTable,
    Labels,
    check_axes,
    partition_by_label,
)


class RotationalState(NamedTuple):
    """State of the part of :func:`rotational` that moves leaves on spheres."""

    count: jax.Array  # shape=(), dtype=int32
    radius: optax.Params  # per-group norms at init
    nu: optax.Updates  # per-group means of the squared length of the update


def rotational(
    base: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    *,
    b1: Number = 0.9,
    norm_decay: Number = 0.9,
    eps: Number = 1e-8,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Balanced rotation: what weight decay leads to in the end, from the first step.

    Under weight decay the norm of a group settles where growth and decay balance,
    and the group then turns by the same angle at every step, whatever its layer. Here
    it does so from the start. On leaves on spheres, with :math:`u` the direction that
    ``base`` gives, :math:`n` the group's norm at ``init``, and
    :math:`\mathrm{mean}` over the group:

    .. math::
      u \leftarrow u - \frac{\langle u, x\rangle}{n^2} x, \qquad
      u \leftarrow u - \mathrm{mean}(u), \qquad
      s \leftarrow b_s s + (1 - b_s) |u|^2

      y = x - \eta_r\, n\, \frac{u}{\sqrt{s / (1 - b_s^t)} + \epsilon}, \qquad
      x \leftarrow n \frac{y}{|y|}, \qquad
      \eta_r = \sqrt{2 \eta \lambda \frac{1 - b_1}{1 + b_1}}

    where :math:`\eta_r` is the angle at which AdamW settles
    (:func:`equilibrium_rotation`). The other leaves take the base with decoupled
    weight decay, :math:`x \leftarrow x - \eta (u + \lambda x)`.

    Args:
      base: gives the direction, with the gradient's sign and no learning rate, as in
        :func:`hyperball`. It sees all leaves in float32 at least.
      learning_rate: :math:`\eta`, a number or a schedule.
      weight_decay: :math:`\lambda`, a number or a schedule. Where it is 0, groups on
        spheres do not move.
      b1: decay rate of the momentum of ``base``. For SGD with momentum :math:`\mu`,
        ``optax.trace(mu)``, the angle is :math:`\sqrt{2 \eta \lambda / (1 + \mu)}`:
        pass ``b1=mu`` and ``learning_rate=eta / (1 - mu)``.
      norm_decay: :math:`b_s`, decay rate of the mean of squared lengths.
      eps: :math:`\epsilon`, added to the root of that mean.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: ``base`` is no transformation, a hyperparameter is out of range,
        ``params`` is ``None``, or, naming the path, a leaf has no label, an unknown
        one, or too few axes for it.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4))}
      >>> optimizer = so.rotational(optax.scale_by_adam(), 1e-3, weight_decay=0.1)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Differences:
      The first implementation also subtracts from each group of weights its mean,
      once, at the start. Here weights are not touched before the first step; start
      from centred ones (``so.geometry.center``) for the same. Where what is left of
      :math:`u` is no more than rounding errors of what was taken away, as in a group of
      a single weight or in a centred one of two, it counts as 0: divided by its own
      length, it would turn the group at random.

    References:
      Kosson, Messmer and Jaggi, `Rotational equilibrium: how weight decay balances
      learning across neural networks <https://arxiv.org/abs/2305.17212>`_, 2024
    """
    check_transformation("base", base)
    check_numbers(
        non_negative={
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "eps": eps,
        },
        below_one={"b1": b1, "norm_decay": norm_decay},
    )

    def angle_at(count):
        rate, decay = value_at(learning_rate, count), value_at(weight_decay, count)
        return equilibrium_rotation("adamw", rate, decay, b1=b1)

    def spherical(axes):
        return _rotate(angle_at, norm_decay, eps, axes)

    plain = in_range(
        optax.chain(
            in_working_precision(optax.add_decayed_weights(weight_decay)),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
    step = partition_by_label(spherical, plain, labels, channel_axes)
    base = in_working_precision(base, bound_updates=False)
    return needs_params("rotational", optax.chain(base, step))


def _rotate(
    angle_at: Callable[[jax.Array], Number],
    decay: Number,
    eps: Number,
    channel_axes: ChannelAxes,
) -> optax.GradientTransformation:
    """From a direction to the step that turns each group by an angle."""

    def init_fn(params):
        check_axes(params, channel_axes)
        norms = jax.tree.map(lambda x: norm_or_shape(x, channel_axes), params)
        return RotationalState(
            jnp.zeros([], jnp.int32), norms, jax.tree.map(jnp.zeros_like, norms)
        )

    def update_fn(updates, state, params=None):
        count = increment(state.count)
        angle = capped(angle_at(state.count))
        bias = bias_correction(decay, count)
        axes = geometry.checked_axes(channel_axes)
        turn = _turn(decay=decay, eps=eps, channel_axes=axes)
        steps, nu = map_leaves(
            2,
            lambda *leaf: turn(*leaf, angle, bias),
            updates,
            params,
            state.radius,
            state.nu,
        )
        return steps, RotationalState(count, state.radius, nu)

    return optax.GradientTransformation(init_fn, update_fn)


@leaf_function
def _turn(u, x, radius, s, angle, bias, *, decay, eps, channel_axes):
    """The step that turns by an angle, and the new mean square of its direction.

    Nothing but ``u`` and ``tangent`` is written in between: the mean, and the norm of
    where the step leads, come from sums over where it starts. ``u`` is summed as it is,
    since its clip would be an array.
    """
    u, x32 = widen(u), widen(x)
    axes = geometry.group_axes(x.ndim, channel_axes)
    size = max(geometry.group_size(x.shape, channel_axes), 1)
    xx = geometry.squared_norm(x32, channel_axes)
    largest = geometry.largest_square(xx.dtype)
    longest = math.sqrt(largest)
    total_u, total = (told(jnp.sum(a, axis=axes, keepdims=True)) for a in (u, x32))
    total = either(xx < largest, total, 0.0)
    ux = clip(told(geometry.dot(u, x32, channel_axes)), largest)
    # Neither what is taken away nor the step is longer than what counts.
    radial = geometry.divide(either(xx < largest, ux, 0.0), radius * radius)
    most = longest * geometry.reciprocal(jnp.sqrt(xx))
    radial = jax.lax.clamp(-most, radial, most)
    mean = bounded((total_u - radial * total) / size)
    tangent = (bounded(u) - radial * x32) - mean
    square = geometry.dot(tangent, tangent, channel_axes)
    # Where all of a direction is taken away, what is left are rounding errors.
    taken = jnp.square(radial * jnp.sqrt(xx)) + size * abs_sq(mean)
    least = (8 * float(jnp.finfo(xx.dtype).eps)) ** 2 * size * taken
    turns = ~(square < least)  # and NaN stays NaN
    nu = ema(either(turns, square, 0.0), s, decay)
    arc = either(turns, angle * radius, 0.0)
    turned = capped(arc / root_floor(jnp.sqrt(nu / bias) + eps))
    turned = jnp.minimum(turned, longest * geometry.reciprocal(jnp.sqrt(square)))
    along = ux - radial * xx - jnp.real(jnp.conj(total) * mean)
    after = xx + turned * (turned * square - 2 * along)
    scale = capped(radius * geometry.reciprocal(jnp.sqrt(jnp.maximum(after, 0.0))))
    moved = scale * (x32 - turned * tangent)
    return within_reach(moved - x32, x), saturated(nu, s.dtype)
