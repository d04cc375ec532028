"""Hyperball: any optimizer on spheres of fixed radius, with steps of fixed length.

``hyperball`` takes the direction from another optimizer; ``adamh`` and ``muonh`` are
hyperball over Adam and over Optax's Muon. ``project_to_norm`` leaves the step alone
and puts the weights back on their spheres.

References:
  Wen, Dang, Lyu, Ma and Liang, `Fantastic pretraining optimizers and where to find
  them II: hyperball optimization <https://arxiv.org/abs/2606.16899>`_, 2026
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from spherical_optax import geometry
from spherical_optax._checks import (
    check_dtype,
    check_flag,
    check_numbers,
    check_transformation,
    check_whole,
    needs_params,
)
from spherical_optax._leaves import leaf_function
from spherical_optax._limits import bounded, capped, in_range, within_reach
from spherical_optax._moments import (
    Number,
    in_working_precision,
    increment,
    scale_by_adam,
    value_at,
)
from spherical_optax._transport import check_radius, retract_to_sphere
from spherical_optax.geometry import ChannelAxes, widen
from spherical_optax.labels import (
    ChannelAxesTable,
    Labels,
    ndim,
    partition_by_label,
)

Radius = jax.typing.ArrayLike | str

# Five steps with Muon's own coefficients.
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


class HyperballState(NamedTuple):
    """State of the part of :func:`hyperball` that moves leaves on spheres."""

    count: jax.Array  # shape=(), dtype=int32
    sphere: optax.OptState  # of retract_to_sphere


class ProjectToNormState(NamedTuple):
    """State of the part of :func:`project_to_norm` that moves leaves on spheres."""

    count: jax.Array  # shape=(), dtype=int32
    sphere: optax.OptState  # of retract_to_sphere


def hyperball(
    base: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
    radius: Radius = "initial",
) -> optax.GradientTransformationExtraArgs:
    r"""Moves groups on their spheres, by angles that the learning rate alone sets.

    On leaves on spheres, with :math:`u` the direction that ``base`` gives,
    :math:`R` the radius, and :math:`N(\cdot)` scaling each group to norm 1:

    .. math:: x \leftarrow R\, N\bigl(x - \eta R\, N(u)\bigr)

    A step turns a group by about :math:`\eta` radians, whatever the gradient's length
    and whatever the radius: there is no weight decay, and the learning rate has the
    same meaning for every width. The other leaves take the plain step
    :math:`x \leftarrow x - \eta u`.

    Args:
      base: gives the direction, with the gradient's sign and no learning rate:
        ``optax.scale_by_adam()``, ``optax.trace(0.9)``, ``optax.identity()`` for
        SGD, ``optax.contrib.scale_by_muon()``. A complete optimizer, whose updates
        already point downhill, needs ``optax.scale(-1.0)`` after it:
        ``optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0))``. It sees all leaves
        in float32 at least, and so keeps its state.
      learning_rate: :math:`\eta`, a number or a schedule.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.
      radius: :math:`R`, a number; ``"initial"`` for the norm that each group had at
        ``init``, kept in the state; ``"current"`` for the one it has before the step.

    Returns:
      An optimizer. ``update`` needs the parameters. A group whose direction is zero
      keeps its own. A group that is zero at ``init`` has an initial radius of 0 and
      stays there: give such leaves another label.

    Raises:
      ValueError: ``base`` is no transformation, the radius is neither a positive
        number nor one of the two words, ``params`` is ``None``, or, naming the path, a
        leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}
      >>> optimizer = so.hyperball(optax.scale_by_belief(), 0.01)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> so.geometry.norm(params["kernel"], (-1,)).ravel().round(4)
      Array([4.2426, 4.2426, 4.2426, 4.2426], dtype=float32)

    Differences:
      The paper takes a whole matrix for a group (label ``"layer"``) and its norm at
      initialization for the radius.

      Inside other wrappers: the gradient may be changed before it
      (:func:`optax.contrib.sam` in opaque mode, clipping, accumulation), as it reads
      nothing of the gradient but its direction. In SAM's transparent mode the
      adversarial steps leave the sphere and are taken back before the outer step,
      which ends on it. Around it, :func:`optax.contrib.schedule_free` makes little
      sense: it adds the step, which ends on the sphere from the averaged weights, to
      its other sequence of points, so that it learns but keeps no norm. As ``base`` it
      makes none: the points that it keeps would not follow the weights.

    References:
      Wen et al., `Fantastic pretraining optimizers and where to find them II:
      hyperball optimization <https://arxiv.org/abs/2606.16899>`_, 2026
    """
    check_transformation("base", base)
    return _on_hyperball(
        "hyperball",
        in_working_precision(base, bound_updates=False),
        learning_rate,
        labels,
        channel_axes,
        radius,
    )


def adamh(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
    radius: Radius = "initial",
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamH: :func:`hyperball` over Adam.

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \qquad
      v \leftarrow b_2 v + (1 - b_2) g^2, \qquad
      u = \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon}

    On leaves on spheres :math:`x \leftarrow R\, N(x - \eta R\, N(u))`, with
    :math:`N(\cdot)` scaling each group to norm 1; on the others
    :math:`x \leftarrow x - \eta u`.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule: an angle, about 0.01.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: :math:`\epsilon`, added to the root of the second moment.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.
      radius: :math:`R`, a number, ``"initial"`` or ``"current"``, as in
        :func:`hyperball`.
      mu_dtype: type of the first moment; ``None`` for that of the parameters.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or, naming
        the path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.adamh(0.01, labels={"dense": "layer", "bias": "euclidean"})
      >>> params = {"dense": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)

    Differences:
      As for :func:`hyperball`, the paper takes a whole matrix for a group: label
      ``"layer"``.

    References:
      Wen et al., `Fantastic pretraining optimizers and where to find them II:
      hyperball optimization <https://arxiv.org/abs/2606.16899>`_, 2026
    """
    check_numbers(below_one={"b1": b1, "b2": b2}, non_negative={"eps": eps})
    adam = scale_by_adam(b1, b2, eps, check_dtype("mu_dtype", mu_dtype))
    return _on_hyperball("adamh", adam, learning_rate, labels, channel_axes, radius)


