"""Wrappers and blocks that know that weights lie on spheres.

Each is a transformation usable in any :func:`optax.chain`, for leaves that share
their channel axes (see :mod:`spherical_optax.geometry`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import (
    check_numbers,
    check_transformation,
    needs_params,
)
from spherical_optax._leaves import leaf_function
from spherical_optax._limits import (
    bounded,
    capped,
    held,
    in_range,
    within_reach,
)
from spherical_optax._state_moments import Move, carry_moments, check_not_centered
from spherical_optax.geometry import ChannelAxes, widen
from spherical_optax.labels import check_axes


class RescaleAndTransportState(NamedTuple):
    """State of :func:`rescale_and_transport`."""

    inner_state: optax.OptState


class RetractToSphereState(NamedTuple):
    """State of :func:`retract_to_sphere`."""

    radius: optax.Params  # per-group norms at init; empty unless radius="initial"


def rescale_and_transport(
    inner: optax.GradientTransformation,
    channel_axes: ChannelAxes,
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the moments of any optimizer follow the weights over the sphere.

    A gradient of a scale-invariant loss is tangent to the sphere through the
    weights, and inversely proportional to their norm. After a step from
    :math:`x_1` to :math:`x_2` the moments still describe gradients at
    :math:`x_1`. Group by group they are carried over:

    .. math::
      m \leftarrow
        \frac{\langle x_1, x_2\rangle m - \langle m, x_2\rangle x_1}
             {|x_2|^2 + \epsilon},
      \qquad
      v \leftarrow \frac{|x_1|^2}{|x_2|^2 + \epsilon} v

    The moments are found in the state of ``inner`` by their names, wherever they
    stand in it: ``mu``, ``trace`` and AdEMAMix's ``m1`` and ``m2`` are vectors
    :math:`m`, ``nu`` (and AMSGrad's ``nu_max``) second moments :math:`v`. The means of
    absolute values of :func:`adam_abs` are scaled by the root of that. All other state
    is left as it is.

    Args:
      inner: an optimizer that returns the whole step, learning rate included.
      channel_axes: axes that tell one group from another, the same for every leaf.
      eps: added to the squared norm.

    Returns:
      A transformation that needs parameters.

    Raises:
      ValueError: without parameters, for a leaf with too few axes, or for a
        moment whose shape does not fit its leaf; the message names the leaf. Also for
        moments that belong to no leaf, as under ``optax.flatten``, and for a centered
        second moment, as in ``optax.rmsprop(..., centered=True)``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.rescale_and_transport(optax.adabelief(1e-3), (-1,))
      >>> params = {"kernel": jnp.ones((3, 3, 2, 4))}
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)

    Differences:
      The paper does so with the moments of AdamS and of SGD alone: AdamSRT and SGD-MRT.
      A name does not tell everything: the ``nu`` of ``optax.adamax`` is a largest
      absolute value and the ``trace`` of ``optax.rmsprop(..., momentum=...)`` is of
      steps that have no scale, but they are carried like the others.

    References:
      Roburin et al., `Spherical perspective on learning with normalization layers
      <https://arxiv.org/abs/2006.13382>`_, 2020
    """
    check_numbers(non_negative={"eps": eps})

    def move(x1, x2):
        before = geometry.squared_norm(x1, channel_axes)
        square = geometry.squared_norm(x2, channel_axes)
        denominator = geometry.floored(square + eps)
        known = is_in_range(square)
        along = capped(geometry.dot(x1, x2, channel_axes) / denominator)
        shrink = capped(before / denominator)

        def vector(m):
            away = told(geometry.dot(m, x2, channel_axes)) / denominator
            carried = along * bounded(m) - capped(away) * widen(x1)
            return bounded(jnp.where(known, carried, m))

        def magnitude(v):
            return held(jnp.sqrt(shrink) * held(v))

        return vector, magnitude, lambda v: held(shrink * held(v))

    check_transformation("inner", inner)
    inner = in_range(inner)
    return _carrying_moments("rescale_and_transport", inner, channel_axes, move)


