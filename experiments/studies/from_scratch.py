"""Study 5: the lesson on optimizers from scratch, on the network it was taught with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spherical_optax as so
from experiments.config import parse
from experiments.data import Dataset, load_dataset
from experiments.find_lr import Options as FindOptions
from experiments.find_lr import growing_rates, make_loop, range_test
from experiments.loop import Loop
from experiments.models import label_spheres
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.stats import describe
from experiments.studies.drawing import drawing, line_style
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
from spherical_optax.labels import leaves_with_paths

_BATCH = 1024


class FirstSquareState(NamedTuple):
    """State of :func:`scale_by_rms_of_the_first`."""

    count: jax.Array  # shape=(), dtype=int32
    nu: optax.Updates  # shapes of the parameters


class GradientState(NamedTuple):
    """State of :func:`record_gradients`: of each leaf's gradient at the last step."""

    mean: optax.Updates  # one number a leaf
    std: optax.Updates  # one number a leaf


@dataclass(frozen=True)
class Row:
    """A row of the lesson's table.

    Attributes:
      title: of the optimizer.
      make: the optimizer.
      epochs: how long it is trained.
      train: published accuracy on the training images, as they were trained on.
      test: published accuracy on the test images.
    """

    title: str
    make: Callable[[], optax.GradientTransformation]
    epochs: int
    train: float
    test: float


def scale_by_rms_of_the_first(decay: float, eps: float) -> optax.GradientTransformation:
    """RMSprop whose average begins with the first squared gradient, not with zeros."""

    def init_fn(params: Any) -> FirstSquareState:
        return FirstSquareState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params))

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        share = jnp.where(state.count == 0, 0.0, decay)
        nu = jax.tree.map(
            lambda g, v: share * v + (1 - share) * g**2, updates, state.nu
        )
        steps = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), updates, nu)
        return steps, FirstSquareState(state.count + 1, nu)

    return optax.GradientTransformation(init_fn, update_fn)


def record_gradients() -> optax.GradientTransformation:
    """Changes nothing; its state has mean and deviation of each leaf's gradient."""

    def numbers(tree: Any, function: Callable[[jax.Array], jax.Array]) -> Any:
        return jax.tree.map(function, tree)

    def init_fn(params: Any) -> GradientState:
        zeros = numbers(params, lambda x: jnp.zeros([], x.dtype))
        return GradientState(zeros, numbers(params, lambda x: jnp.zeros([], x.dtype)))

    def update_fn(updates: Any, state: Any, params: Any = None) -> Any:
        del state, params
        return updates, GradientState(
            numbers(updates, jnp.mean), numbers(updates, jnp.std)
        )

    return optax.GradientTransformation(init_fn, update_fn)


ROWS = {
    "sgd": Row("SGD", lambda: optax.sgd(0.4), 1, 0.758, 0.826),
    "rmsprop": Row(
        "RMSprop from the first square",
        lambda: optax.chain(
            scale_by_rms_of_the_first(0.99, 1e-5), optax.scale_by_learning_rate(3e-3)
        ),
        1,
        0.766,
        0.829,
    ),
    "adam": Row("Adam", lambda: optax.adam(6e-3, 0.9, 0.99, 1e-5), 2, 0.877, 0.874),
    "adam_abs": Row(
        "Adam with the mean of absolute gradients",
        lambda: so.adam_abs(6e-3, 0.9, 0.9, 1e-8),
        2,
        0.876,
        0.876,
    ),
}
"""Rows of the lesson's table."""

_DECAY = 0.01
_DECAYS: dict[str, dict[str, Callable[[Any], optax.GradientTransformation]]] = {
    "sgd": {
        "none": lambda _: optax.sgd(0.4),
        "L2": lambda _: optax.chain(optax.add_decayed_weights(_DECAY), optax.sgd(0.4)),
        "decoupled": lambda _: optax.chain(
            optax.sgd(0.4), optax.add_decayed_weights(-0.4 * _DECAY)
        ),
    },
    "adam": {
        "none": lambda _: optax.adam(6e-3),
        "L2": lambda _: optax.chain(
            optax.add_decayed_weights(_DECAY), optax.adam(6e-3)
        ),
        "decoupled": lambda _: optax.adamw(6e-3, weight_decay=_DECAY),
    },
    "adamsrt": {
        "none": lambda labels: so.adamsrt(6e-3, labels=labels),
        "L2": lambda labels: so.adamsrt(6e-3, weight_decay=_DECAY, labels=labels),
        "decoupled": lambda labels: optax.chain(
            so.adamsrt(6e-3, labels=labels), optax.add_decayed_weights(-6e-3 * _DECAY)
        ),
    },
}


