"""The spherical family: AdamS, AdamSRT, AdamG and SGD-MRT.

Each is a chain of blocks for leaves on spheres and a plain chain for the others,
chosen leaf by leaf through the labels (see :mod:`spherical_optax.labels`).

References:
  Roburin, de Mont-Marin, Bursuc, Marlet, Perez and Aubry, `Spherical perspective
  on learning with normalization layers <https://arxiv.org/abs/2006.13382>`_, 2020
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._along_moment import (
    rescale_and_transport_moment,
    transport_and_retract_moment,
)
from spherical_optax._checks import check_dtype, check_numbers, needs_params
from spherical_optax._leaves import leaf_function, map_leaves
from spherical_optax._limits import bounded, in_range
from spherical_optax._moments import (
    MomentBlock,
    Number,
    adam_rate,
    add_decayed_weights,
    as_transformation,
    cast_tree,
    ema,
    increment,
    momentum_block,
    scale_by_adam,
    scale_by_momentum,
    zeros_like_groups,
    zeros_like_params,
)
from spherical_optax.geometry import ChannelAxes
from spherical_optax.labels import (
    ChannelAxesTable,
    Labels,
    check_axes,
    partition_by_label,
)


class ScaleByStandardizedAdamState(NamedTuple):
    """State of :func:`scale_by_standardized_adam`."""

    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates  # shapes of the parameters
    nu: optax.Updates  # shapes of the parameters with group axes of length 1


def scale_by_standardized_adam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    channel_axes: ChannelAxes = (-1,),
    *,
    mu_dtype: jax.typing.DTypeLike | None = None,
    per_weight: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with one second moment a group instead of one a weight.

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \qquad
      v \leftarrow b_2 v + (1 - b_2) \langle g, g\rangle, \qquad
      u = \sqrt{d}\,\frac{m / (1 - b_1^t)}{\sqrt{v} / \sqrt{1 - b_2^t} + \epsilon}

    where :math:`d` is the size of the group. The step is a multiple of :math:`m`:
    unlike Adam's, it does not depend on the coordinates chosen on the sphere, and
    it is tangent where :math:`m` is.

    Args:
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root of the second moment.
      channel_axes: axes that tell one group from another, the same for every leaf.
      mu_dtype: type of the first moment; ``None`` for that of the parameters.
      per_weight: with the factor :math:`\sqrt{d}`, so that a weight moves about as
        far as in Adam; without, the group does.

    Returns:
      A transformation. ``nu`` is kept in float32 at least.

    Raises:
      ValueError: a hyperparameter is out of range, or a leaf has too few axes.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> block = so.scale_by_standardized_adam(channel_axes=(-1,))
      >>> state = block.init(jnp.ones((3, 3, 2, 4)))
      >>> state.mu.shape, state.nu.shape
      ((3, 3, 2, 4), (1, 1, 1, 4))
    """
    check_numbers(below_one={"b1": b1, "b2": b2}, non_negative={"eps": eps})
    mu_dtype = check_dtype("mu_dtype", mu_dtype)
    return as_transformation(
        _standardized_adam(b1, b2, eps, channel_axes, mu_dtype, per_weight)
    )


def _standardized_adam(
    b1: Number,
    b2: Number,
    eps: Number,
    channel_axes: ChannelAxes,
    mu_dtype: jnp.dtype | None,
    per_weight: bool = True,
) -> MomentBlock:
    """What :func:`scale_by_standardized_adam` does, as a number a group times m."""

    def init_fn(params):
        check_axes(params, channel_axes)
        return ScaleByStandardizedAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like_params(params, mu_dtype),
            nu=jax.tree.map(lambda x: zeros_like_groups(x, channel_axes), params),
        )

    def factors(updates, state):
        count = increment(state.count)
        numbers = adam_rate(b1, b2, eps, count)
        axes = geometry.checked_axes(channel_axes)
        leaf = _factors(b1=b1, b2=b2, channel_axes=axes, per_weight=per_weight)
        moments, rates, mu, nu = map_leaves(
            4, lambda *arrays: leaf(*arrays, *numbers), updates, state.mu, state.nu
        )
        return moments, rates, ScaleByStandardizedAdamState(count=count, mu=mu, nu=nu)

    return MomentBlock(init_fn, factors, "mu", ("nu",))


@leaf_function
def _factors(g, m, v, scale, floor, *, b1, b2, channel_axes, per_weight):
    """The first moment, the number a group that makes it a step, and both moments."""
    mu = ema(bounded(g), m, b1)
    nu = ema(geometry.squared_norm(g, channel_axes), v, b2)
    d = geometry.group_size(m.shape, channel_axes) if per_weight else 1
    rate = math.sqrt(d) * scale / (jnp.sqrt(nu) + floor)
    return mu, rate, *cast_tree((mu, nu), (m, v))


