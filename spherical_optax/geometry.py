r"""Inner products, norms and moves on spheres, group by group.

A *group* is a set of weights that share one scale. The groups of an array are
told apart by its *channel axes*; the weights of one group lie along all other
axes. For a convolution kernel of shape ``(kh, kw, in, out)``, ``(-1,)`` makes
one group per output channel and ``()`` makes the whole kernel one group.

This is the only module that knows what an axis means. Every function here is a
pure function of arrays. Sums are taken in float32 at least, and what is summed
over a group keeps its axes with length 1, so that it broadcasts against the
array it came from. For complex arrays the inner product is the real part of
:math:`\sum \bar x y`, so that :math:`\langle x, x\rangle = \sum |x|^2`.

Example:
  >>> import jax.numpy as jnp
  >>> from spherical_optax import geometry
  >>> kernel = jnp.ones((3, 3, 2, 5))
  >>> geometry.norm(kernel, (-1,)).shape, geometry.norm(kernel, ()).shape
  ((1, 1, 1, 5), (1, 1, 1, 1))
"""

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = [
    "center",
    "dot",
    "group_axes",
    "group_shape",
    "group_size",
    "norm",
    "project",
    "retract",
    "squared_norm",
    "transport",
]

ChannelAxes = Sequence[int]


def checked_axes(channel_axes: ChannelAxes) -> tuple[int, ...]:
    """Returns the channel axes as a tuple of integers.

    Raises:
      ValueError: they are not a sequence of integers.

    Example:
      >>> checked_axes([-2, -1])
      (-2, -1)
    """
    try:
        return tuple(operator.index(axis) for axis in channel_axes)
    except TypeError:
        raise ValueError(
            f"channel_axes must be a sequence of integers, got {channel_axes!r}"
        ) from None


def group_axes(ndim: int, channel_axes: ChannelAxes) -> tuple[int, ...]:
    """Returns the axes along which the weights of one group lie.

    Args:
      ndim: number of axes of the array.
      channel_axes: axes that tell one group from another, negative ones counted
        from the end; ``()`` makes the whole array one group.

    Raises:
      ValueError: an axis is not an integer, is out of range or stands twice.

    Example:
      >>> group_axes(4, (-1,))
      (0, 1, 2)
    """
    axes = checked_axes(channel_axes)
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"channel_axes {axes}: axis {axis} is out of range for an array"
                f" of {ndim} axes"
            )
    kept = {axis % ndim for axis in axes}
    if len(kept) < len(axes):
        raise ValueError(f"channel_axes {axes} name the same axis twice")
    return tuple(axis for axis in range(ndim) if axis not in kept)


def group_shape(shape: tuple[int, ...], channel_axes: ChannelAxes) -> tuple[int, ...]:
    """Returns ``shape`` with the axes of a group reduced to length 1.

    Example:
      >>> group_shape((3, 3, 16, 32), (-1,))
      (1, 1, 1, 32)
    """
    inside = group_axes(len(shape), channel_axes)
    return tuple(1 if axis in inside else n for axis, n in enumerate(shape))


def group_size(shape: tuple[int, ...], channel_axes: ChannelAxes) -> int:
    """Returns the number of weights in one group, ``d`` in the formulas.

    Example:
      >>> group_size((3, 3, 16, 32), (-1,))
      144
    """
    return math.prod(shape[axis] for axis in group_axes(len(shape), channel_axes))


