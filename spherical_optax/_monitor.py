"""What an optimizer does to spheres: how far it turns them, and how they grow."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import check_transformation, needs_params
from spherical_optax._leaves import leaf_function
from spherical_optax._limits import bounded, capped
from spherical_optax._moments import zeros_like_groups
from spherical_optax.geometry import ChannelAxes
from spherical_optax.labels import (
    ChannelAxesTable,
    Labels,
    axes_by_path,
    checked_table,
    leaves_with_paths,
    paths_of_leaves,
)


class SphereStatistics(NamedTuple):
    """What the last step did to groups, one number each.

    Attributes:
      norm_before: ``|x1|``.
      norm_after: ``|x2|``.
      angle: between the two, in radians.
      radial_share: length of the part of the step along the weights, by its length.
      effective_learning_rate: of SGD on the unit sphere, for the same turn.
    """

    norm_before: Any
    norm_after: Any
    angle: Any
    radial_share: Any
    effective_learning_rate: Any


class MonitorSphereState(NamedTuple):
    """State of :func:`monitor_sphere`."""

    inner_state: optax.OptState
    statistics: SphereStatistics  # of trees like the parameters, one number a group


def monitor_sphere(
    inner: optax.GradientTransformation,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer as it is, with a record of what it does to spheres.

    Of a group on a sphere that goes from :math:`x_1` to :math:`x_2 = x_1 + u`, with
    :math:`g` the gradient that comes in and :math:`y_\perp` the part of a vector
    :math:`y` orthogonal to :math:`x_1`, the state keeps :math:`|x_1|`, :math:`|x_2|`,
    the angle and the radial share of the step,

    .. math::
      \mathrm{angle} = \mathrm{atan2}\bigl(|x_1|\,|u_\perp|,\ \langle x_1, x_2\rangle
        \bigr), \qquad
      \mathrm{share} = \frac{|\langle x_1, u\rangle|}{|x_1|\,|u|}

    and the effective learning rate,

    .. math:: \eta_e = \frac{|u_\perp|}{|x_1|^2\,|g_\perp|}

    the learning rate with which SGD on the unit sphere, where the gradient is
    :math:`|x_1|` times as long, would turn the group as far. For SGD it is
    :math:`\eta / |x_1|^2`, with weight decay too. For other optimizers it says how far
    they go for the gradient at hand: with momentum it goes up and down with how well
    the gradient agrees with those before.

    Args:
      inner: an optimizer that returns the whole step, learning rate included.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.

    Returns:
      An optimizer with the same updates. ``update`` needs the parameters.
      :func:`sphere_statistics` finds the numbers in any state. They are what the last
      update asks for, before it is rounded to the type of the weights; all are 0
      before the first, and a quotient whose divisor is 0 is 0.

    Raises:
      ValueError: ``inner`` is no transformation, ``params`` is ``None``, or, naming the
        path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.monitor_sphere(optax.sgd(0.1), labels={"w": "layer"})
      >>> params, grads = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
      >>> _, state = optimizer.update(grads, optimizer.init(params), params)
      >>> statistics = so.sphere_statistics(state)["w"]
      >>> statistics.effective_learning_rate, statistics.angle.round(4)
      (Array([0.025], dtype=float32), Array([0.05], dtype=float32))
    """
    check_transformation("inner", inner)
    checked_table(channel_axes)
    inner = optax.with_extra_args_support(inner)

    def measure(function, params, *others):
        """Statistics of every leaf; leaves that lie on no sphere are masked out."""
        by_path = axes_by_path(labels, channel_axes, params)
        axes = [by_path[path] for path in paths_of_leaves(params)]
        leaves = [jax.tree.leaves(tree) for tree in (params, *others)]
        rows = [
            _NOTHING if on is None else function(*arrays, geometry.checked_axes(on))
            for *arrays, on in zip(*leaves, axes, strict=True)
        ]
        structure = jax.tree.structure(params)
        columns = zip(*rows, strict=True) if rows else [()] * len(_NOTHING)
        return SphereStatistics(*map(structure.unflatten, columns))

    def init_fn(params):
        return MonitorSphereState(inner.init(params), measure(_no_statistics, params))

    def update_fn(updates, state, params=None, **extra_args):
        steps, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )

        def of_leaf(x, u, g, axes):
            return _statistics(channel_axes=axes)(x, u, g)

        statistics = measure(of_leaf, params, steps, updates)
        return steps, MonitorSphereState(inner_state, statistics)

    return needs_params(
        "monitor_sphere", optax.GradientTransformationExtraArgs(init_fn, update_fn)
    )


