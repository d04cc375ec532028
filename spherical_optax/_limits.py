r"""Numbers that a type cannot hold, and what becomes of them.

Finite weights, gradients and hyperparameters make finite steps and a finite state. With
:math:`e` the type's largest exponent (128 for float32 and for what is computed in it,
1024 for float64):

* A gradient counts up to :math:`2^{25e/64}` in absolute value, :math:`2^{50} \approx
  10^{15}` in float32, and so does a moment that is carried over a sphere.
* A number that multiplies a group or a leaf counts up to :math:`2^{9e/16}`.
* A squared norm counts up to :math:`2^{25e/32}`, as a divisor from its inverse on. A
  group whose squared norm is above :math:`2^{5e/8}` keeps its first moment as it is.
* A root of a second moment, and the norm up to which LAMB counts weights, count from
  :math:`2^{1-e/2}` on: the squares of smaller numbers vanish. What LAMB and SWATS
  divide by such a root counts up to :math:`2^{e/2}`.
* What is stored in a narrower type ends at its largest number.
* A step counts up to :math:`2^{e - p - 3}`, with :math:`p` the digits of a number,
  :math:`2^{102}` in float32: so a weight cannot leave the range of its type. A step of
  float16 ends where the weight would.

Infinite gradients count as the largest; NaN stays NaN. ``docs/extremes.md`` is the same
for users.

All of this happens in passes over memory that an update makes anyhow. Two things cost
much, and are avoided: what is clipped before it is summed over a group becomes an array
of its own, and a choice between arrays (not between numbers) compiles twice as long. So
does every operation add to the time to compile, on numbers too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spherical_optax.geometry import exponent_of, real_dtype, widen


def clip(x: jax.Array, largest: float) -> jax.Array:
    """``x`` where its absolute value is at most ``largest``, else that with its sign.

    Of a complex number the parts are meant. NaN stays NaN.

    Example:
      >>> clip(jnp.array([3.0, -jnp.inf, jnp.nan]), 2.0)
      Array([ 2., -2., nan], dtype=float32)
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(clip(jnp.real(x), largest), clip(jnp.imag(x), largest))
    bound = np.asarray(largest, x.dtype)
    return jax.lax.clamp(-bound, x, bound)


