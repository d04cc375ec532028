r"""Steps along a moment: rescale, transport and retract in fewer passes over memory.

The steps of the spherical family are a number a group times a moment, :math:`u = r m`.
Such a moment is carried to where the step has led, :math:`y = x + u`, by a projection
that reads the new weights and not the old ones:

.. math::
  \langle x, y\rangle m - \langle m, y\rangle x
    = \langle y, y\rangle m - \langle m, y\rangle y .

So weights can be written over before moments are, and an update in place needs no copy
of either. The price are digits where a step is longer than the weights: the right side
cancels, and what is carried is off by about :math:`2^{-21} |y| / |x|` of itself in
float32. A step that ends on the unit sphere has to know :math:`|y|` before it is made,

.. math::
  |x + u|^2 = \langle x, x\rangle + 2 r \langle m, x\rangle
    + r^2 \langle m, m\rangle, \qquad
  \langle m, x + u\rangle = \langle m, x\rangle + r \langle m, m\rangle .

Other steps leave a choice, which is made in one place, ``_sums_at``. A CPU takes sums
over the weights that are just written. An accelerator writes results in the loop that
takes sums, but not over what the loop reads, and would copy the weights: there the sums
are taken over the old ones, and the step waits for them. Then digits go where a step
leads back towards 0, too: what is carried is off by up to
:math:`2^{-21} |x|^2 / |y|^2` of itself.

What :mod:`spherical_optax._transport` says, block by block, is the same with more
passes over the weights, for any optimizer; tests hold one against the other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import needs_params
from spherical_optax._leaves import leaf_function, map_leaves
from spherical_optax._limits import bounded, capped, either, held, within_reach
from spherical_optax._moments import MomentBlock, cast_tree
from spherical_optax._transport import (
    RescaleAndTransportState,
    RetractToSphereState,
    is_in_range,
    largest_square,
)
from spherical_optax.geometry import ChannelAxes, widen
from spherical_optax.labels import check_axes

Move = Callable[..., tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]]
"""From weights, moment, number and second moments to step, moment, second moments."""


def rescale_and_transport_moment(
    decay: optax.GradientTransformation,
    block: MomentBlock,
    scale: optax.GradientTransformation,
    channel_axes: ChannelAxes,
    eps: jax.typing.ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    """``rescale_and_transport(optax.chain(decay, block, scale), channel_axes, eps)``.

    With the same state, and the same numbers to rounding where a step is no longer than
    the weights.

    Args:
      decay: what happens to the gradient first.
      block: a step that is a number a group times a moment.
      scale: what multiplies the step.
      channel_axes: axes that tell one group from another, the same for every leaf.
      eps: added to the squared norm.
    """
    move = _move(eps=eps, channel_axes=geometry.checked_axes(channel_axes))
    inner = _along_moment(decay, block, scale, channel_axes, move)

    def init_fn(params):
        return RescaleAndTransportState(inner.init(params))

    def update_fn(updates, state, params=None):
        updates, inner_state = inner.update(updates, state.inner_state, params)
        return updates, RescaleAndTransportState(inner_state)

    return needs_params(
        "rescale_and_transport", optax.GradientTransformation(init_fn, update_fn)
    )


def transport_and_retract_moment(
    block: MomentBlock,
    scale: optax.GradientTransformation,
    channel_axes: ChannelAxes,
    eps: jax.typing.ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    """A step on the unit sphere, with the first moment carried along.

    ``optax.chain(transport_on_sphere(optax.chain(block, scale), channel_axes, eps),
    retract_to_sphere(channel_axes, 1.0, eps))``, with the same state, and the same
    numbers to rounding where a step is no longer than the weights.
    """
    axes = geometry.checked_axes(channel_axes)
    move = _move_and_retract(eps=eps, channel_axes=axes)
    inner = _along_moment(None, block, scale, channel_axes, move)

    def init_fn(params):
        return RescaleAndTransportState(inner.init(params)), RetractToSphereState(())

    def update_fn(updates, state, params=None):
        transported, retracted = state
        updates, inner_state = inner.update(updates, transported.inner_state, params)
        return updates, (RescaleAndTransportState(inner_state), retracted)

    return needs_params(
        "transport_on_sphere", optax.GradientTransformation(init_fn, update_fn)
    )


@leaf_function
def _move(weights, m, r, squares, *, eps, channel_axes):
    x, r = widen(weights), capped(r)
    xx = jnp.zeros(())
    if squares:
        xx = geometry.dot(x, x, channel_axes)
        r = _known_after(xx, r)
    r, yy, my = _sums_at(weights, m, r, channel_axes)
    step = within_reach(r * m, weights)
    y = x + step
    denominator = geometry.floored(yy + eps)
    # Divisions come last: XLA does them once a group, and not once a weight.
    along = yy / denominator  # 1 at most
    away = capped(either(is_in_range(yy), my, 0.0) / denominator)
    squares = tuple(held(capped(xx / denominator) * widen(v)) for v in squares)
    return step, bounded(along * m - away * y), squares


@leaf_function
def _move_and_retract(weights, m, r, squares, *, eps, channel_axes):
    x, r = widen(weights), capped(r)
    xx, yy, my = _sums_before(x, m, r, channel_axes)
    after = jnp.sqrt(yy)
    denominator = geometry.floored(jnp.sqrt(xx) * after + eps)
    known = is_in_range(yy)
    denominator = either(known, denominator, 1.0)
    length = geometry.floored(after + eps)
    step = within_reach(geometry.reciprocal(length) * (x + r * m) - x, weights)
    # From no weights at all a step leads along the moment, and leaves none of it.
    started = xx > 0
    square = either(known, yy, 1.0)
    along = capped(either(started, square, 0.0) / denominator)
    away = capped(either(known & started, length * my, 0.0) / denominator)
    return step, bounded(along * m - away * (x + step)), squares


def _along_moment(
    decay: optax.GradientTransformation | None,
    block: MomentBlock,
    scale: optax.GradientTransformation,
    channel_axes: ChannelAxes,
    move: Move,
) -> optax.GradientTransformation:
    """Steps as ``move`` says; the state is that of a chain of the blocks."""

    def init_fn(params):
        check_axes(params, channel_axes)
        first = () if decay is None else (decay.init(params),)
        return (*first, block.init(params), scale.init(params))

    def update_fn(updates, state, params=None):
        *first, block_state, scale_state = state
        if decay is not None:
            updates, first[0] = decay.update(updates, first[0], params)
        moments, rates, block_state = block.factors(updates, block_state)
        rates, scale_state = scale.update(rates, scale_state, params)
        squares = [getattr(block_state, name) for name in block.squares]
        steps, moments, *squares = map_leaves(
            2 + len(squares),
            lambda x, m, r, *v: (*(moved := move(x, m, r, v))[:2], *moved[2]),
            params,
            moments,
            rates,
            *squares,
        )
        names = (block.vector, *block.squares)
        fields = dict(zip(names, (moments, *squares), strict=True))
        kept = {name: getattr(block_state, name) for name in fields}
        block_state = block_state._replace(**cast_tree(fields, kept))
        return steps, (*first, block_state, scale_state)

    return optax.GradientTransformation(init_fn, update_fn)


def _sums_at(
    weights: jax.Array, m: jax.Array, r: jax.Array, channel_axes: ChannelAxes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``r``, and ``<y, y>`` and ``<m, y>`` of ``y = x + r m``, as a platform likes it.

    Where they are sums over the old weights, ``r`` is not known before.
    """

    def over_new(weights, m, r):
        y = widen(weights) + within_reach(r * m, weights)
        yy = geometry.squared_norm(y, channel_axes)
        my = geometry.dot(m, y, channel_axes)
        return jax.lax.full_like(yy, r) if r.ndim == 0 else r, yy, my

    def over_old(weights, m, r):
        _, yy, my = _sums_before(widen(weights), m, r, channel_axes)
        return _known_after(yy, r), yy, my

    return jax.lax.platform_dependent(weights, m, r, cpu=over_new, default=over_old)


def _sums_before(
    x: jax.Array, m: jax.Array, r: jax.Array, channel_axes: ChannelAxes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``<x, x>``, and of ``y = x + r m``, not yet known, ``<y, y>`` and ``<m, y>``.

    A square that is too large to carry moments, or cannot be told, is the largest.
    """
    xx = geometry.squared_norm(x, channel_axes)
    mx = geometry.dot(m, x, channel_axes)
    along = r * geometry.squared_norm(m, channel_axes)
    yy, my = jnp.maximum(xx + r * (2 * mx + along), 0.0), mx + along
    largest = largest_square(x.dtype)
    return xx, either(yy < largest, yy, largest), my


def _known_after(square: jax.Array, r: jax.Array) -> jax.Array:
    """The number, for XLA not known before a sum of squares.

    The sum over the weights is then taken before a step writes over them in place,
    which needs no copy of them. A division, since XLA does it once a group.
    """
    return r / either(square < -1.0, square, 1.0)
