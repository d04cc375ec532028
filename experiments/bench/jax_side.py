"""Steps of Optax transformations: update and apply, as training calls them."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, NamedTuple

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
DONATED = {IN_PLACE: (0, 1), NEW: ()}
"""Arguments of a step whose arrays its results may have."""
_TOGETHER = 32  # steps in a program on accelerators


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
            name: pool.submit(copy_context().run, _compile, optimizer, trees, place)
            for name, (optimizer, place) in optimizers.items()
        }
    # Arrays that threads allocate would lie elsewhere.
    return {name: _contender(it.result(), trees) for name, it in coming.items()}


def jax_step(optimizer: optax.GradientTransformation, trees: Trees) -> Contender:
    """Makes what does steps of an optimizer in place, on weights of its own."""
    return _contender(_compile(optimizer, trees, IN_PLACE), trees)


class _Programs(NamedTuple):
    """The compiled programs of an optimizer, and how many steps one call does."""

    init: Callable[..., Any]
    steps: Callable[..., Any]
    unit: int


def _compile(
    optimizer: optax.GradientTransformation, trees: Trees, place: str
) -> _Programs:
    """One step on a CPU; many in place on accelerators.

    They do an update in less time than the host needs to hand over its hundreds of
    arrays.
    """
    unit = 1 if on_cpu() else _TOGETHER
    step = step_of(optimizer)
    if unit > 1:
        step, place = many_steps(step, unit), IN_PLACE
    state = jax.eval_shape(optimizer.init, trees.params)
    steps = compile_ahead(step, trees.params, state, trees.grads, donate=DONATED[place])
    return _Programs(compile_ahead(optimizer.init, trees.params), steps, unit)


def _contender(programs: _Programs, trees: Trees) -> Contender:
    params, grads = jax.tree.map(jnp.array, (trees.params, trees.grads))
    held = [params, programs.init(params)]

    def run(calls: int) -> None:
        for _ in range(calls):
            held[:] = programs.steps(*held, grads)
        jax.block_until_ready(held)

    return run if programs.unit == 1 else InUnits(run, programs.unit)