def run(place: Place) -> Outcome:
    """The lesson's table, gradient statistics, the finder, and weight decay."""
    dataset = load_dataset("digits" if place.small else "fashion_mnist")
    table = {
        name: [
            place.once(
                f"{name}-seed{seed}",
                _options(dataset, seed),
                lambda row=row, seed=seed: _train(row, dataset, seed),
            )
            for seed in range(place.seeds)
        ]
        for name, row in ROWS.items()
    }
    decays = {
        f"{name}, {kind}": place.once(
            f"decay-{name}-{kind}",
            _options(dataset),
            lambda make=make: _with_decay(make, dataset),
        )
        for name, kinds in _DECAYS.items()
        for kind, make in kinds.items()
    }
    finder = place.once("finder", _options(dataset), lambda: _find(dataset))
    _draw_gradients({name: runs[0] for name, runs in table.items()}, place)
    _draw_finder(finder, place)
    verdicts = [_judge(ROWS[name], runs) for name, runs in table.items()]
    verdicts += [_judge_decay(decays, name) for name in _DECAYS]
    accuracies = {
        name: {part: [r[part] for r in runs] for part in ("train", "test")}
        for name, runs in table.items()
    }
    data = {"accuracy": accuracies, "weight_decay": decays, "finder": finder}
    return Outcome(verdicts, _blocks(table, decays, finder), data)


def _options(dataset: Dataset, seed: int = 0) -> list[str]:
    small = dataset.name == "digits"
    return [
        f"--dataset={dataset.name}",
        "--model=convnet",
        f"--batch-size={256 if small else _BATCH}",
        f"--seed={seed}",
        "--no-augment",
    ]