def transport_on_sphere(
    inner: optax.GradientTransformation,
    channel_axes: ChannelAxes,
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Transports the first moments of an optimizer, keeping their norms.

    For weights whose norm is held fixed, where nothing has to be rescaled:

    .. math::
      m \leftarrow
        \frac{\langle x_1, y\rangle m - \langle m, y\rangle x_1}
             {|x_1|\,|y| + \epsilon}

    where :math:`y = x_1 + u` is the point reached before the return to the sphere.
    The step itself is left as it is; :func:`retract_to_sphere` may follow.

    Args:
      inner: an optimizer that returns the whole step, learning rate included.
      channel_axes: axes that tell one group from another, the same for every leaf.
      eps: added to the product of the norms.

    Returns:
      A transformation that needs parameters.
    """
    check_numbers(non_negative={"eps": eps})

    def move(x1, y):
        before = geometry.squared_norm(x1, channel_axes)
        after = geometry.squared_norm(y, channel_axes)
        denominator = geometry.floored(jnp.sqrt(before) * jnp.sqrt(after) + eps)
        known = is_in_range(after)
        along = capped(geometry.dot(x1, y, channel_axes) / denominator)

        def vector(m):
            away = told(geometry.dot(m, y, channel_axes)) / denominator
            carried = along * bounded(m) - capped(away) * widen(x1)
            return bounded(jnp.where(known, carried, m))

        return vector, lambda v: v, lambda v: v

    check_transformation("inner", inner)
    return _carrying_moments("transport_on_sphere", inner, channel_axes, move)


def project_to_tangent(
    channel_axes: ChannelAxes,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes from the updates what only changes the norm of a group.

    .. math:: u \leftarrow u - \frac{\langle x, u\rangle}{\langle x, x\rangle} x

    Args:
      channel_axes: axes that tell one group from another, the same for every leaf.

    Returns:
      A transformation without state that needs parameters. A group of zeros leaves
      its update as it is.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> block = so.project_to_tangent((-1,))
      >>> params = jnp.array([[1.0], [0.0]])
      >>> updates = jnp.array([[5.0], [2.0]])
      >>> block.update(updates, block.init(params), params)[0].ravel()
      Array([0., 2.], dtype=float32)
    """

    def init_fn(params):
        check_axes(params, channel_axes)
        return optax.EmptyState()

    def update_fn(updates, state, params=None):
        projected = jax.tree.map(
            lambda u, x: geometry.project(bounded(x), bounded(u), channel_axes),
            updates,
            params,
        )
        return projected, state

    return needs_params(
        "project_to_tangent", optax.GradientTransformation(init_fn, update_fn)
    )


def retract_to_sphere(
    channel_axes: ChannelAxes,
    radius: jax.typing.ArrayLike | str = "initial",
    eps: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Changes a step so that it ends on the sphere.

    .. math:: u \leftarrow R \frac{x + u}{|x + u| + \epsilon} - x

    Args:
      channel_axes: axes that tell one group from another, the same for every leaf.
      radius: ``R``, a number; ``"initial"`` for the norm that each group had at
        ``init``, kept in the state; ``"current"`` for the one it has before the step.
      eps: added to the norm.

    Returns:
      A transformation that needs parameters. Put it last in a chain, since what comes
      after it would leave the sphere.

    Raises:
      ValueError: the radius is neither a positive number nor one of the two words.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = optax.chain(optax.sgd(0.5), so.retract_to_sphere((), 1.0))
      >>> params = jnp.array([1.0, 0.0])
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jnp.array([1.0, 2.0]), state, params)
      >>> bool(jnp.allclose(jnp.linalg.norm(params + updates), 1.0))
      True
    """
    check_numbers(non_negative={"eps": eps})
    check_radius(radius)
    from_init = isinstance(radius, str) and radius == "initial"

    def init_fn(params):
        check_axes(params, channel_axes)
        if not from_init:
            return RetractToSphereState(radius=())
        return RetractToSphereState(
            jax.tree.map(lambda x: norm_or_shape(x, channel_axes), params)
        )

    def update_fn(updates, state, params=None):
        on_sphere = _retract(channel_axes=geometry.checked_axes(channel_axes))

        def retract(u, x, r):
            return on_sphere(u, x, r, eps)

        if from_init:
            return jax.tree.map(retract, updates, params, state.radius), state
        fixed = None if isinstance(radius, str) else radius
        return jax.tree.map(lambda u, x: retract(u, x, fixed), updates, params), state

    return needs_params(
        "retract_to_sphere", optax.GradientTransformation(init_fn, update_fn)
    )


@leaf_function
def _retract(
    u: jax.Array,
    x: jax.Array,
    r: jax.typing.ArrayLike | None,
    eps: jax.typing.ArrayLike,
    *,
    channel_axes: ChannelAxes,
) -> jax.Array:
    """The step to where ``x + u`` lies on the sphere; ``None`` for the norm of x."""
    start = widen(x)
    if r is None:
        r = geometry.norm(start, channel_axes)
    moved = geometry.retract(start, bounded(u), channel_axes, capped(r), eps)
    return within_reach(moved - start, x)


def check_radius(radius: jax.typing.ArrayLike | str) -> None:
    """Raises a ValueError unless ``radius`` is a positive number or a known word."""
    if not isinstance(radius, str):
        check_numbers(positive={"radius": radius})
    elif radius not in ("initial", "current"):
        raise ValueError(
            f"radius must be a number > 0, 'initial' or 'current', got {radius!r}"
        )


def norm_or_shape(x: Any, channel_axes: ChannelAxes) -> jax.Array:
    """Norms of the groups; zeros of their shape for an abstract array."""
    if isinstance(x, jax.ShapeDtypeStruct):
        norms = jax.eval_shape(lambda x: geometry.norm(x, channel_axes), x)
        return jnp.zeros_like(norms)
    return geometry.norm(x, channel_axes)


def largest_square(dtype: jax.typing.DTypeLike) -> float:
    """The squared norm above which the moments of a group are not carried."""
    return 2.0 ** (geometry.exponent_of(dtype) * 5 // 8)


def is_in_range(square: jax.Array) -> jax.Array:
    """Whether a group of such a squared norm has products that its type can hold."""
    return square < largest_square(square.dtype)


def told(product: jax.Array) -> jax.Array:
    """A sum of products, 0 where infinite moments of another optimizer made it so."""
    return jnp.where(jnp.isfinite(product), product, 0.0)


def _carrying_moments(
    name: str,
    inner: optax.GradientTransformation,
    channel_axes: ChannelAxes,
    move: Callable[[jax.Array, jax.Array], tuple[Callable, Callable, Callable]],
) -> optax.GradientTransformationExtraArgs:
    """Runs ``inner``, then carries the moments in its state to the new point.

    ``move(x1, x2)`` returns what becomes of a vector, of a mean of absolute values and
    of a second moment.
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        check_axes(params, channel_axes)
        inner_state = inner.init(params)
        check_not_centered(inner_state)
        return RescaleAndTransportState(inner_state)

    def update_fn(updates, state, params=None, **extra_args):
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        reached = jax.tree.map(lambda x, u: widen(x) + widen(u), params, updates)
        moves = {
            path: Move(jnp.shape(x1), *move(x1, x2))
            for (path, x1), x2 in zip(
                jax.tree_util.tree_leaves_with_path(params),
                jax.tree.leaves(reached),
                strict=True,
            )
        }
        return updates, RescaleAndTransportState(carry_moments(inner_state, moves))

    return needs_params(name, optax.GradientTransformationExtraArgs(init_fn, update_fn))
