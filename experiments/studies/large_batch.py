"""Study 4: do large batches end in sharper minima, and what is sharp?"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.config import Config, parse
from experiments.data import Dataset, load_dataset, normalize
from experiments.flatness import (
    epsilon_sharpness,
    largest_eigenvalue,
    relative_sharpness,
)
from experiments.loop import Loop
from experiments.models import label_spheres
from experiments.optimizers import make_optimizer
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.stats import contrast, describe
from experiments.schedules import make_schedule
from experiments.studies.drawing import COLOURS, drawing
from experiments.studies.study import (
    FIGURES,
    NEVER,
    NO,
    YES,
    Outcome,
    Place,
    Study,
    Verdict,
    in_numbers,
)

_SMALL, _LARGE = 64, 4096
# By optimizer: the learning rate for each batch size, the larger one scaled by the root
# of the ratio for adaptive methods and as far as it trains for SGD.
_RATES = {
    "sgd": {_SMALL: 0.05, _LARGE: 0.4},
    "adam": {_SMALL: 1e-3, _LARGE: 8e-3},
    "lamb": {_SMALL: 5e-3, _LARGE: 4e-2},
}
_EPOCHS = {_SMALL: 10, _LARGE: 40}
_MEASURED = 2048  # training images on which flatness is measured
_QUANTITIES = {
    "test_accuracy": "test accuracy (%)",
    "train_loss": "training loss",
    "box": "sharpness, box (%)",
    "sphere": "sharpness, spheres (%)",
    "eigenvalue": "largest eigenvalue",
}


def run(place: Place) -> Outcome:
    """Every optimizer with small and large batches; then Dinh's objection."""
    dataset = load_dataset("digits" if place.small else "fashion_mnist")
    large = 1024 if place.small else _LARGE
    records = []
    for seed in range(place.seeds):
        for optimizer in _RATES:
            for size in (_SMALL, _LARGE):
                batch = size if size == _SMALL else large
                epochs = 2 if place.small else _EPOCHS[size]
                rate = _RATES[optimizer][size]
                options = _options(dataset, optimizer, batch, rate, epochs, seed)
                records.append(
                    place.once(
                        f"{optimizer}-{size}-seed{seed}",
                        options,
                        lambda options=options: train_and_measure(
                            parse(options), dataset
                        ),
                    )
                )
    dinh = objection()
    found = {
        (optimizer, size): [
            r for r in records if (r["optimizer"], r["large"]) == (optimizer, size)
        ]
        for optimizer in _RATES
        for size in (False, True)
    }
    _draw(found, place)
    verdicts = [*_verdicts(found), _judge_objection(dinh)]
    return Outcome(verdicts, _blocks(found, dinh), {"runs": records, "dinh": dinh})


def _options(
    dataset: Dataset, optimizer: str, batch: int, rate: float, epochs: int, seed: int
) -> list[str]:
    return [
        *(f"--dataset={dataset.name}", "--model=convnet", f"--optimizer={optimizer}"),
        *(f"--batch-size={batch}", f"--learning-rate={rate}", f"--epochs={epochs}"),
        *(f"--seed={seed}", "--no-augment"),
    ]


