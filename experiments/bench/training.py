"""``train``: images a second in training, JAX beside PyTorch, in one run."""

import gc
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.clock import Budget, Contender, alternate, ratio, summary
from experiments.bench.jax_side import jax_step
from experiments.bench.rows import ROWS
from experiments.bench.torch_side import UnavailableError
from experiments.bench.trees import model_shapes, random_trees
from experiments.compiling import compile_ahead
from experiments.models import MODELS, label_spheres
from experiments.steps import (
    Tally,
    init_state,
    make_train_step,
    repeat_step,
)
from experiments.trainer import many_steps_a_call, monitored

JAX, TORCH, MONITORED = "jax", "torch", "monitored"
UPDATES = ("adam", "adamsrt")
"""Optimizers whose share of a step is measured; the models train with the first."""


class Batch(NamedTuple):
    """Random images and labels, and statistics to normalize the images by."""

    images: np.ndarray  # shape=(batch, 32, 32, 3), dtype=uint8
    labels: np.ndarray  # shape=(batch,), dtype=int32
    mean: tuple[float, ...] = (125.0, 123.0, 114.0)
    std: tuple[float, ...] = (63.0, 62.0, 67.0)


def random_batch(size: int, pixels: int = 32) -> Batch:
    """A batch of random colour images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8)
    return Batch(images, rng.integers(0, 10, size, np.int32))


def measure_train(
    model: str, batch: Batch, dtype: str, budget: Budget
) -> dict[str, Any]:
    """Measures whole training steps of a model, and updates of its weights alone.

    Weights are float32 and Adam trains them; ``dtype`` is what the model computes in.
    The share of an optimizer is its update alone over the whole step. A run that is
    monitored records at every step what it does to spheres.
    """
    trees = random_trees(model_shapes(model))
    contenders: dict[str, Contender] = {
        JAX: jax_training(model, batch, dtype),
        MONITORED: jax_training(model, batch, dtype, monitor=True),
    }
    missing = None
    try:
        from experiments.bench.torch_training import torch_training

        contenders[TORCH] = torch_training(model, batch, dtype)
    except UnavailableError as error:
        missing = str(error)
    for name in UPDATES:
        contenders[name] = jax_step(ROWS[name].make(trees.labels), trees)
    times = alternate(contenders, budget)
    del contenders
    gc.collect()
    images = {
        name: summary([len(batch.labels) / t for t in times[name]])
        for name in (JAX, TORCH)
        if name in times
    }
    return {
        "images_per_second": images,
        "missing": missing,
        "ratio": {
            TORCH: ratio(times[TORCH], times[JAX]) if TORCH in times else None,
            MONITORED: ratio(times[MONITORED], times[JAX]),
        },
        "share": {name: ratio(times[name], times[JAX]) for name in UPDATES},
        "seconds": {name: summary(values) for name, values in times.items()},
    }


def jax_training(
    model: str, batch: Batch, dtype: str, *, monitor: bool = False
) -> Contender:
    """Makes what does training steps, as ``python -m experiments.train`` does them."""

    def build(shapes: Any) -> optax.GradientTransformation:
        return ROWS[UPDATES[0]].make(label_spheres(shapes))

    graph, optimizer, state = init_state(
        partial(MODELS[model], channels=3, num_classes=10, dtype=jnp.dtype(dtype)),
        monitored(build) if monitor else build,
        jax.random.key(0),
    )
    source = jax.device_put((batch.images, batch.labels))
    step = make_train_step(graph, optimizer, batch, lambda source, _: source)
    many = many_steps_a_call()
    arguments = [state, Tally.zero(), source]
    if many:
        step, arguments = repeat_step(step), [*arguments, np.int32(0)]
    compiled = compile_ahead(step, *arguments, donate=0)
    place = [state, Tally.zero()]

    def run(calls: int) -> None:
        if many:
            place[:] = compiled(*place, source, np.int32(calls))
        else:
            for _ in range(calls):
                place[:] = compiled(*place, source)
        jax.block_until_ready(place)

    return run