def muonh(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Number = 0.95,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    nesterov: bool = True,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
    radius: Radius = "initial",
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""MuonH: :func:`hyperball` over Muon's orthogonalized momentum.

    .. math::
      m \leftarrow \mu m + (1 - \mu) g, \qquad
      u \approx U V^\top \text{ where } m = U S V^\top, \qquad
      x \leftarrow R\, N\bigl(x - \eta R\, N(u)\bigr)

    by the five Newton-Schulz steps of :func:`optax.contrib.scale_by_muon`, with
    :math:`N(\cdot)` scaling each group to norm 1. A kernel is seen as a matrix: its
    channel axes are the columns and the axes of a group the rows, so that a column
    is a filter; where a group is the whole leaf, the last axis is the column. Leaves
    that are no matrices, and euclidean ones, take Adam's direction, the latter with
    the plain step :math:`x \leftarrow x - \eta u`.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule: an angle, about 0.01.
      momentum: :math:`\mu`, decay rate of Muon's momentum.
      b1: decay rate of Adam's first moment.
      b2: decay rate of Adam's second moment.
      eps: added to the norm that Muon divides by, and to the root of Adam's second
        moment.
      nesterov: whether Muon looks ahead.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.
      radius: :math:`R`, a number, ``"initial"`` or ``"current"``, as in
        :func:`hyperball`.
      mu_dtype: type of the first moments; ``None`` for that of the parameters, in
        Muon float32 at least.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or, naming
        the path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.muonh(0.01, labels={"dense": "layer", "bias": "euclidean"})
      >>> params = {"dense": jnp.eye(4), "bias": jnp.zeros(4)}
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)

    Differences:
      The paper orthogonalizes matrices and fixes the norm of each as a whole: label
      ``"layer"``. With ``"filter"`` the columns are brought to length 1 after the
      orthogonalization, and the result is orthogonal no more.

    References:
      Wen et al., `Fantastic pretraining optimizers and where to find them II:
      hyperball optimization <https://arxiv.org/abs/2606.16899>`_, 2026
    """
    check_numbers(
        below_one={"momentum": momentum, "b1": b1, "b2": b2}, non_negative={"eps": eps}
    )
    check_flag("nesterov", nesterov)
    mu_dtype = check_dtype("mu_dtype", mu_dtype)
    adam = scale_by_adam(b1, b2, eps, mu_dtype)

    def spherical(axes):
        def muon_or_adam(tree):
            return jax.tree.map(lambda x: _is_matrix(x, axes), tree)

        muon = contrib.scale_by_muon(
            NEWTON_SCHULZ,
            beta=momentum,
            # A divisor of its own: norms below 1e-19 are told as 0, and what is divided
            # has to come out below 1.
            eps=jnp.maximum(eps, 2.0**-50),
            mu_dtype=mu_dtype,
            nesterov=nesterov,
            weight_dimension_numbers=lambda tree: jax.tree.map(
                lambda x: _as_matrix(x, axes), tree
            ),
        )
        muon = in_working_precision(_with_automatic_sharding(muon))
        return optax.partition({True: muon, False: adam}, muon_or_adam)

    base = partition_by_label(spherical, adam, labels, channel_axes)
    return _on_hyperball("muonh", base, learning_rate, labels, channel_axes, radius)


def project_to_norm(
    every: int = 1,
    radius: Radius = "initial",
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Puts the weights back on their spheres, every so many steps.

    After :math:`k, 2k, \dots` steps, on leaves on spheres:

    .. math:: x \leftarrow R \frac{x + u}{|x + u|}

    All other steps, and all other leaves, are left as they are. For a loss that does
    not see the norms this changes nothing but the effective learning rate, which
    would else fall as the weights grow.

    Args:
      every: :math:`k`, a whole number.
      radius: :math:`R`, a number; ``"initial"`` for the norm that each group had at
        ``init``, kept in the state; ``"current"`` for the one it has before the step.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.

    Returns:
      A transformation that needs parameters. Put it last in a chain, since what comes
      after it would leave the sphere. Behind an optimizer that keeps points of its
      own, as :func:`optax.contrib.schedule_free` does, it would move the weights and
      not those points.

    Raises:
      ValueError: ``every`` is not a whole number of at least 1, the radius is neither a
        positive number nor one of the two words, ``params`` is ``None``, or, naming the
        path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = optax.chain(optax.adam(0.1), so.project_to_norm())
      >>> params = {"kernel": jnp.ones((3, 3, 1, 2))}
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> so.geometry.norm(params["kernel"], (-1,)).ravel().round(4)
      Array([3., 3.], dtype=float32)
    """
    check_whole(every=every)
    check_radius(radius)

    def spherical(axes):
        return _every(every, retract_to_sphere(axes, radius))

    return needs_params(
        "project_to_norm",
        in_range(partition_by_label(spherical, optax.identity(), labels, channel_axes)),
    )