def train_and_measure(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Trains as configured, and measures accuracy, loss and flatness at the end.

    Flatness is that of the training loss with batch statistics, as it is trained, on
    the first images of the training set.
    """
    loop = Loop(config, dataset, _builder(config, dataset))
    for _ in range(config.epochs * loop.steps_per_epoch):
        loop.step()
    test = loop.test()
    loss_fn, params = _loss_on_training_images(loop, dataset)
    labels = label_spheres(params)
    return {
        "optimizer": config.optimizer,
        "batch_size": config.batch_size,
        "large": config.batch_size > _SMALL,
        "learning_rate": config.hyperparameters.learning_rate,
        "seed": config.seed,
        "epochs": config.epochs,
        "test_accuracy": 100 * test.accuracy,
        "train_loss": float(loss_fn(params)),
        "box": epsilon_sharpness(loss_fn, params, 5e-4),
        "sphere": relative_sharpness(loss_fn, params, 0.02, labels=labels),
        "eigenvalue": largest_eigenvalue(loss_fn, params, steps=20),
    }


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


def _loss_on_training_images(loop: Loop, dataset: Dataset) -> tuple[Any, Any]:
    images = normalize(dataset, jnp.asarray(dataset.train.images[:_MEASURED]))
    labels = jnp.asarray(dataset.train.labels[:_MEASURED])
    graph, stats = loop.graph, loop.state.stats

    @jax.jit
    def loss_fn(params: Any) -> jax.Array:
        logits = nnx.merge(graph, params, stats, copy=True)(images, train=True)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return loss_fn, loop.state.params


def objection(alphas: Sequence[float] = (1.0, 10.0, 100.0)) -> list[dict[str, float]]:
    """Dinh et al.'s experiment: one ReLU network, rescaled, is the same function.

    A network of two layers is trained on a problem of regression; then its first layer
    is multiplied by alpha and its second divided by it.
    """
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(256, 10)), jnp.float32)
    targets = jnp.asarray(np.sin(inputs @ rng.normal(size=(10, 2))), jnp.float32)
    params = {
        "first": jnp.asarray(rng.normal(size=(10, 32)) / np.sqrt(10), jnp.float32),
        "bias": jnp.zeros(32),
        "second": jnp.asarray(rng.normal(size=(32, 2)) / np.sqrt(32), jnp.float32),
    }

    def outputs(params: Mapping[str, jax.Array]) -> jax.Array:
        hidden = jax.nn.relu(inputs @ params["first"] + params["bias"])
        return hidden @ params["second"]

    def loss_fn(params: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.mean((outputs(params) - targets) ** 2)

    optimizer = optax.adam(1e-2)

    def step(_: int, carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, 1000, step, (params, optimizer.init(params)))
    labels = dict.fromkeys(params, "layer")
    reference, rows = outputs(params), []
    for alpha in alphas:
        factors = {"first": alpha, "bias": alpha, "second": 1 / alpha}
        other = {name: factors[name] * x for name, x in params.items()}
        difference = jnp.max(jnp.abs(outputs(other) - reference))
        rows.append(
            {
                "alpha": alpha,
                "output_difference": float(difference),
                "box": epsilon_sharpness(loss_fn, other, 1e-3),
                "sphere": relative_sharpness(loss_fn, other, 0.02, labels=labels),
                "eigenvalue": largest_eigenvalue(loss_fn, other),
            }
        )
    return rows


def _judge_objection(rows: Sequence[Mapping[str, float]]) -> Verdict:
    box, sphere = ([row[name] for row in rows] for name in ("box", "sphere"))
    same = max(sphere) < 1.01 * min(sphere)
    other = max(box) > 2 * min(box)
    alphas = ", ".join(f"{row['alpha']:g}" for row in rows)
    evidence = (
        f"alpha {alphas}: box"
        f" {', '.join(f'{x:.3g}' for x in box)} %, spheres"
        f" {', '.join(f'{x:.3g}' for x in sphere)} %; outputs differ by at most"
        f" {max(row['output_difference'] for row in rows):.1g}; n = 1"
    )
    return Verdict(
        "Rescaling a ReLU network changes Keskar's sharpness and not that on spheres",
        YES if same and other else NO,
        evidence,
    )


def _verdicts(found: Mapping[tuple[str, bool], Sequence[Any]]) -> list[Verdict]:
    verdicts = []
    for optimizer in _RATES:
        small, large = found[optimizer, False], found[optimizer, True]
        for quantity, words, sign in (
            ("test_accuracy", "a worse test accuracy", -1.0),
            ("box", "a sharper minimum (Keskar's box)", 1.0),
            ("sphere", "a sharper minimum (on spheres)", 1.0),
        ):
            claim = f"{optimizer}: batches of {_LARGE} end in {words}"
            verdicts.append(_judge(claim, small, large, quantity, sign))
    return verdicts


def _judge(
    claim: str, small: Sequence[Any], large: Sequence[Any], quantity: str, sign: float
) -> Verdict:
    if not small or not large:
        return Verdict(claim, NEVER, "no runs")
    samples = [describe(r[quantity] for r in group) for group in (large, small)]
    digits = 2 if quantity == "test_accuracy" else 3
    large_said, small_said = (in_numbers(sample, digits) for sample in samples)
    evidence = f"large {large_said}; small {small_said}"
    found = contrast([(sign, samples[0]), (-sign, samples[1])])
    if found is None:
        return Verdict(claim, NO, f"undecided: {evidence}")
    low, high = sorted((sign * found.low, sign * found.high))
    evidence += f"; 95 % interval of the difference {low:+.3g} to {high:+.3g}"
    return Verdict(claim, YES if found.low > 0 else NO, evidence)


def _draw(found: Mapping[tuple[str, bool], Sequence[Any]], place: Place) -> None:
    with drawing(place.figures / "large-batch", 1, 3, height=2.6) as axes:
        for axis, name in zip(axes, ("test_accuracy", "box", "sphere"), strict=True):
            for index, optimizer in enumerate(_RATES):
                for large, mark in ((False, "o"), (True, "s")):
                    values = [r[name] for r in found[optimizer, large]]
                    x = np.full(len(values), index + (0.15 if large else -0.15))
                    colour = COLOURS[1 if large else 0]
                    label = (
                        f"batch {_LARGE if large else _SMALL}" if not index else None
                    )
                    axis.plot(x, values, mark, color=colour, mfc="none", label=label)
            axis.set_xticks(range(len(_RATES)), list(_RATES))
            axis.set_title(_QUANTITIES[name], loc="left")
            if name != "test_accuracy":
                axis.set_yscale("log")
            axis.set_xlim(-0.5, len(_RATES) - 0.5)
        axes[0].legend(fontsize=7, frameon=False)


def _blocks(
    found: Mapping[tuple[str, bool], Sequence[Any]], dinh: Sequence[Mapping[str, float]]
) -> list[Block]:
    rows = []
    for (optimizer, _), group in found.items():
        cells = [
            in_numbers(describe(r[name] for r in group), 2 if "acc" in name else 3)
            for name in _QUANTITIES
        ]
        rate = group[0]["learning_rate"] if group else float("nan")
        size = str(group[0]["batch_size"]) if group else "-"
        rows.append([optimizer, size, f"{rate:g}", *cells])
    header = ["optimizer", "batch", "learning rate", *_QUANTITIES.values()]
    names = ["alpha", "output_difference", "box", "sphere", "eigenvalue"]
    return [
        Heading(2, "Small and large batches"),
        Table(header, rows, numeric=header[1:]),
        Picture(
            f"{FIGURES}/large-batch",
            "Test accuracy and two measures of sharpness, small and large batches",
            "Every seed; circles are small batches, squares large ones.",
        ),
        Paragraph(
            "Box: Keskar's sharpness with epsilon 5e-4. Spheres: the perturbation of a"
            " group is at most 0.02 of its norm. Both on the first 2,048 training"
            " images, with batch statistics, as is the largest eigenvalue of the"
            " Hessian (20 steps of Lanczos)."
        ),
        Heading(2, "Dinh's objection"),
        Paragraph(
            "One trained ReLU network of two layers, its first layer multiplied by"
            " alpha and its second divided by it: the same function of its inputs."
        ),
        Table(
            ["alpha", "outputs differ by", "box (%)", "spheres (%)", "eigenvalue"],
            [[f"{row[name]:.4g}" for name in names] for row in dinh],
            numeric=[
                "alpha",
                "outputs differ by",
                "box (%)",
                "spheres (%)",
                "eigenvalue",
            ],
        ),
    ]


STUDY = Study(
    name="large_batch",
    title="Large batches and flat minima",
    question=(
        "Do large batches end in sharper minima that generalize worse, and does that"
        " still hold where scale does not count?"
    ),
    source="Keskar et al. 2017; Dinh et al. 2017; You et al. 2019",
    about=(
        "The five-convolution network with batch norm on Fashion-MNIST, 10 epochs with"
        " batches of 64 and 40 epochs with batches of 4096, cosine schedule, no"
        " augmentation, three seeds. With four times as many images the large batches"
        " still make 16 times fewer steps: the column of the training loss says how far"
        " they get."
    ),
    full_scale=tuple(
        "python -m experiments.reproduce --dataset cifar10 --model resnet18"
        f" --optimizers sgd,adam,lamb --batch-size {size} --seeds 0..2 --epochs 200"
        " --protocol none"
        for size in (_SMALL, _LARGE)
    ),
    seeds=3,
    run=run,
)
