"""Study 4: do large batches end in sharper minima, and what is sharp?"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.checkpoints import Checkpoints
from experiments.config import Config, parse
from experiments.data import Dataset, load_dataset, normalize
from experiments.errors import UsageError
from experiments.flatness import (
    epsilon_sharpness,
    largest_eigenvalue,
    relative_sharpness,
)
from experiments.loop import Loop
from experiments.models import label_spheres
from experiments.optimizers import make_optimizer
from experiments.progress import say
from experiments.schedules import make_schedule
from experiments.studies import large_batch_page
from experiments.studies.dinh import objection
from experiments.studies.settings import Settings
from experiments.studies.study import Clock, Place, Study


def run(place: Place) -> dict[str, Any]:
    """Every optimizer with small and large batches; then Dinh's objection."""
    settings = place.settings
    dataset = load_dataset(settings["dataset"])
    records = []
    for seed in range(place.seeds):
        for optimizer, rates in settings["learning_rates"].items():
            for size, rate in zip(("small", "large"), rates, strict=True):
                options = _options(settings, optimizer, size, rate, seed)
                name = f"{optimizer}-{size}-seed{seed}"

                def make(
                    options: list[str] = options, name: str = name, size: str = size
                ) -> dict[str, Any]:
                    found = train_and_measure(
                        parse(options),
                        dataset,
                        settings,
                        place.clock,
                        place.runs / f"{name}-checkpoints",
                    )
                    return {**found, "large": size == "large"}

                measured = [f"{n}={settings[n]}" for n in _MEASURE]
                records.append(place.once(name, [*options, *measured], make))
                shutil.rmtree(place.runs / f"{name}-checkpoints", ignore_errors=True)
    dinh = place.once("dinh", [], lambda: {"rows": objection()})
    return {"runs": records, "dinh": dinh["rows"]}


_MEASURE = ("images", "box", "ball", "lanczos_steps")


def _options(
    settings: Settings, optimizer: str, size: str, rate: float, seed: int
) -> list[str]:
    return [
        f"--dataset={settings['dataset']}",
        f"--model={settings['model']}",
        f"--optimizer={optimizer}",
        f"--batch-size={settings[f'{size}_batch']}",
        f"--learning-rate={rate}",
        f"--epochs={settings[f'{size}_epochs']}",
        f"--seed={seed}",
        "--no-augment",
    ]


def train_and_measure(
    config: Config, dataset: Dataset, settings: Settings, clock: Clock, saved: Path
) -> dict[str, Any]:
    """Trains as configured, and measures accuracy, loss and flatness at the end.

    Flatness is that of the training loss with batch statistics, as it is trained, on
    the first images of the training set.

    Args:
      config: of the run.
      dataset: in memory.
      settings: how to measure flatness.
      clock: says when to stop.
      saved: folder where a run that was stopped is kept, to go on.

    Raises:
      StoppedRun: a signal came, or the time limit is up; where it was is saved.
    """
    loop = Loop(config, dataset, _builder(config, dataset))
    train(loop, config.epochs * loop.steps_per_epoch, clock, saved)
    return {
        "optimizer": config.optimizer,
        "batch_size": config.batch_size,
        "learning_rate": config.hyperparameters.learning_rate,
        "seed": config.seed,
        "epochs": config.epochs,
        "test_accuracy": 100 * loop.test().accuracy,
        **_measure(loop, dataset, settings, clock),
    }


def _measure(
    loop: Loop, dataset: Dataset, settings: Settings, clock: Clock
) -> dict[str, float]:
    """Training loss and flatness, on the first images of the training set."""
    loss_fn, params = _loss_on_training_images(loop, dataset, settings["images"])
    labels = label_spheres(params)
    measures: dict[str, Callable[[], float]] = {
        "train_loss": lambda: float(loss_fn(params)),
        "box": lambda: epsilon_sharpness(loss_fn, params, settings["box"]),
        "sphere": lambda: relative_sharpness(
            loss_fn, params, settings["ball"], labels=labels
        ),
        "eigenvalue": lambda: largest_eigenvalue(
            loss_fn, params, steps=settings["lanczos_steps"]
        ),
    }
    found = {}
    for name, measure in measures.items():
        clock.check()
        found[name] = measure()
    return found


def train(loop: Loop, steps: int, clock: Clock, saved: Path) -> None:
    """Goes on to a number of steps, from where the run was saved if it was.

    Raises:
      StoppedRun: a signal came, or the time limit is up; where it was is saved.
    """
    checkpoints = Checkpoints(saved)

    def refuse(facts: Mapping[str, Any]) -> None:
        if facts["steps"] != steps:
            raise UsageError(f"{saved}: is of a run of {facts['steps']} steps")

    found = checkpoints.restore(loop.state, refuse, lambda line: say(line, stderr=True))
    if found is not None:
        loop.go_on(jax.device_put(found[0]), found[1]["done"])
        say(f"goes on after {loop.done} of {steps} steps")
    clock.hold()
    try:
        while loop.done < steps:
            clock.check()
            loop.step()
    finally:
        # At the end, too: a signal may come while flatness is measured.
        facts = {"steps": steps, "done": loop.done}
        checkpoints.save(loop.done, loop.state, facts)
        checkpoints.wait()
        checkpoints.close()


def _builder(config: Config, dataset: Dataset) -> Any:
    steps = config.epochs * (len(dataset.train) // config.batch_size)
    schedule = make_schedule(config.schedule, steps, config.milestones, decay=0.1)

    def build(params: Any) -> optax.GradientTransformation:
        return make_optimizer(
            config.optimizer,
            config.hyperparameters.given(),
            schedule,
            label_spheres,
            params,
        )

    return build


def _loss_on_training_images(
    loop: Loop, dataset: Dataset, count: int
) -> tuple[Any, Any]:
    images = normalize(dataset, jnp.asarray(dataset.train.images[:count]))
    labels = jnp.asarray(dataset.train.labels[:count])
    graph, stats = loop.graph, loop.state.stats

    @jax.jit
    def loss_fn(params: Any) -> jax.Array:
        logits = nnx.merge(graph, params, stats, copy=True)(images, train=True)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return loss_fn, loop.state.params


STUDY = Study(
    name="large_batch",
    title="Large batches and flat minima",
    question=(
        "Do large batches end in sharper minima that generalize worse, and does that"
        " still hold where scale does not count?"
    ),
    source="Keskar et al. 2017; Dinh et al. 2017; You et al. 2019",
    about=large_batch_page.about,
    run=run,
    tell=large_batch_page.tell,
)
