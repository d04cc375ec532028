"""Study 5: the lesson on optimizers from scratch, on the network it was taught with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import parse
from experiments.data import Dataset, load_dataset
from experiments.find_lr import Options as FindOptions
from experiments.find_lr import growing_rates, make_loop, range_test
from experiments.loop import Loop
from experiments.models import label_spheres
from experiments.studies import from_scratch_page
from experiments.studies.lesson import (
    KINDS,
    ROWS,
    GradientState,
    Row,
    record_gradients,
    with_decay,
)
from experiments.studies.settings import Settings
from experiments.studies.study import Clock, Place, Study
from spherical_optax.labels import leaves_with_paths


def run(place: Place) -> dict[str, Any]:
    """The lesson's table, gradient statistics, the finder, and weight decay."""
    settings = place.settings
    dataset = load_dataset(settings["dataset"])
    table = _table(place, dataset)
    finder = place.once(
        "finder", _options(settings, 0), lambda: _find(dataset, settings)
    )
    return {
        "accuracy": {
            name: {part: [r[part] for r in runs] for part in ("train", "test")}
            for name, runs in table.items()
        },
        "gradients": {
            name: {part: runs[0][part] for part in ("layers", "mean", "std")}
            for name, runs in table.items()
        },
        "weight_decay": _kinds_of_decay(place, dataset),
        "finder": finder,
    }


def _table(place: Place, dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    settings = place.settings
    return {
        name: [
            place.once(
                f"{name}-seed{seed}",
                _options(settings, seed),
                lambda row=row, seed=seed: _train(
                    row, dataset, settings, seed, place.clock
                ),
            )
            for seed in range(place.seeds)
        ]
        for name, row in ROWS.items()
    }


def _kinds_of_decay(place: Place, dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    settings = place.settings
    return {
        name: [
            place.once(
                f"decay-{name}-seed{seed}",
                [
                    *_options(settings, seed),
                    f"decay={settings['decay']:g}",
                    f"epochs={settings['decay_epochs']}",
                ],
                lambda name=name, seed=seed: _decays(
                    name, dataset, settings, seed, place.clock
                ),
            )
            for seed in range(settings["decay_seeds"])
        ]
        for name in settings["decay_optimizers"]
    }


def _options(settings: Settings, seed: int) -> list[str]:
    return [
        f"--dataset={settings['dataset']}",
        f"--model={settings['model']}",
        f"--batch-size={settings['batch_size']}",
        f"--seed={seed}",
        "--no-augment",
    ]


def _train(
    row: Row, dataset: Dataset, settings: Settings, seed: int, clock: Clock
) -> dict[str, Any]:
    """Trains a row; accuracies, and the gradients of every layer at every step."""
    loop = Loop(
        parse(_options(settings, seed)),
        dataset,
        lambda _: optax.chain(record_gradients(), row.make()),
    )
    accuracies, means, stds = [], [], []
    for _ in range(row.epochs * loop.steps_per_epoch):
        clock.check()
        accuracies.append(loop.step().accuracy)
        state: Any = loop.state.opt_state
        seen: GradientState = state[0]
        means.append([float(x) for x in jax.tree.leaves(seen.mean)])
        stds.append([float(x) for x in jax.tree.leaves(seen.std)])
    paths = [path for path, _ in leaves_with_paths(loop.state.params)]
    kernels = [i for i, path in enumerate(paths) if path.endswith("kernel")]
    return {
        "train": float(np.mean(accuracies[-loop.steps_per_epoch :])),
        "test": loop.test().accuracy,
        "layers": [paths[i].removesuffix("/kernel") for i in kernels],
        "mean": [[float(f"{row[i]:.3g}") for i in kernels] for row in means],
        "std": [[float(f"{row[i]:.3g}") for i in kernels] for row in stds],
    }


def _decays(
    name: str, dataset: Dataset, settings: Settings, seed: int, clock: Clock
) -> dict[str, Any]:
    """Each kind of weight decay from the same start.

    Returns:
      For each kind ``test`` accuracy and mean ``norm`` of the kernels at the end;
      ``first_step``, the distance between the weights of L2 and of decoupled decay
      after a step, relative to how far decay moved them.
    """
    found: dict[str, Any] = {}
    firsts = {}
    for kind in KINDS:
        loop = Loop(
            parse(_options(settings, seed)),
            dataset,
            lambda params, kind=kind: with_decay(
                name, kind, settings["decay"], label_spheres(params)
            ),
        )
        for _ in range(settings["decay_epochs"] * loop.steps_per_epoch):
            clock.check()
            loop.step()
            if loop.done == 1:
                firsts[kind] = np.concatenate(_kernels(loop))
        norms = [float(np.linalg.norm(kernel)) for kernel in _kernels(loop)]
        found[kind] = {"test": loop.test().accuracy, "norm": float(np.mean(norms))}
    moved = np.linalg.norm(firsts["decoupled"] - firsts["none"])
    apart = np.linalg.norm(firsts["L2"] - firsts["decoupled"])
    return {**found, "first_step": float(apart / moved)}


def _kernels(loop: Loop) -> list[np.ndarray]:
    """The kernels that are on spheres, each in one line."""
    return [
        np.asarray(jnp.ravel(leaf), np.float64)
        for path, leaf in leaves_with_paths(loop.state.params)
        if path.endswith("kernel") and "head" not in path
    ]


def _find(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """The lesson's finder: the rate grows by 1.3, until the loss is 3 times its low."""
    rates = growing_rates(FindOptions(start=1e-5, end=100.0, factor=1.3, stop_at=3.0))
    config = parse([*_options(settings, 0), "--optimizer=sgd", "--momentum=0"])
    found = range_test(make_loop(config, dataset, rates), rates, 3.0)
    return {
        "rates": found.rates[: len(found.smoothed)],
        "losses": found.losses[: len(found.smoothed)],
        "smoothed": found.smoothed,
        "suggestion": found.suggestion,
        "lowest": found.lowest,
    }


STUDY = Study(
    name="from_scratch",
    title="Optimizers from scratch",
    question="Do the optimizers of a lesson on Fashion-MNIST do what its notes say?",
    source="a lesson's notes",
    about=from_scratch_page.about,
    run=run,
    tell=from_scratch_page.tell,
)
