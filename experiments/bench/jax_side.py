"""Steps of Optax transformations: update and apply, as training calls them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bench.clock import Contender
from experiments.bench.trees import Trees

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""From gradients, state and weights to weights and state."""


def make_step(optimizer: optax.GradientTransformation, donate: bool) -> Any:
    """The jitted step; with ``donate`` it may write over the old weights and state."""

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(1, 2) if donate else ())


def jax_step(
    optimizer: optax.GradientTransformation, trees: Trees, donate: bool
) -> Contender:
    """Makes what does steps of an optimizer, on weights of its own."""
    step = make_step(optimizer, donate)
    params, grads = jax.tree.map(jnp.array, (trees.params, trees.grads))
    place = [params, jax.jit(optimizer.init)(params)]

    def run(calls: int) -> None:
        for _ in range(calls):
            place[:] = step(grads, place[1], place[0])
        jax.block_until_ready(place)

    return run
