"""Measures whether several seeds in one program beat one after another.

    python -m experiments.measure_seeds --model resnet20 --seeds 4

Both ways take the same training steps, on random images; what is printed is seconds a
step and seed, without compilation. ``experiments.reproduce`` runs seeds one after
another: on a CPU that is faster by far, since several seeds in one program turn every
convolution into a grouped one.

Exit codes: 0 done; 1 something broke; 2 an option cannot be used; 130 Ctrl-C.
"""

import experiments.starting  # noqa: F401 - before what takes seconds to import

# isort: split
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.commands import run_command
from experiments.compiling import compile_ahead
from experiments.errors import EXIT_FINISHED, UsageError, check_name
from experiments.models import MODELS, label_spheres
from experiments.optimizers import flag, make_optimizer, resolve_options
from experiments.steps import (
    Step,
    Tally,
    init_state,
    make_train_step,
    repeat_step,
)
from experiments.trainer import many_steps_a_call


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.measure_seeds``."""

    model: str = "resnet20"
    """Model."""
    optimizer: str = "adamsrt"
    """Optimizer, with its defaults."""
    batch_size: int = 128
    """Images a step and seed."""
    image_size: int = 32
    """Height and width of the images, which have three channels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in."""
    seeds: int = 4
    """How many."""
    steps: int = 50
    """Of each seed, in one measurement."""
    repeats: int = 3
    """Measurements, of which the median counts."""


class Statistics(NamedTuple):
    """How images are normalized."""

    mean: tuple[float, ...] = (127.5,) * 3
    std: tuple[float, ...] = (64.0,) * 3


class Program(NamedTuple):
    """A compiled way to train.

    Attributes:
      run: from a state to the state after all steps.
      states: before the first step; a call for each.
    """

    run: Callable[[Any], Any]
    states: Sequence[Any]


def one_after_another(options: Options) -> Program:
    """A program of one seed, called for each."""
    step, states, batch = _prepare(options)
    return Program(_compile(step, states[0], Tally.zero(), batch, options), states)


def together(options: Options) -> Program:
    """One program of all seeds."""
    step, states, batch = _prepare(options)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    tally = jax.tree.map(lambda leaf: jnp.stack([leaf] * options.seeds), Tally.zero())
    step = jax.vmap(step, in_axes=(0, 0, None))
    return Program(_compile(step, stacked, tally, batch, options), [stacked])


def measure(program: Program, options: Options) -> float:
    """Median seconds a step and seed."""

    def once() -> float:
        began = time.perf_counter()
        for state in program.states:
            jax.block_until_ready(program.run(state))
        return time.perf_counter() - began

    once()  # the first call of a program allocates its memory
    seconds = statistics.median(once() for _ in range(options.repeats))
    return seconds / (options.seeds * options.steps)


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.measure_seeds",
        description=__doc__,
        args=args,
    )
    return run_command(lambda: measure_seeds(options))


def measure_seeds(options: Options) -> int:
    """Measures both ways and prints what came of it; returns the exit code.

    Raises:
      UsageError: an option cannot be used.
    """
    check_name("--model", options.model, MODELS)
    resolve_options(options.optimizer, {})
    for name in ("batch_size", "image_size", "seeds", "steps", "repeats"):
        if getattr(options, name) < 1:
            raise UsageError(f"{flag(name)} must be at least 1")
    record = {
        **dataclasses.asdict(options),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "one_after_another": measure(one_after_another(options), options),
        "together": measure(together(options), options),
    }
    print(json.dumps(record, indent=1))
    return EXIT_FINISHED


def _prepare(options: Options) -> tuple[Step, list[Any], tuple[jax.Array, jax.Array]]:
    """The step of one seed, the states of all, and a batch."""
    model = partial(
        MODELS[options.model],
        channels=3,
        num_classes=10,
        dtype=jnp.dtype(options.dtype),
    )
    build = partial(
        make_optimizer,
        options.optimizer,
        resolve_options(options.optimizer, {}),
        optax.constant_schedule(1.0),
        label_spheres,
    )
    keys = [jax.random.key(seed) for seed in range(options.seeds)]
    made = [init_state(model, build, key) for key in keys]
    graph, optimizer, _ = made[0]
    random = np.random.default_rng(0)
    shape = (options.batch_size, options.image_size, options.image_size, 3)
    images = random.integers(0, 256, shape, np.uint8)
    labels = random.integers(0, 10, options.batch_size, np.int32)
    step = make_train_step(graph, optimizer, Statistics(), lambda batch, _: batch)
    return step, [state for *_, state in made], jax.device_put((images, labels))


def _compile(
    step: Step, state: Any, tally: Any, batch: Any, options: Options
) -> Callable[[Any], Any]:
    """Compiles the steps in the way the training command does on this device."""
    if many_steps_a_call():
        count = np.int32(options.steps)
        program = compile_ahead(repeat_step(step), state, tally, batch, count)
        return lambda state: program(state, tally, batch, count)[0]
    program = compile_ahead(step, state, tally, batch)

    def run(state: Any) -> Any:
        counted = tally
        for _ in range(options.steps):
            state, counted = program(state, counted, batch)
        return state

    return run


if __name__ == "__main__":
    sys.exit(main())
