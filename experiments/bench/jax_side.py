"""Steps of Optax transformations: update and apply, as training calls them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bench.clock import Contender
from experiments.bench.trees import Trees

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""From weights, state and gradients to weights and state."""


IN_PLACE, NEW = "in_place", "into_new_arrays"
"""Where results go: over old weights and state, as in training, or beside them."""


def make_step(optimizer: optax.GradientTransformation, place: str = IN_PLACE) -> Any:
    """The jitted step.

    Arguments come in the order of the results: JAX gives the buffer of the first array
    donated to the first result of its shape, and XLA copies what is then overwritten
    before it is read.
    """

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1) if place == IN_PLACE else ())


def jax_step(
    optimizer: optax.GradientTransformation, trees: Trees, place: str = IN_PLACE
) -> Contender:
    """Makes what does steps of an optimizer, on weights of its own."""
    step = make_step(optimizer, place)
    params, grads = jax.tree.map(jnp.array, (trees.params, trees.grads))
    held = [params, jax.jit(optimizer.init)(params)]

    def run(calls: int) -> None:
        for _ in range(calls):
            held[:] = step(*held, grads)
        jax.block_until_ready(held)

    return run
