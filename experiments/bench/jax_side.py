"""Steps of Optax transformations: update and apply, as training calls them."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bench.clock import Contender, InUnits
from experiments.bench.machine import on_cpu
from experiments.bench.trees import Trees
from experiments.compiling import compile_ahead

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""From weights, state and gradients to weights and state."""


IN_PLACE, NEW = "in_place", "into_new_arrays"
"""Where results go: over old weights and state, as in training, or beside them."""
_TOGETHER = 32


DONATED = {IN_PLACE: (0, 1), NEW: ()}
"""Arguments of a step whose arrays its results may have."""


def step_of(optimizer: optax.GradientTransformation) -> Step:
    """The step of an optimizer.

    Arguments come in the order of the results: JAX gives the buffer of the first array
    donated to the first result of its shape, and XLA copies what is then overwritten
    before it is read.
    """

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def make_step(optimizer: optax.GradientTransformation, place: str = IN_PLACE) -> Any:
    """The jitted step."""
    return jax.jit(step_of(optimizer), donate_argnums=DONATED[place])


def many_steps(step: Step, count: int) -> Step:
    """So many steps as one."""

    def steps(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        def body(_: Any, held: tuple[Any, Any]) -> tuple[Any, Any]:
            # Of gradients that stay the same XLA would take sums once for all steps.
            params, state, now = jax.lax.optimization_barrier((*held, grads))
            return step(params, state, now)

        return jax.lax.fori_loop(0, count, body, (params, state))

    return steps


def jax_steps(
    optimizers: Mapping[str, tuple[optax.GradientTransformation, str]], trees: Trees
) -> dict[str, Contender]:
    """Makes contenders of optimizers and places, compiling them side by side."""
    with ThreadPoolExecutor() as pool:
        coming = {
            name: pool.submit(copy_context().run, jax_step, optimizer, trees, place)
            for name, (optimizer, place) in optimizers.items()
        }
        return {name: contender.result() for name, contender in coming.items()}


def jax_step(
    optimizer: optax.GradientTransformation,
    trees: Trees,
    place: str = IN_PLACE,
    unit: int | None = None,
) -> Contender:
    """Makes what does steps of an optimizer, on weights of its own.

    Args:
      optimizer: the optimizer.
      trees: its weights and gradients.
      place: where the results of a step go.
      unit: steps in one program, if more than one then in place; None for one on a CPU,
        and many on accelerators: they do an update in less time than the host needs to
        hand over its hundreds of arrays.
    """
    unit = unit or (1 if on_cpu() else _TOGETHER)
    step = step_of(optimizer)
    if unit > 1:
        step, place = many_steps(step, unit), IN_PLACE
    params, grads = jax.tree.map(jnp.array, (trees.params, trees.grads))
    held = [params, compile_ahead(optimizer.init, params)(params)]
    go = compile_ahead(step, *held, grads, donate=DONATED[place])

    def run(calls: int) -> None:
        for _ in range(calls):
            held[:] = go(*held, grads)
        jax.block_until_ready(held)

    return run if unit == 1 else InUnits(run, unit)