def adams(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with one second moment a group: AdamS, "Adam standardized".

    On leaves on spheres, with :math:`g \leftarrow g + \lambda x` (coupled L2), inner
    products over the group, :math:`d` its size and :math:`t = 1, 2, \dots`:

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \qquad
      v \leftarrow b_2 v + (1 - b_2) \langle g, g\rangle, \qquad
      x \leftarrow x - \eta \sqrt{d}\,
        \frac{m / (1 - b_1^t)}{\sqrt{v} / \sqrt{1 - b_2^t} + \epsilon}

    On the others, Adam with coupled L2. The state keeps one array of the
    parameters' size, where Adam keeps two, and one number a group.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: :math:`\epsilon`, added to the root of the second moment.
      weight_decay: :math:`\lambda`, a number or a schedule.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.
      mu_dtype: type of the first moment; ``None`` for that of the parameters.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or, naming
        the path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}
      >>> optimizer = so.adams(1e-3, weight_decay=1e-5)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Differences:
      As in the first implementation, :math:`\epsilon` is added to the root of the
      sum of squares, not of their mean: next to Adam's it acts as
      :math:`\epsilon / \sqrt d`. Two other optimizers are called "AdamS"
      elsewhere: Adam with "stable weight decay", and an Adam variant for language
      models that takes momentum as its normalizer. This is neither.

    References:
      Roburin et al., `Spherical perspective on learning with normalization layers
      <https://arxiv.org/abs/2006.13382>`_, 2020
    """
    _check_adam(learning_rate, b1, b2, eps, weight_decay)
    mu_dtype = check_dtype("mu_dtype", mu_dtype)

    def spherical(axes):
        return in_range(
            optax.chain(
                add_decayed_weights(weight_decay),
                scale_by_standardized_adam(b1, b2, eps, axes, mu_dtype=mu_dtype),
                optax.scale_by_learning_rate(learning_rate),
            )
        )

    euclidean = _adam(learning_rate, b1, b2, eps, weight_decay, mu_dtype)
    return needs_params(
        "adams", partition_by_label(spherical, euclidean, labels, channel_axes)
    )


def adamsrt(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamS with rescaled and transported moments: AdamSRT.

    On leaves on spheres the step is that of :func:`adams`, from :math:`x_1` to
    :math:`x_2`. Then the moments follow the weights over the sphere:

    .. math::
      m \leftarrow
        \frac{\langle x_1, x_2\rangle m - \langle m, x_2\rangle x_1}
             {|x_2|^2 + \epsilon},
      \qquad
      v \leftarrow \frac{|x_1|^2}{|x_2|^2 + \epsilon} v

    so that they are what the same gradients would have given at :math:`x_2`: tangent
    there, and scaled as gradients there are. On the other leaves, Adam with coupled
    L2. The state keeps one array of the parameters' size and one number a group.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: :math:`\epsilon`, added to the root of the second moment and to the squared
        norm.
      weight_decay: :math:`\lambda`, a number or a schedule.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.
      mu_dtype: type of the first moment; ``None`` for that of the parameters.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or, naming
        the path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"conv1": {"kernel": jnp.ones((3, 3, 2, 4))},
      ...           "norm1": {"scale": jnp.ones(4)}}
      >>> optimizer = so.adamsrt(optax.cosine_decay_schedule(1e-3, 1000), b2=0.99,
      ...     labels=so.label_by_path({r"conv\d/kernel": "filter"}))
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Differences:
      As in the first implementation, :math:`\epsilon` is added to the root of the
      sum of squares, not of their mean: next to Adam's it acts as
      :math:`\epsilon / \sqrt d`. The paper writes the moments per weight.

    References:
      Roburin et al., `Spherical perspective on learning with normalization layers
      <https://arxiv.org/abs/2006.13382>`_, 2020
    """
    _check_adam(learning_rate, b1, b2, eps, weight_decay)
    mu_dtype = check_dtype("mu_dtype", mu_dtype)

    def spherical(axes):
        return rescale_and_transport_moment(
            add_decayed_weights(weight_decay),
            _standardized_adam(b1, b2, eps, axes, mu_dtype),
            optax.scale_by_learning_rate(learning_rate),
            axes,
            eps,
        )

    euclidean = _adam(learning_rate, b1, b2, eps, weight_decay, mu_dtype)
    return needs_params(
        "adamsrt", partition_by_label(spherical, euclidean, labels, channel_axes)
    )