def _on_hyperball(
    name: str,
    base: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    labels: Labels | None,
    channel_axes: ChannelAxesTable | None,
    radius: Radius,
) -> optax.GradientTransformationExtraArgs:
    """The base, then a step on the sphere or a plain one, as the labels say."""
    check_numbers(non_negative={"learning_rate": learning_rate})
    check_radius(radius)

    def spherical(axes):
        return _step_on_sphere(learning_rate, axes, radius)

    plain = in_working_precision(
        optax.scale_by_learning_rate(learning_rate), bound_updates=False
    )
    step = partition_by_label(spherical, in_range(plain), labels, channel_axes)
    return needs_params(name, optax.chain(base, step))


def _step_on_sphere(
    learning_rate: optax.ScalarOrSchedule, channel_axes: ChannelAxes, radius: Radius
) -> optax.GradientTransformation:
    """From a direction to the step that ends on the sphere."""
    sphere = retract_to_sphere(channel_axes, radius)
    from_init = isinstance(radius, str) and radius == "initial"

    def init_fn(params):
        return HyperballState(jnp.zeros([], jnp.int32), sphere.init(params))

    def update_fn(updates, state, params=None):
        rate = value_at(learning_rate, state.count)
        move = _move(channel_axes=geometry.checked_axes(channel_axes))
        if from_init:
            radii = state.sphere.radius
            steps = jax.tree.map(
                lambda u, x, r: move(u, x, r, rate), updates, params, radii
            )
        else:
            fixed = None if isinstance(radius, str) else radius
            steps = jax.tree.map(lambda u, x: move(u, x, fixed, rate), updates, params)
        return steps, HyperballState(increment(state.count), state.sphere)

    return optax.GradientTransformation(init_fn, update_fn)


@leaf_function
def _move(
    u: jax.Array,
    x: jax.Array,
    r: Number | None,
    rate: Number,
    *,
    channel_axes: ChannelAxes,
) -> jax.Array:
    """The step to where ``x`` less a part of the radius along ``u`` lies on the sphere.

    ``None`` is the norm of ``x``. ``u`` is summed as it is: its clip would be an array.
    """
    u, start = widen(u), widen(x)
    r = geometry.norm(start, channel_axes) if r is None else capped(r)
    per_unit = geometry.reciprocal(geometry.norm(u, channel_axes))
    y = start - bounded(capped(rate * r) * (per_unit * bounded(u)))
    moved = capped(r * geometry.reciprocal(geometry.norm(y, channel_axes))) * y
    return within_reach(moved - start, x)


def _every(
    steps: Number, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Applies ``inner`` at every so many steps; the state of ``inner`` is fixed."""

    def init_fn(params):
        return ProjectToNormState(jnp.zeros([], jnp.int32), inner.init(params))

    def update_fn(updates, state, params=None):
        count = increment(state.count)
        due = count % jnp.asarray(steps, jnp.int32) == 0
        projected, sphere = inner.update(updates, state.sphere, params)
        chosen = jax.tree.map(
            lambda p, u: jnp.where(due, p, u.astype(p.dtype)), projected, updates
        )
        return chosen, ProjectToNormState(count, sphere)

    return optax.GradientTransformation(init_fn, update_fn)


def _with_automatic_sharding(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Lets the compiler place what happens within: Muon reshapes what is spread."""

    def update_fn(updates, state, params=None):
        del params
        if not jax.sharding.get_abstract_mesh().explicit_axes:
            return inner.update(updates, state)
        same = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
        update: Any = jax.sharding.auto_axes(inner.update, out_sharding=same)
        return update(updates, state)

    return optax.GradientTransformation(inner.init, update_fn)


def _is_matrix(x: Any, channel_axes: Sequence[int]) -> bool:
    """Whether a leaf has rows and columns to orthogonalize."""
    return ndim(x) >= 2 and bool(geometry.group_axes(ndim(x), channel_axes))


def _as_matrix(
    x: jax.Array, channel_axes: Sequence[int]
) -> contrib.MuonDimensionNumbers:
    """Channel axes as columns, or the last axis where there are none."""
    columns = tuple(axis % x.ndim for axis in channel_axes) or (x.ndim - 1,)
    rows = tuple(axis for axis in range(x.ndim) if axis not in columns)
    return contrib.MuonDimensionNumbers(rows, columns)