def working_dtype(*arrays: jax.typing.ArrayLike) -> jnp.dtype:
    """Returns the type to compute in: that of the arrays, float32 at least.

    Example:
      >>> str(working_dtype(jnp.zeros(3, jnp.bfloat16)))
      'float32'
    """
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """Returns ``x`` in the type to compute in (float32 at least).

    Example:
      >>> str(widen(jnp.zeros(3, jnp.float16)).dtype)
      'float32'
    """
    return jnp.asarray(x, working_dtype(x))


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the type of the absolute values of ``dtype``.

    Example:
      >>> str(real_dtype(jnp.complex64))
      'float32'
    """
    return jnp.finfo(dtype).dtype


def exponent_of(dtype: jax.typing.DTypeLike) -> int:
    """Returns the largest exponent of a type: its numbers are below ``2**exponent``.

    Example:
      >>> exponent_of("float32"), exponent_of("bfloat16"), exponent_of("float16")
      (128, 128, 16)
    """
    return int(jnp.finfo(dtype).maxexp)


def dot(x: jax.Array, y: jax.Array, channel_axes: ChannelAxes) -> jax.Array:
    r"""Inner product of two arrays, group by group.

    .. math:: \langle x, y\rangle = \mathrm{Re} \sum_{i} \bar x_i y_i

    Args:
      x: array of any shape.
      y: array of the same shape.
      channel_axes: axes that tell one group from another.

    Returns:
      Real array, float32 at least, of the shape of ``x`` with the axes of a group
      reduced to length 1.

    Raises:
      ValueError: the shapes differ, or an axis is out of range.

    Example:
      >>> dot(jnp.ones((2, 3)), jnp.ones((2, 3)), (-1,))
      Array([[2., 2., 2.]], dtype=float32)
    """
    if jnp.shape(x) != jnp.shape(y):
        raise ValueError(f"shapes {jnp.shape(x)} and {jnp.shape(y)} must be equal")
    return _sum_of_products(widen(x), widen(y), group_axes(jnp.ndim(x), channel_axes))


def squared_norm(x: jax.Array, channel_axes: ChannelAxes) -> jax.Array:
    r"""Squared norm of each group, :math:`|x|^2`, finite for every ``x``.

    It counts up to :math:`2^{25e/32}`, with :math:`e` the largest exponent of the type
    (:math:`2^{100}` in float32), also where its sum overflows.

    Example:
      >>> squared_norm(jnp.array([[3.0, 1e30], [4.0, 0.0]]), (-1,))[0, 0]
      Array(25., dtype=float32)
    """
    x = widen(x)
    square = _sum_of_products(x, x, group_axes(jnp.ndim(x), channel_axes))
    # Not each square by itself, which would be an array of its own on a CPU.
    return jnp.minimum(square, largest_square(square.dtype))


def _sum_of_products(x: jax.Array, y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        product = jnp.real(x) * jnp.real(y) + jnp.imag(x) * jnp.imag(y)
    else:
        product = x * y
    return jnp.sum(product, axis=axes, keepdims=True)


def largest_square(dtype: jax.typing.DTypeLike) -> float:
    """Returns what a squared norm counts up to.

    Example:
      >>> largest_square("float32") == 2.0**100
      True
    """
    return 2.0 ** (exponent_of(dtype) * 25 // 32)


def norm(x: jax.Array, channel_axes: ChannelAxes) -> jax.Array:
    r"""Euclidean norm of each group, :math:`|x| = \sqrt{\langle x, x\rangle}`.

    Example:
      >>> norm(jnp.array([[3.0, 0.0], [4.0, 1.0]]), (-1,))
      Array([[5., 1.]], dtype=float32)
    """
    return jnp.sqrt(squared_norm(x, channel_axes))


def project(x: jax.Array, y: jax.Array, channel_axes: ChannelAxes) -> jax.Array:
    r"""Projects ``y`` onto the tangent space of the sphere at ``x``.

    .. math:: y - \frac{\langle x, y\rangle}{\langle x, x\rangle} x

    Args:
      x: the point, of any shape; a group of zeros leaves ``y`` as it is.
      y: the vector, of the same shape.
      channel_axes: axes that tell one group from another.

    Returns:
      Array of the shape and type of ``y``, orthogonal to ``x`` in each group.

    Example:
      >>> project(jnp.array([0.0, 2.0]), jnp.array([1.0, 5.0]), ())
      Array([1., 0.], dtype=float32)
    """
    share = divide(dot(x, y, channel_axes), dot(x, x, channel_axes))
    return (widen(y) - share * widen(x)).astype(jnp.result_type(y))


def center(x: jax.Array, channel_axes: ChannelAxes) -> jax.Array:
    r"""Subtracts from each group its mean.

    Args:
      x: array of any shape.
      channel_axes: axes that tell one group from another.

    Returns:
      Array of the shape and type of ``x``.

    Example:
      >>> center(jnp.array([[3.0, 0.0], [4.0, 1.0]]), (-1,))
      Array([[-0.5, -0.5],
             [ 0.5,  0.5]], dtype=float32)
    """
    axes = group_axes(jnp.ndim(x), channel_axes)
    total = jnp.sum(widen(x), axis=axes, keepdims=True)
    mean = total / max(group_size(jnp.shape(x), channel_axes), 1)
    return (widen(x) - mean).astype(jnp.result_type(x))


def transport(
    x: jax.Array,
    y: jax.Array,
    m: jax.Array,
    channel_axes: ChannelAxes,
    eps: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
    r"""Carries the vector ``m`` from the point ``x`` to the point ``y``.

    .. math:: \frac{\langle x, y\rangle m - \langle m, y\rangle x}{|y|^2 + \epsilon}

    The result is orthogonal to ``y``. A vector that is tangent at ``x`` lies again
    in the plane it spanned with ``x``, and where ``y`` has grown, it has shrunk:
    a gradient of a scale-invariant function is inversely proportional to the norm.

    Args:
      x: the point that is left.
      y: the point that is reached, of the same shape.
      m: the vector, of the same shape.
      channel_axes: axes that tell one group from another.
      eps: added to the denominator. Where the denominator is 0, so is the result.

    Returns:
      Array of the shape and type of ``m``.

    Example:
      >>> x, y = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
      >>> transport(x, y, jnp.array([0.0, 3.0]), ())
      Array([-1.5,  0. ], dtype=float32)
    """
    scale = dot(y, y, channel_axes) + eps
    along_m = divide(dot(x, y, channel_axes), scale)
    along_x = divide(dot(m, y, channel_axes), scale)
    return (along_m * widen(m) - along_x * widen(x)).astype(jnp.result_type(m))


def retract(
    x: jax.Array,
    y: jax.Array,
    channel_axes: ChannelAxes,
    radius: jax.typing.ArrayLike | None = None,
    eps: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
    r"""Takes the step ``y`` from ``x`` and returns to the sphere.

    .. math:: R \frac{x + y}{|x + y| + \epsilon}

    Args:
      x: the point that is left.
      y: the step, of the same shape.
      channel_axes: axes that tell one group from another.
      radius: ``R``, a number or an array that broadcasts against the groups;
        ``None`` keeps the norm that each group of ``x`` has.
      eps: added to the norm. A group that lands on 0 stays there.

    Returns:
      Array of the shape and type of ``x``.

    Example:
      >>> retract(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0]), (), radius=10.0)
      Array([6., 8.], dtype=float32)
    """
    if radius is None:
        radius = norm(x, channel_axes)
    moved = widen(x) + widen(y)
    unit = reciprocal(norm(moved, channel_axes) + eps) * moved
    return (jnp.asarray(radius) * unit).astype(jnp.result_type(x))


def divide(a: jax.typing.ArrayLike, b: jax.Array) -> jax.Array:
    """Returns ``a / b``, and 0 where ``b`` is 0.

    Example:
      >>> divide(1.0, jnp.array([2.0, 0.0]))
      Array([0.5, 0. ], dtype=float32)
    """
    zero = b == 0
    return jnp.where(zero, 0.0, a / jnp.where(zero, 1.0, b))


def reciprocal(x: jax.Array) -> jax.Array:
    r"""Returns ``1 / x`` for ``x >= 0``, finite at 0.

    What a norm divides is 0 where the norm is, so that any finite number will do
    there: :math:`2^{25e/32}` with the type's largest exponent :math:`e`, which the
    result is at most. Cheaper than :func:`divide` in an update; its derivative at 0 is
    not finite.

    Example:
      >>> float(0.0 * reciprocal(jnp.zeros(())))
      0.0
    """
    return jnp.reciprocal(floored(x))


def floored(x: jax.Array) -> jax.Array:
    r"""A number ``>= 0`` that can divide: at least :math:`2^{-25e/32}`.

    With the type's largest exponent :math:`e`.

    Example:
      >>> bool(floored(jnp.zeros(())) == 2.0**-100)
      True
    """
    return jnp.maximum(x, 1 / largest_square(x.dtype))