def adamg(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam on the unit sphere: AdamG, a step along a great circle.

    On leaves on spheres, without weight decay:

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \qquad
      v \leftarrow b_2 v + (1 - b_2) \langle g, g\rangle

      y = x_1 - \eta\,
        \frac{m / (1 - b_1^t)}{\sqrt{v} / \sqrt{1 - b_2^t} + \epsilon}, \qquad
      m \leftarrow \frac{\langle x_1, y\rangle m - \langle m, y\rangle x_1}
                     {|x_1|\,|y| + \epsilon}, \qquad
      x_2 = \frac{y}{|y| + \epsilon}

    There is no factor :math:`\sqrt d`: the learning rate is an angle, about
    0.01. The first step brings every group to norm 1, whatever norm it had. On the
    other leaves, Adam with coupled L2.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: :math:`\epsilon`, added to the root of the second moment and to norms.
      weight_decay: :math:`\lambda`, a number or a schedule, for euclidean leaves
        alone.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.
      mu_dtype: type of the first moment; ``None`` for that of the parameters.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or, naming
        the path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"kernel": jnp.ones((3, 3, 2, 4))}
      >>> optimizer = so.adamg(1e-2)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> so.geometry.norm(params["kernel"], (-1,)).ravel().round(4)
      Array([1., 1., 1., 1.], dtype=float32)

    Differences:
      Cho and Lee move along the geodesic; the retraction used here, as in Roburin
      et al.'s implementation, agrees with it to first order. That implementation
      reads its ``channel_wise`` flag the wrong way round, so that it runs Adam on
      the leaves that are marked. Another optimizer elsewhere is called "AdamG", a
      parameter-free Adam; this is not it.

    References:
      Cho and Lee, `Riemannian approach to batch normalization
      <https://arxiv.org/abs/1709.09603>`_, 2017

      Roburin et al., `Spherical perspective on learning with normalization layers
      <https://arxiv.org/abs/2006.13382>`_, 2020
    """
    _check_adam(learning_rate, b1, b2, eps, weight_decay)
    mu_dtype = check_dtype("mu_dtype", mu_dtype)

    def spherical(axes):
        return transport_and_retract_moment(
            _standardized_adam(b1, b2, eps, axes, mu_dtype, per_weight=False),
            optax.scale_by_learning_rate(learning_rate),
            axes,
            eps,
        )

    euclidean = _adam(learning_rate, b1, b2, eps, weight_decay, mu_dtype)
    return needs_params(
        "adamg", partition_by_label(spherical, euclidean, labels, channel_axes)
    )


def sgdmrt(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Number = 0.0,
    dampening: Number = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    labels: Labels | None = None,
    channel_axes: ChannelAxesTable | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with rescaled and transported momentum: SGD-MRT.

    With :math:`g \leftarrow g + \lambda x` (coupled L2), from :math:`m = 0`:

    .. math::
      m \leftarrow \mu m + (1 - \tau) g, \qquad
      x_2 = x_1 - \eta m, \qquad
      m \leftarrow
        \frac{\langle x_1, x_2\rangle m - \langle m, x_2\rangle x_1}{|x_2|^2}

    the last on leaves on spheres alone; the others are SGD with momentum.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      momentum: :math:`\mu`, decay rate of the momentum.
      dampening: :math:`\tau`, the share of each gradient that is left out.
      weight_decay: :math:`\lambda`, a number or a schedule.
      labels: label tree, or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`. Under :func:`optax.inject_hyperparams` a
        function needs ``static_args=("labels",)``, as it would be taken for a
        schedule.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.
      accumulator_dtype: type of the momentum; ``None`` for that of the parameters.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or, naming
        the path, a leaf has no label, an unknown one, or too few axes for it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}
      >>> optimizer = so.sgdmrt(0.1, momentum=0.9, weight_decay=2.5e-4)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Differences:
      PyTorch's SGD does not dampen the first gradient; here :math:`m` starts from 0
      and every gradient is dampened alike.

    References:
      Roburin et al., `Spherical perspective on learning with normalization layers
      <https://arxiv.org/abs/2006.13382>`_, 2020
    """
    check_numbers(
        non_negative={"learning_rate": learning_rate, "weight_decay": weight_decay},
        below_one={"momentum": momentum},
        up_to_one={"dampening": dampening},
    )
    accumulator_dtype = check_dtype("accumulator_dtype", accumulator_dtype)
    decay = add_decayed_weights(weight_decay)
    moment = momentum_block(momentum, dampening, accumulator_dtype)
    scale = optax.scale_by_learning_rate(learning_rate)

    def spherical(axes):
        return rescale_and_transport_moment(decay, moment, scale, axes, eps=0.0)

    sgd = optax.chain(
        decay,
        scale_by_momentum(momentum, dampening, accumulator_dtype=accumulator_dtype),
        scale,
    )
    return needs_params(
        "sgdmrt", partition_by_label(spherical, in_range(sgd), labels, channel_axes)
    )


def _adam(learning_rate, b1, b2, eps, weight_decay, mu_dtype):
    """Adam with coupled L2, for the leaves that lie on no sphere."""
    return in_range(
        optax.chain(
            add_decayed_weights(weight_decay),
            scale_by_adam(b1, b2, eps, mu_dtype),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def _check_adam(learning_rate, b1, b2, eps, weight_decay) -> None:
    check_numbers(
        non_negative={
            "learning_rate": learning_rate,
            "eps": eps,
            "weight_decay": weight_decay,
        },
        below_one={"b1": b1, "b2": b2},
    )