def _train(row: Row, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Trains a row; accuracies, and the gradients of every layer at every step."""
    loop = Loop(
        parse(_options(dataset, seed)),
        dataset,
        lambda _: optax.chain(record_gradients(), row.make()),
    )
    accuracies, means, stds = [], [], []
    for _ in range(row.epochs * loop.steps_per_epoch):
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


def _with_decay(
    make: Callable[[Any], optax.GradientTransformation], dataset: Dataset
) -> dict[str, float]:
    """An epoch with a kind of weight decay: accuracy, and norms at the end."""
    loop = Loop(
        parse(_options(dataset)),
        dataset,
        lambda params: make(label_spheres(params)),
    )
    for _ in range(2 * loop.steps_per_epoch):
        loop.step()
    leaves = leaves_with_paths(loop.state.params)
    norms = [
        float(jnp.linalg.norm(x))
        for path, x in leaves
        if path.endswith("kernel") and "head" not in path
    ]
    return {"test": loop.test().accuracy, "norm": float(np.mean(norms))}


def _find(dataset: Dataset) -> dict[str, Any]:
    """The lesson's finder: the rate grows by 1.3, until the loss is 3 times its low."""
    rates = growing_rates(FindOptions(start=1e-5, end=100.0, factor=1.3, stop_at=3.0))
    config = parse([*_options(dataset), "--optimizer=sgd", "--momentum=0"])
    found = range_test(make_loop(config, dataset, rates), rates, 3.0)
    return {
        "rates": found.rates[: len(found.smoothed)],
        "smoothed": found.smoothed,
        "suggestion": found.suggestion,
        "lowest": found.lowest,
    }


def _judge(row: Row, runs: Sequence[Mapping[str, Any]]) -> Verdict:
    claim = (
        f"{row.title}: {100 * row.test:.1f} % on the test images after {row.epochs}"
        f" epoch{'s' * (row.epochs > 1)}"
    )
    if not runs:
        return Verdict(claim, NEVER, "no runs")
    sample = describe(100 * run["test"] for run in runs)
    apart = sample.mean - 100 * row.test
    evidence = (
        f"here {in_numbers(sample)}: {apart:+.2f} points; within 2 points is as said"
    )
    return Verdict(claim, YES if abs(apart) <= 2 else NO, evidence)


def _judge_decay(decays: Mapping[str, Mapping[str, float]], name: str) -> Verdict:
    l2, decoupled = (decays[f"{name}, {kind}"] for kind in ("L2", "decoupled"))
    apart = 100 * abs(l2["norm"] / decoupled["norm"] - 1)
    evidence = (
        f"mean norm of the kernels after two epochs at decay {_DECAY}: L2"
        f" {l2['norm']:.3f}, decoupled {decoupled['norm']:.3f}, none"
        f" {decays[f'{name}, none']['norm']:.3f}: {apart:.2f} % apart; n = 1"
    )
    if name == "sgd":  # rounding alone may part them
        claim = "SGD without momentum: L2 and decoupled weight decay are the same"
        return Verdict(claim, YES if apart < 0.1 else NO, evidence)
    claim = f"{name}: L2 and decoupled weight decay are not the same"
    return Verdict(claim, YES if apart > 2 else NO, f"{evidence}; 2 % count")


def _draw_gradients(runs: Mapping[str, Mapping[str, Any]], place: Place) -> None:
    """Mean and deviation of each layer's gradient at every step, one panel a method."""
    for part in ("mean", "std"):
        stem = place.figures / f"gradient-{part}"
        with drawing(stem, 2, 2, height=4.2, sharex=True) as axes:
            for axis, (name, found) in zip(axes, runs.items(), strict=True):
                values = np.array(found[part])
                for index, layer in enumerate(found["layers"]):
                    axis.plot(values[:, index], label=layer, **line_style(index))
                axis.set_title(ROWS[name].title, loc="left")
                if part == "std":
                    axis.set_yscale("log")
                axis.set_ylabel(f"{part} of the gradient")
            for axis in axes[2:]:
                axis.set_xlabel("step")
            axes[0].legend(fontsize=6, frameon=False, ncols=2)


def _draw_finder(finder: Mapping[str, Any], place: Place) -> None:
    with drawing(place.figures / "finder", height=2.6) as (axis,):
        axis.plot(finder["rates"], finder["smoothed"], **line_style(0))
        if finder["suggestion"]:
            axis.axvline(finder["suggestion"], **line_style(1))
            axis.annotate(
                f" falls fastest: {finder['suggestion']:.2g}",
                (finder["suggestion"], max(finder["smoothed"])),
                va="top",
            )
        axis.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")


def _blocks(
    table: Mapping[str, Sequence[Mapping[str, Any]]],
    decays: Mapping[str, Mapping[str, float]],
    finder: Mapping[str, Any],
) -> list[Block]:
    rows = []
    for name, runs in table.items():
        row = ROWS[name]
        here = [describe(100 * r[part] for r in runs) for part in ("train", "test")]
        rows.append(
            [
                row.title,
                str(row.epochs),
                f"{100 * row.train:.1f}",
                in_numbers(here[0], 1),
                f"{100 * row.test:.1f}",
                in_numbers(here[1], 1),
            ]
        )
    header = ["optimizer", "epochs", "train, lesson", "train, here"]
    header += ["test, lesson", "test, here"]
    suggestion = finder["suggestion"]
    told = "none" if suggestion is None else f"{suggestion:.2g}"
    return [
        Heading(2, "The lesson's table"),
        Table(header, rows, numeric=header[1:]),
        Heading(2, "Gradients, layer by layer"),
        Picture(
            f"{FIGURES}/gradient-mean",
            "Mean of each layer's gradient over the steps, one panel an optimizer",
            "Mean of the gradient of each convolution kernel at every step, first"
            " seed.",
        ),
        Picture(
            f"{FIGURES}/gradient-std",
            "Deviation of each layer's gradient over the steps, one panel an optimizer",
            "Standard deviation of the same gradients.",
        ),
        Heading(2, "The learning-rate finder"),
        Paragraph(f"For SGD without momentum it suggests {told}; the lesson uses 0.4."),
        Picture(
            f"{FIGURES}/finder",
            "Smoothed loss over the learning rate",
            "The learning rate grows by 1.3 at every batch, until the loss is 3 times"
            " its lowest.",
        ),
        Heading(2, "Weight decay and L2"),
        Paragraph(
            f"Two epochs at decay {_DECAY}, one seed. L2 is added to the gradient, and"
            " what divides the gradient divides it too; decoupled decay shrinks the"
            " weights by the learning rate times the decay, whatever the gradient is."
        ),
        Table(
            ["optimizer, decay", "test accuracy (%)", "mean norm of the kernels"],
            [
                [name, f"{100 * found['test']:.2f}", f"{found['norm']:.3f}"]
                for name, found in decays.items()
            ],
            numeric=["test accuracy (%)", "mean norm of the kernels"],
        ),
    ]


STUDY = Study(
    name="from_scratch",
    title="Optimizers from scratch",
    question="Do the optimizers of a lesson on Fashion-MNIST do what its notes say?",
    source="a lesson's notes",
    about=(
        "The lesson's network of five convolutions with batch norm on Fashion-MNIST,"
        " batches of 1024, constant learning rate, no augmentation, three seeds. Seeds"
        " and initial weights are not the lesson's."
    ),
    full_scale=("python -m experiments.studies from_scratch --seeds 10",),
    seeds=3,
    run=run,
)
