"""What moment-based optimizers share: averages, bias correction, momentum, Adam.

Optax has these blocks too. Here their sums and the additions of ``eps`` are done
in float32 at least, so that float16 parameters with zero gradients stay finite,
and they are stated the way the optimizers of this library need them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from spherical_optax import geometry
from spherical_optax._checks import is_traced
from spherical_optax._leaves import leaf_function, map_leaves
from spherical_optax._limits import (
    bounded,
    bounded_tree,
    capped,
    saturated_like,
    square_floor,
)
from spherical_optax.geometry import ChannelAxes, real_dtype, widen, working_dtype

Number = float | jax.Array


class ScaleByAdamState(NamedTuple):
    """State of :func:`scale_by_adam`."""

    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates  # shapes of the parameters
    nu: optax.Updates  # shapes of the parameters


class MomentBlock(NamedTuple):
    """A block whose step is a number a group, or a leaf, times a moment."""

    init: optax.TransformInitFn
    factors: Callable[..., tuple[optax.Updates, optax.Updates, Any]]
    """From gradients and state to moments, numbers, and the new state."""
    vector: str  # the field of the state that holds the moment
    squares: tuple[str, ...] = ()  # and those that hold squares of gradients


def as_transformation(block: MomentBlock) -> optax.GradientTransformationExtraArgs:
    """The block as one of Optax: it returns numbers times moments."""

    def update_fn(updates, state, params=None):
        del params
        moments, rates, state = block.factors(updates, state)
        steps = jax.tree.map(lambda r, m: capped(r) * m, rates, moments)
        return cast_tree(steps, updates), state

    return optax.with_extra_args_support(
        optax.GradientTransformation(block.init, update_fn)
    )


def zeros_like_params(params: optax.Params, dtype: jnp.dtype | None = None):
    """A first moment: zeros of the parameters' shapes."""
    return optax.tree.zeros_like(params, dtype=dtype)


def zeros_like_squares(params: optax.Params):
    """A second moment: real zeros; float32 for float16, which holds no squares."""

    def zeros(x):
        dtype = real_dtype(jnp.result_type(x))
        return jnp.zeros_like(x, jnp.float32 if dtype == jnp.float16 else dtype)

    return jax.tree.map(zeros, params)


def zeros_like_groups(x: jax.Array, channel_axes: ChannelAxes) -> jax.Array:
    """Zeros of the shape and type of the inner products of the groups of ``x``.

    They lie on the devices of ``x``, split as it is along the channel axes.
    """
    groups = _squares.eval_shape(x, geometry.checked_axes(channel_axes))
    # A traced array lists all that is traced before it says that it is not sharded.
    where = None if is_traced(x) else getattr(x, "sharding", None)
    if not isinstance(where, NamedSharding) or not isinstance(x, jax.Array):
        return jnp.zeros_like(groups)
    split = (*where.spec, *[None] * x.ndim)
    summed = geometry.group_axes(x.ndim, channel_axes)
    axes = (None if n in summed else split[n] for n in range(x.ndim))
    spec, kind = PartitionSpec(*axes), where.memory_kind
    where = NamedSharding(where.mesh, spec, memory_kind=kind)
    return jnp.zeros(groups.shape, groups.dtype, device=where)


@functools.partial(jax.jit, static_argnums=1)
def _squares(x: jax.Array, channel_axes: ChannelAxes) -> jax.Array:
    return geometry.dot(x, x, channel_axes)


def increment(count: jax.Array) -> jax.Array:
    """The next step's number; stays at the largest int32."""
    return jnp.asarray(optax.safe_increment(count))


def ema(new: jax.Array, average: jax.Array, decay: Number) -> jax.Array:
    """``decay average + (1 - decay) new``, float32 at least."""
    return decay * widen(average) + (1 - decay) * widen(new)


def ema_of_squares(new: jax.Array, average: jax.Array, decay: Number) -> jax.Array:
    """``decay average + (1 - decay) |new|^2``, real, float32 at least.

    The square is never an array of its own: what else needs ``|new|^2``, a norm say,
    would make XLA keep it, and write it to memory.
    """
    new = widen(new)
    parts = [jnp.real(new), jnp.imag(new)] if jnp.iscomplexobj(new) else [new]
    return sum([((1 - decay) * part) * part for part in parts], decay * widen(average))


def bias_correction(decay: Number, count: jax.Array) -> jax.Array:
    """``1 - decay**count`` without the cancellation of that formula in float32."""
    if isinstance(decay, (int, float)):
        with np.errstate(divide="ignore"):
            log_decay = float(np.log(decay))
    else:
        log_decay = jnp.log(decay)
    return -jnp.expm1(jnp.asarray(count, float) * log_decay)


def abs_sq(x: jax.Array) -> jax.Array:
    """``|x|^2``, real, float32 at least."""
    x = widen(x)
    if jnp.iscomplexobj(x):
        return jnp.square(jnp.real(x)) + jnp.square(jnp.imag(x))
    return jnp.square(x)


def value_at(schedule: optax.ScalarOrSchedule, count: jax.Array) -> Number:
    """A hyperparameter that may be a schedule, at a step."""
    return jnp.asarray(schedule(count)) if callable(schedule) else schedule