def sphere_statistics(state: optax.OptState) -> dict[str, SphereStatistics]:
    """Finds what :func:`monitor_sphere` has recorded.

    Args:
      state: state of :func:`monitor_sphere`, at any depth of another optimizer's.

    Returns:
      For each leaf on a sphere, by its path, ``norm_before``, ``norm_after``,
      ``angle``, ``radial_share`` and ``effective_learning_rate`` of the last step:
      arrays of the leaf's shape, with the axes of a group reduced to length 1.

    Raises:
      ValueError: there is no monitor in the state, or two of the same leaf.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> monitored = so.monitor_sphere(optax.adam(1e-3))
      >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), monitored)
      >>> state = optimizer.init({"conv": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)})
      >>> [(path, found.angle.shape) for path, found in
      ...     so.sphere_statistics(state).items()]
      [('conv', (1, 1, 1, 4))]
    """

    def is_monitor(node):
        return isinstance(node, MonitorSphereState)

    found: dict[str, SphereStatistics] = {}
    monitors, waiting = 0, [state]
    while waiting:
        for node in jax.tree.leaves(waiting.pop(), is_leaf=is_monitor):
            if is_monitor(node):
                monitors += 1
                waiting.append(node.inner_state)
                for path, numbers in _by_path(node.statistics):
                    if path in found:
                        raise ValueError(f"state: two monitors have the leaf {path!r}")
                    found[path] = numbers
    if not monitors:
        raise ValueError("state must hold the state of monitor_sphere, got none")
    return found


def _by_path(statistics: SphereStatistics) -> list[tuple[str, SphereStatistics]]:
    """From trees of numbers to the numbers of each leaf."""
    columns = [leaves_with_paths(tree) for tree in statistics]
    return [
        (row[0][0], SphereStatistics(*(numbers for _, numbers in row)))
        for row in zip(*columns, strict=True)
        if row[0][1] is not None
    ]


_NOTHING = SphereStatistics(*[optax.MaskedNode()] * len(SphereStatistics._fields))


def _no_statistics(x: jax.Array, channel_axes: ChannelAxes) -> SphereStatistics:
    """Zeros where numbers will be."""
    return SphereStatistics(
        *(zeros_like_groups(x, channel_axes) for _ in SphereStatistics._fields)
    )


@leaf_function
def _statistics(
    x: jax.Array, u: jax.Array, g: jax.Array, *, channel_axes: ChannelAxes
) -> SphereStatistics:
    """What a step ``u`` from ``x`` does, with ``g`` the gradient."""
    x, u, g = bounded(x), bounded(u), bounded(g)
    square = geometry.dot(x, x, channel_axes)
    norm = jnp.sqrt(square)
    along = geometry.dot(x, u, channel_axes)
    turned = geometry.norm(geometry.project(x, u, channel_axes), channel_axes)
    slope = geometry.norm(geometry.project(x, g, channel_axes), channel_axes)
    length = geometry.norm(u, channel_axes)
    return SphereStatistics(
        norm_before=norm,
        norm_after=geometry.norm(x + u, channel_axes),
        angle=jnp.arctan2(norm * turned, square + along),
        radial_share=geometry.divide(jnp.abs(along), norm * length),
        effective_learning_rate=capped(geometry.divide(turned, square * slope)),
    )
