"""The toy problem of the third study: a loss that does not depend on a length."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spherical_optax as so

_LABELS = {"w": "layer"}
TOYS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": lambda rate: optax.sgd(rate),
    "sgd, momentum": lambda rate: optax.sgd(rate, 0.9),
    "sgdp": lambda rate: so.sgdp(rate, 0.9),
    "adam": lambda rate: optax.adam(rate),
    "adamp": lambda rate: so.adamp(rate),
    "sgdmrt": lambda rate: so.sgdmrt(rate, 0.9, labels=_LABELS),
    "adamsrt": lambda rate: so.adamsrt(rate, labels=_LABELS),
}
"""Name to optimizer, for a learning rate that is the same for all."""


def descend(
    optimizer: optax.GradientTransformation, start: np.ndarray, steps: int = 200
) -> dict[str, np.ndarray]:
    r"""A path on the toy problem, which does not depend on the length of the weights.

    .. math:: f(w) = 1 - \bar w_1 + 2 \bar w_3^2, \qquad \bar w = \frac{w}{|w|}

    where the last term, a valley along the equator, is there from three dimensions on.

    Args:
      optimizer: under test.
      start: weights to begin with, shape ``(d,)``, or ``(n, d)`` for several.
      steps: how many.

    Returns:
      ``path`` of shape ``(steps + 1, d)``; and over the steps ``norm``, and
      ``effective_step``, the angle of a step. For several starts each with a leading
      axis of ``n``.
    """

    def loss(params: Any) -> jax.Array:
        w = params["w"][:, 0]
        unit = w / jnp.linalg.norm(w)
        return 1 - unit[0] + 2 * jnp.sum(unit[2:3] ** 2)

    monitored = so.monitor_sphere(optimizer, labels=_LABELS)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = monitored.update(jax.grad(loss)(params), state, params)
        params: Any = optax.apply_updates(params, updates)
        seen = so.sphere_statistics(state)["w"]
        return (params, state), (params["w"][:, 0], seen.norm_after, seen.angle)

    def walk(start: jax.Array) -> Any:
        # A column, since AdamP and SGDP leave vectors alone.
        params = {"w": start[:, None]}
        carry = (params, monitored.init(params))
        return jax.lax.scan(step, carry, None, steps)[1]

    many = start.ndim == 2
    path, norm, angle = jax.jit(jax.vmap(walk) if many else walk)(
        jnp.asarray(start, jnp.float32)
    )
    shape = (*start.shape[:-1], steps)
    return {
        "path": np.concatenate([start[..., None, :], np.asarray(path)], -2),
        "norm": np.asarray(norm).reshape(shape),
        "effective_step": np.asarray(angle).reshape(shape),
    }