def bounded(x: jax.typing.ArrayLike) -> jax.Array:
    """A vector of which squares can be summed, in float32 at least.

    Example:
      >>> bounded(jnp.array([1e30, -2.0])) == jnp.array([2.0**50, -2.0])
      Array([ True,  True], dtype=bool)
    """
    x = widen(x)
    return clip(x, 2.0 ** (exponent_of(x.dtype) * 25 // 64))


def bounded_tree(tree: Any) -> Any:
    """:func:`bounded` for each leaf."""
    return jax.tree.map(bounded, tree)


def capped(factor: jax.typing.ArrayLike) -> jax.Array:
    """A number for a group or a leaf that can multiply a vector that is bounded.

    Example:
      >>> bool(capped(1e30) == 2.0**72)
      True
    """
    factor = widen(factor)
    return clip(factor, 2.0 ** (exponent_of(factor.dtype) * 9 // 16))


def square_floor(square: jax.typing.ArrayLike) -> jax.Array:
    """A square of which the root is at least :func:`root_floor`.

    Example:
      >>> bool(jnp.sqrt(square_floor(0.0)) == 2.0**-63)
      True
    """
    square = widen(square)
    return jnp.maximum(square, 2.0 ** (2 - exponent_of(square.dtype)))


def root_floor(root: jax.typing.ArrayLike) -> jax.Array:
    """A denominator, at least the root of the smallest square.

    Example:
      >>> bool(root_floor(0.0) == 2.0**-63)
      True
    """
    root = widen(root)
    return jnp.maximum(root, 2.0 ** (1 - exponent_of(root.dtype) // 2))


def quotient(x: jax.Array, root: jax.Array) -> jax.Array:
    """``x / root``, finite where the root is at least :func:`root_floor`.

    The division comes last, so that XLA writes the quotient once, for all that read it;
    of a clip at the end each reader would do its own, a sum by an array more.

    Example:
      >>> bool(quotient(jnp.array(1e30), root_floor(0.0)) == 2.0**127)
      True
    """
    return clip(x, 2.0 ** (exponent_of(x.dtype) // 2)) / root


def either(
    condition: jax.Array, x: jax.typing.ArrayLike, y: jax.typing.ArrayLike
) -> jax.Array:
    """``x`` where a condition holds, else ``y``: an array and a number, or two alike.

    As ``jnp.where``, which costs a call to compile, and that as much as a few loops.

    Example:
      >>> either(jnp.array([True, False]), jnp.array([3.0, jnp.inf]), 1.0)
      Array([3., 1.], dtype=float32)
    """
    dtype, x, y = jnp.result_type(x, y), jnp.asarray(x), jnp.asarray(y)
    # Numbers of Python stay of no type of their own.
    x, y = (z if z.dtype == dtype else z.astype(dtype) for z in (x, y))
    if x.shape != y.shape:  # and the sharding is kept
        y = jax.lax.full_like(x, y)
    return jax.lax.select(condition, x, y)


def finite(x: jax.Array) -> jax.Array:
    """``x`` with the largest number in place of an infinite one.

    Example:
      >>> bool(finite(jnp.array(-jnp.inf)) == jnp.finfo(jnp.float32).min)
      True
    """
    return clip(x, float(jnp.finfo(x.dtype).max))


def held(square: jax.Array) -> jax.Array:
    """A second moment, the largest number in place of infinity.

    Example:
      >>> bool(held(jnp.array(jnp.inf)) == jnp.finfo(jnp.float32).max)
      True
    """
    return jnp.minimum(square, float(jnp.finfo(square.dtype).max))


def saturated(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """``x`` in a type, with its largest number in place of larger ones.

    Example:
      >>> saturated(jnp.array([1e6, -2.0]), jnp.float16).tolist()
      [65504.0, -2.0]
    """
    if jnp.issubdtype(dtype, jnp.inexact):
        largest = float(jnp.finfo(dtype).max)
        if largest < float(jnp.finfo(x.dtype).max):
            x = clip(x, largest)
    return x.astype(dtype)


def saturated_like(tree, like):
    """Casts a tree to the types of another one, as :func:`saturated`."""
    return jax.tree.map(lambda x, y: saturated(x, jnp.result_type(y)), tree, like)


def in_range(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose steps are cut as by :func:`within_reach`, with its state."""
    inner = optax.with_extra_args_support(optimizer)

    def update_fn(updates, state, params=None, **extra_args):
        steps, state = inner.update(updates, state, params, **extra_args)
        return jax.tree.map(within_reach, steps, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def within_reach(step: jax.Array, x: jax.Array) -> jax.Array:
    """A step so that ``x + step`` stays in the range of the type of ``x``.

    In wide types it counts up to a quarter of the distance between their two largest
    numbers: its sum with the largest is then rounded to the largest. Of float16 it ends
    where the weight would be a little below the largest, for rounding.

    Example:
      >>> x = jnp.array([3e38, 1.0])
      >>> jnp.isfinite(x + within_reach(jnp.array([jnp.inf, 1e-3]), x))
      Array([ True,  True], dtype=bool)
    """
    wide = jnp.finfo(real_dtype(x.dtype))
    if wide.maxexp >= 128:
        # bfloat16 has the range of float32, and is computed in it.
        digits = max(int(wide.nmant), int(jnp.finfo(jnp.float32).nmant))
        return clip(widen(step), 2.0 ** (int(wide.maxexp) - digits - 3))
    kept = 1 - 2 * max(float(jnp.finfo(a.dtype).eps) for a in (step, x))
    largest = float(jnp.finfo(real_dtype(x.dtype)).max)
    step = widen(step)
    room = (kept * (largest - jnp.abs(widen(x)))).astype(step.dtype)
    return jax.lax.clamp(-room, step, room)
