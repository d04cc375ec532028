"""AdamP and SGDP: steps without the part that only makes the weights grow."""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import (
    check_dtype,
    check_flag,
    check_numbers,
    is_traced,
    needs_params,
)
from spherical_optax._leaves import leaf_function
from spherical_optax._limits import capped, either, finite, in_range
from spherical_optax._moments import (
    Number,
    cast_tree,
    increment,
    scale_by_adam,
    scale_by_momentum,
    value_at,
)
from spherical_optax.geometry import widen
from spherical_optax.labels import check_axes, ndim


class ProjectIfInvariantState(NamedTuple):
    """State of :func:`project_if_invariant`."""

    count: jax.Array  # shape=(), dtype=int32


def project_if_invariant(
    delta: Number = 0.1,
    eps: Number = 1e-8,
    channel_axis: int = -1,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    wd_ratio: Number = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the radial part of updates to weights that look scale-invariant.

    The gradient :math:`g` of a scale-invariant loss is orthogonal to the weights
    :math:`x`. For every leaf of two or more axes, with :math:`d` the size of a
    filter (all weights at one place of ``channel_axis``) and :math:`D` that of the
    leaf:

    * if :math:`\max |\cos(g, x)| < \delta / \sqrt d` over the filters, the component
      of the update along each filter of :math:`x` is removed;
    * else, if :math:`|\cos(g, x)| < \delta / \sqrt D` for the whole leaf, its
      component along the leaf;
    * else it is left as it is.

    A component is taken along :math:`x / (|x| + \epsilon)`. Then decoupled weight
    decay is added to the update: :math:`\lambda \rho x`, where :math:`\rho` is
    ``wd_ratio`` if something was removed and 1 otherwise.

    Args:
      delta: :math:`\delta`, how far from orthogonal counts as orthogonal.
      eps: :math:`\epsilon`, added to norms.
      channel_axis: the axis that tells one filter from another.
      weight_decay: :math:`\lambda`, a number or a schedule.
      wd_ratio: :math:`\rho`.

    Returns:
      A transformation that needs parameters. The gradient is the extra argument
      ``grad`` of ``update`` where it is given (as :func:`adamp` does), else the
      update that comes in, as is right after plain SGD.

    Raises:
      ValueError: a hyperparameter is out of range, or a leaf of two or more axes
        has no such axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> block = so.project_if_invariant()
      >>> x = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> step = jnp.array([[5.0, 1.0], [1.0, 5.0]])
      >>> grad = jnp.array([[0.0, 1.0], [1.0, 0.0]])
      >>> block.update(step, block.init(x), x, grad=grad)[0].round(3)
      Array([[0., 1.],
             [1., 0.]], dtype=float32)
    """
    check_numbers(
        non_negative={
            "delta": delta,
            "eps": eps,
            "weight_decay": weight_decay,
            "wd_ratio": wd_ratio,
        }
    )
    axis = _static_axis(channel_axis)

    def init_fn(params):
        if axis is not None:
            matrices = jax.tree.map(lambda x: x if ndim(x) >= 2 else None, params)
            check_axes(matrices, (axis,))
        return ProjectIfInvariantState(count=jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None, *, grad=None, **extra_args):
        del extra_args
        grads = updates if grad is None else grad
        decay = capped(value_at(weight_decay, state.count))
        project = _project(
            delta=delta,
            eps=eps,
            wd_ratio=wd_ratio,
            channel_axis=channel_axis if axis is None else axis,
        )
        projected = jax.tree.map(
            lambda *leaf: project(*leaf, decay), updates, grads, params
        )
        return cast_tree(projected, updates), ProjectIfInvariantState(
            count=increment(state.count)
        )

    return needs_params(
        "project_if_invariant",
        optax.GradientTransformationExtraArgs(init_fn, update_fn),
    )


def adamp(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    delta: Number = 0.1,
    wd_ratio: Number = 0.1,
    nesterov: bool = False,
    *,
    channel_axis: int = -1,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam without the radial steps that only make weights grow: AdamP.

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \quad v \leftarrow b_2 v + (1 - b_2) g^2, \quad
      p = \frac{n / (1 - b_1^t)}{\sqrt{v} / \sqrt{1 - b_2^t} + \epsilon}

      x \leftarrow (1 - \eta \lambda \rho)\, x - \eta\, \Pi(p)

    with :math:`n = m`, or :math:`b_1 m + (1 - b_1) g` with ``nesterov``.
    :math:`\Pi` removes the component of :math:`p` along the weights where they look
    scale-invariant, that is, where :math:`g` is nearly orthogonal to them, by filters
    or as a whole (:func:`project_if_invariant` says when); :math:`\rho` is
    ``wd_ratio`` there and 1 elsewhere.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: :math:`\epsilon`, added to the denominator and to norms.
      weight_decay: :math:`\lambda`, decoupled, a number or a schedule.
      delta: how far from orthogonal counts as orthogonal.
      wd_ratio: share of the weight decay for weights that look scale-invariant.
      nesterov: whether to look ahead.
      channel_axis: the axis that tells one filter from another: the last in Flax,
        for convolution and dense kernels alike.
      mu_dtype: type of the first moment; ``None`` for that of the parameters.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or a leaf
        of two or more axes has no such channel axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}
      >>> optimizer = so.adamp(1e-3, weight_decay=1e-2)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Differences:
      None known in the arithmetic. The first implementation finds filters on axis
      0, where PyTorch keeps output channels. No labels are needed: which weights
      are scale-invariant is read off each gradient.

    References:
      Heo et al., `AdamP: slowing down the slowdown for momentum optimizers on
      scale-invariant weights <https://arxiv.org/abs/2006.08217>`_, 2021
    """
    check_numbers(
        non_negative={"learning_rate": learning_rate, "eps": eps},
        below_one={"b1": b1, "b2": b2},
    )
    check_flag("nesterov", nesterov)
    mu_dtype = check_dtype("mu_dtype", mu_dtype)
    chain = optax.chain(
        scale_by_adam(b1, b2, eps, mu_dtype, nesterov),
        project_if_invariant(
            delta, eps, channel_axis, weight_decay=weight_decay, wd_ratio=wd_ratio
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
    return needs_params("adamp", in_range(_with_gradient(chain)))


def sgdp(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Number = 0.0,
    dampening: Number = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    delta: Number = 0.1,
    wd_ratio: Number = 0.1,
    eps: Number = 1e-8,
    *,
    channel_axis: int = -1,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD without the radial steps that only make weights grow: SGDP.

    .. math::
      m \leftarrow \mu m + (1 - \tau) g, \qquad
      x \leftarrow \left(1 - \frac{\eta \lambda \rho}{1 - \mu}\right) x - \eta\, \Pi(p)

    with :math:`p = m`, or :math:`g + \mu m` with ``nesterov``. :math:`\Pi` removes the
    component of :math:`p` along the weights where they look scale-invariant
    (:func:`project_if_invariant` says when); :math:`\rho` is ``wd_ratio`` there and 1
    elsewhere.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      momentum: :math:`\mu`, decay rate of the momentum.
      dampening: :math:`\tau`, the share of each gradient that is left out.
      weight_decay: :math:`\lambda`, decoupled, a number or a schedule.
      nesterov: whether to look ahead.
      delta: how far from orthogonal counts as orthogonal.
      wd_ratio: share of the weight decay for weights that look scale-invariant.
      eps: added to norms.
      channel_axis: the axis that tells one filter from another: the last in Flax,
        for convolution and dense kernels alike.
      accumulator_dtype: type of the momentum; ``None`` for that of the parameters.

    Returns:
      An optimizer. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter is out of range, ``params`` is ``None``, or a leaf
        of two or more axes has no such channel axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> params = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}
      >>> optimizer = so.sgdp(0.1, momentum=0.9, weight_decay=1e-5, nesterov=True)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Differences:
      Without ``nesterov`` the first implementation projects the momentum buffer
      itself, through an alias; the paper and this code project the step alone.

    References:
      Heo et al., `AdamP: slowing down the slowdown for momentum optimizers on
      scale-invariant weights <https://arxiv.org/abs/2006.08217>`_, 2021
    """
    check_numbers(
        non_negative={"learning_rate": learning_rate, "weight_decay": weight_decay},
        below_one={"momentum": momentum},
        up_to_one={"dampening": dampening},
    )
    check_flag("nesterov", nesterov)
    accumulator_dtype = check_dtype("accumulator_dtype", accumulator_dtype)

    def decay(count):
        return value_at(weight_decay, count) / (1 - momentum)

    chain = optax.chain(
        scale_by_momentum(momentum, dampening, nesterov, accumulator_dtype),
        project_if_invariant(
            delta, eps, channel_axis, weight_decay=decay, wd_ratio=wd_ratio
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
    return needs_params("sgdp", in_range(_with_gradient(chain)))


def _with_gradient(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Hands the gradient that comes in to every block, as ``grad``."""

    def update_fn(updates, state, params=None, **extra_args):
        return inner.update(updates, state, params, **{**extra_args, "grad": updates})

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _static_axis(channel_axis: Any) -> int | None:
    """The axis as a Python integer; None where it is traced."""
    if is_traced(channel_axis):
        return None
    try:
        return operator.index(channel_axis)
    except TypeError:
        raise ValueError(
            f"channel_axis must be an integer, got {channel_axis!r}"
        ) from None


@leaf_function
def _project(u, g, x, decay, *, delta, eps, wd_ratio, channel_axis):
    """``u``, decayed and, where ``g`` is orthogonal to the weights, projected."""
    numbers = delta, eps, decay, capped(decay * wd_ratio)
    if x.ndim < 2:
        along = decay
    elif isinstance(channel_axis, int):
        along = _decay_along(u, g, x, *numbers, channel_axis)
    else:

        def branch(axis):
            return jnp.broadcast_to(_decay_along(u, g, x, *numbers, axis), x.shape)

        branches = [functools.partial(branch, axis) for axis in range(x.ndim)]
        along = jax.lax.switch(channel_axis % x.ndim, branches)
    return finite(widen(u) + along * widen(x))


def _decay_along(
    u, g, x, delta: Number, eps: Number, decay, reduced_decay, channel_axis: int
):
    """Returns a so that ``u + a x`` is decayed and, where g is orthogonal, projected.

    Sums over the leaf are sums over its filters, so each is taken once. Nothing is
    removed where a sum overflows.
    """
    per_filter = (channel_axis,)
    size = max(geometry.group_size(x.shape, per_filter), 1)
    # Without the barrier XLA merges the sum over a filter and the sum over filters
    # into a second pass over the whole leaf, which takes several times as long.
    xx, gg, gx, ux = jax.lax.optimization_barrier(
        [geometry.dot(a, b, per_filter) for a, b in ((x, x), (g, g), (g, x), (u, x))]
    )
    oblique = ~_orthogonal(gx, gg, xx, delta / math.sqrt(size), eps)
    rows = [ux, xx, gx, gg, oblique.astype(xx.dtype)]
    leaf_ux, leaf_xx, leaf_gx, leaf_gg, some_oblique = jnp.sum(
        jnp.stack([row.reshape(-1) for row in rows], axis=1), axis=0
    )
    by_filter = some_oblique == 0
    by_layer = _orthogonal(
        leaf_gx, leaf_gg, leaf_xx, delta / math.sqrt(max(x.size, 1)), eps
    )
    removed = by_filter | by_layer
    share = either(by_filter, ux, leaf_ux)
    share = either(removed & jnp.isfinite(share), share, 0.0)
    square = jnp.square(jnp.sqrt(either(by_filter, xx, leaf_xx)) + eps)
    share = capped(share / geometry.floored(square))
    return either(removed, reduced_decay, decay) - share


def _orthogonal(gx, gg, xx, cosine: Number, eps: Number) -> jax.Array:
    """Whether ``|cos(g, x)|`` is below a number, norms counting as ``eps`` at least."""
    norms = jnp.maximum(jnp.sqrt(gg), eps) * jnp.maximum(jnp.sqrt(xx), eps)
    # Divided last: XLA does that once, and not in each loop that needs to know.
    return jnp.abs(gx) / geometry.floored(norms) < cosine
