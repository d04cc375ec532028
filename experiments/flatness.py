r"""How flat a minimum is, by three measures; two depend on the scale of weights.

All are functions of a loss and a tree of parameters.

* :func:`epsilon_sharpness`: the largest loss in a small box around the weights (Keskar
  et al. 2017, https://arxiv.org/abs/1609.04836).
* :func:`relative_sharpness`: the same with a ball around each group of weights that is
  as large as the group's norm allows: a point on a sphere looks around by an angle.
  Rescaling a group, which a normalized or a ReLU network does not notice, leaves it
  alone; the other two it changes at will (Dinh et al. 2017,
  https://arxiv.org/abs/1703.04933).
* :func:`largest_eigenvalue`: of the Hessian, by Lanczos' method.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import spherical_optax as so
from spherical_optax import geometry

Loss = Callable[[Any], jax.Array]


def epsilon_sharpness(
    loss_fn: Loss, params: Any, epsilon: float = 1e-3, *, steps: int = 20
) -> float:
    r"""Keskar's sharpness, in percent, over the full space.

    .. math::
      100\,\frac{\max_{y \in C} f(x + y) - f(x)}{1 + f(x)}, \qquad
      C = \{y : |y_i| \le \epsilon (|x_i| + 1)\}

    The maximum is searched for by projected ascent along the signs of the gradient, in
    steps that shrink from half the box; what is returned is a lower bound of it.

    Args:
      loss_fn: from parameters to a non-negative loss.
      params: where the minimum is.
      epsilon: size of the box.
      steps: of the ascent.

    Example:
      >>> import jax.numpy as jnp
      >>> # f = 50 x^2 at 0: the box is |x| <= 0.1, and the largest loss 0.5
      >>> round(epsilon_sharpness(lambda x: 50 * jnp.sum(x**2), jnp.zeros(1), 0.1), 3)
      50.0
    """

    def ascend(y: Any, grads: Any, rate: jax.Array) -> Any:
        def move(y: jax.Array, g: jax.Array, x: jax.Array) -> jax.Array:
            box = epsilon * (jnp.abs(x) + 1)
            # At a minimum of a symmetric loss the gradient is 0: go somewhere.
            sign = jnp.where(g == 0, 1.0, jnp.sign(g))
            return jnp.clip(y + rate * box * sign, -box, box)

        return jax.tree.map(move, y, grads, params)

    return _sharpness(
        loss_fn, params, ascend, steps, jax.tree.map(jnp.zeros_like, params)
    )


def relative_sharpness(
    loss_fn: Loss,
    params: Any,
    epsilon: float = 0.01,
    *,
    labels: Any = None,
    channel_axes: Mapping[str, Sequence[int] | None] | None = None,
    steps: int = 20,
) -> float:
    r"""Sharpness on spheres, in percent: the box is a ball around each group.

    .. math::
      100\,\frac{\max_{y \in C} f(x + y) - f(x)}{1 + f(x)}, \qquad
      C = \{y : |y_g| \le \epsilon |x_g| \text{ for every group } g\}

    A leaf that is on no sphere is one group: multiplying whole layers of a ReLU network
    by :math:`\alpha` and :math:`1 / \alpha` changes nothing either.

    Args:
      loss_fn: from parameters to a non-negative loss.
      params: where the minimum is.
      epsilon: radius of the balls, as a share of the groups' norms: about an angle.
      labels: label tree, or a function that makes one; None means
        ``so.label_conv_filters``.
      channel_axes: label to channel axes; None means ``so.CHANNEL_AXES``.
      steps: of the ascent.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss(x):  # does not depend on the length of x
      ...     return 1 - x[0] / jnp.sqrt(jnp.sum(x**2))
      >>> near, far = (relative_sharpness(loss, s * jnp.array([1.0, 0.0]), 0.1)
      ...              for s in (1.0, 100.0))
      >>> round(near, 3), round(far, 3)
      (0.501, 0.501)
    """
    axes_of = dict(so.CHANNEL_AXES if channel_axes is None else channel_axes)
    labels = so.label_conv_filters if labels is None else labels
    tree = labels(params) if callable(labels) else labels
    axes = jax.tree.map(lambda label: tuple(axes_of[label] or ()), tree)

    def ascend(y: Any, grads: Any, rate: jax.Array) -> Any:
        def move(
            y: jax.Array, g: jax.Array, x: jax.Array, axes: tuple[int, ...]
        ) -> jax.Array:
            reach = epsilon * geometry.norm(x, axes)
            moved = y + rate * reach * _unit(g, axes)
            length = geometry.norm(moved, axes)
            too_far = length > reach
            shrunk = reach / jnp.where(too_far, length, 1) * moved
            return jnp.where(too_far, shrunk, moved)

        return jax.tree.map(move, y, grads, params, axes)

    # A minimum has no gradient to go along, but that of rounding errors.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
    noise = structure.unflatten(
        [
            jax.random.normal(k, x.shape, x.dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]
    )
    start = jax.tree.map(
        lambda n, x, axes: 0.1 * epsilon * geometry.norm(x, axes) * _unit(n, axes),
        noise,
        params,
        axes,
    )
    return _sharpness(loss_fn, params, ascend, steps, start)


def largest_eigenvalue(
    loss_fn: Loss, params: Any, *, steps: int = 30, seed: int = 0
) -> float:
    r"""The largest eigenvalue of the Hessian, by Lanczos' method.

    From a random unit vector :math:`q_1`, Hessian-vector products
    :math:`H q = \frac{d}{dt} \nabla f(x + t q)` span a space in which the Hessian is a
    small tridiagonal matrix; its largest eigenvalue converges to that of the Hessian
    from below. Every new vector is made orthogonal to all before.

    Args:
      loss_fn: from parameters to a loss, twice differentiable.
      params: where the Hessian is taken.
      steps: dimension of the space.
      seed: of the first vector.

    Example:
      >>> import jax.numpy as jnp
      >>> curvatures = jnp.array([1.0, 3.0, 10.0])
      >>> round(largest_eigenvalue(lambda x: jnp.sum(curvatures * x**2) / 2,
      ...                          jnp.ones(3)), 3)
      10.0
    """
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda x: loss_fn(unravel(x)))

    @jax.jit
    def product(q: jax.Array) -> jax.Array:
        return jax.jvp(gradient, (flat,), (q,))[1]

    rng = np.random.default_rng(seed)
    q = rng.normal(size=flat.size)
    basis = [q / np.linalg.norm(q)]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, flat.size)):
        image = np.asarray(product(jnp.asarray(basis[-1], flat.dtype)), np.float64)
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # twice is enough
            for vector in basis:
                image = image - (image @ vector) * vector
        length = float(np.linalg.norm(image))
        if length <= 1e-6 * max(map(abs, diagonal)):
            break  # the space is closed
        beside.append(length)
        basis.append(image / length)
    beside = beside[: len(diagonal) - 1]
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return float(np.linalg.eigvalsh(matrix)[-1])


def _unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Groups of norm 1; one of zeros stays so."""
    length = geometry.norm(x, axes)
    return x / jnp.where(length == 0, 1, length)


def _sharpness(
    loss_fn: Loss,
    params: Any,
    ascend: Callable[[Any, Any, jax.Array], Any],
    steps: int,
    begin: Any,
) -> float:
    """The largest loss on an ascent, relative to that at the weights, in percent."""

    # Called from Python: within a loop of the compiled program convolutions are many
    # times slower on a CPU.
    @jax.jit
    def step(y: Any, rate: jax.Array) -> tuple[Any, jax.Array]:
        moved = jax.tree.map(jnp.add, params, y)
        loss, grads = jax.value_and_grad(loss_fn)(moved)
        return ascend(y, grads, rate), loss

    value = jax.jit(loss_fn)
    start, y = float(value(params)), begin
    highest = start
    for index in range(steps):
        y, loss = step(y, 1 / jnp.asarray(index + 1.0))
        highest = max(highest, float(loss))
    highest = max(highest, float(value(jax.tree.map(jnp.add, params, y))))
    return 100 * (highest - start) / (1 + start)