def cast_tree(tree, like):
    """Casts a tree to the types of another one, to their largest numbers at most."""
    return saturated_like(tree, like)


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
    """:func:`optax.add_decayed_weights` in float32 at least, with the same state.

    Sums may be infinite: whatever comes after it bounds what it is given.
    """
    inner = optax.add_decayed_weights(weight_decay)

    def update_fn(updates, state, params=None):
        updates, params = jax.tree.map(widen, (updates, params))
        return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update_fn)


def adam_rate(
    b1: Number, b2: Number, eps: Number, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Numbers :math:`r`, :math:`f` so that Adam steps by :math:`r m / (\sqrt v + f)`.

    That is :math:`(m / (1 - b_1^t)) / (\sqrt{v / (1 - b_2^t)} + \epsilon)` with what
    is the same for all weights taken out.
    """
    bias2 = bias_correction(b2, count)
    # Roots and divisions come last: XLA does them once, and not in each loop.
    rate = jnp.sqrt(bias2) / bias_correction(b1, count)
    return rate, jnp.sqrt(square_floor(bias2 * eps * eps))


def in_working_precision(
    inner: optax.GradientTransformation, *, bound_updates: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation in float32 at least, whatever the parameters' type.

    Its state is kept so, too, and its updates leave so. An ``eps`` that it adds would
    vanish in float16. What goes in is bounded (see ``_limits.py``), and what comes out
    unless that is left to what follows: of a clip in front of a sum XLA would make an
    array.
    """
    inner = optax.with_extra_args_support(inner)

    def widen_leaf(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return x.update(dtype=working_dtype(x.dtype))
        return widen(x)

    def init_fn(params):
        return inner.init(jax.tree.map(widen_leaf, params))

    def update_fn(updates, state, params=None, **extra_args):
        updates, params = bounded_tree((updates, params))
        updates, state = inner.update(updates, state, params, **extra_args)
        return bounded_tree(updates) if bound_updates else updates, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_adam(
    b1: Number,
    b2: Number,
    eps: Number,
    mu_dtype: jnp.dtype | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    r"""Adam's direction.

    .. math::
      m \leftarrow b_1 m + (1 - b_1) g, \quad v \leftarrow b_2 v + (1 - b_2) |g|^2,
      \quad p = \frac{n / (1 - b_1^t)}{\sqrt{v} / \sqrt{1 - b_2^t} + \epsilon}

    with :math:`n = m`, or :math:`b_1 m + (1 - b_1) g` with ``nesterov``.

    Differences:
      :func:`optax.scale_by_adam` corrects the look-ahead of Nesterov's momentum
      with :math:`1 - b_1^{t+1}`; this follows AdamP and does not.
    """

    def init_fn(params):
        return ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like_params(params, mu_dtype),
            nu=zeros_like_squares(params),
        )

    def update_fn(updates, state, params=None):
        del params
        count = increment(state.count)
        numbers = adam_rate(b1, b2, eps, count)
        step = _adam_step(b1=b1, b2=b2, nesterov=nesterov)
        direction, mu, nu = map_leaves(
            3, lambda *leaf: step(*leaf, *numbers), updates, state.mu, state.nu
        )
        return direction, ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init_fn, update_fn)


@leaf_function
def _adam_step(g, m, v, rate, floor, *, b1, b2, nesterov):
    bound = bounded(g)
    mu = ema(bound, m, b1)
    nu = ema_of_squares(bound, v, b2)
    ahead = ema(bound, mu, b1) if nesterov else mu
    step = rate * ahead / (jnp.sqrt(nu) + floor)
    return cast_tree((step, mu, nu), (g, m, v))


def momentum_block(
    momentum: Number,
    dampening: Number = 0.0,
    accumulator_dtype: jnp.dtype | None = None,
) -> MomentBlock:
    r"""Heavy-ball momentum with dampening, :math:`m \leftarrow \mu m + (1 - \tau) g`.

    From :math:`m = 0`. The state is an :class:`optax.TraceState`.

    Differences:
      :func:`optax.trace` has no dampening. PyTorch starts from :math:`m = g`,
      without dampening the first gradient.
    """

    def init_fn(params):
        return optax.TraceState(trace=zeros_like_params(params, accumulator_dtype))

    def factors(updates, state):
        trace = jax.tree.map(
            lambda g, m: momentum * widen(m) + (1 - dampening) * bounded(g),
            updates,
            state.trace,
        )
        ones = jax.tree.map(lambda m: jnp.ones((), real_dtype(m.dtype)), trace)
        return trace, ones, optax.TraceState(trace=cast_tree(trace, state.trace))

    return MomentBlock(init_fn, factors, "trace")


def scale_by_momentum(
    momentum: Number,
    dampening: Number = 0.0,
    nesterov: bool = False,
    accumulator_dtype: jnp.dtype | None = None,
) -> optax.GradientTransformation:
    r"""The momentum of :func:`momentum_block` as a step.

    With ``nesterov`` it looks ahead: :math:`g + \mu m` in place of :math:`m`.
    """
    block = momentum_block(momentum, dampening, accumulator_dtype)

    def update_fn(updates, state, params=None):
        del params
        trace, _, state = block.factors(updates, state)
        direction = (
            jax.tree.map(lambda g, m: bounded(g) + momentum * m, updates, trace)
            if nesterov
            else trace
        )
        return cast_tree(direction, updates), state

    return optax.GradientTransformation(block.init, update_fn)
