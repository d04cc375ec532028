"""Study 3: how fast weights on spheres grow, and what that does to their step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.data import load_dataset
from experiments.models import MODELS, label_spheres
from experiments.report.columns import Column
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.stats import describe
from experiments.results import Run
from experiments.spheres import SPHERES
from experiments.steps import init_state
from experiments.studies.grids import run_grid
from experiments.studies.growth_figures import draw_all
from experiments.studies.settings import Settings
from experiments.studies.study import FIGURES, Outcome, Place, Study
from experiments.studies.toy import TOYS, descend
from experiments.studies.verdicts import Claim, Verdict, count, in_numbers, judge
from spherical_optax import CHANNEL_AXES, geometry
from spherical_optax.labels import leaves_with_paths

_DRAWN = {2: (np.cos(2.5), np.sin(2.5)), 3: (-0.6, 0.48, 0.64)}
"""Where the paths that are drawn begin, by dimension."""
_MOMENTUM = "sgd, momentum"


def run(place: Place) -> dict[str, Any]:
    """The toy problems, and the same optimizers on a network."""
    settings = place.settings
    toys = {str(d): _toy(d, settings) for d in _DRAWN}
    column = run_grid(place, settings["optimizers"])
    return {"toys": toys, "network": _network(column)}


def _toy(dimension: int, settings: Settings) -> dict[str, Any]:
    """What became of every start, and the whole path of the first."""
    rng = np.random.default_rng(dimension)
    others = rng.normal(size=(settings["toy_starts"] - 1, dimension))
    starts = np.stack(
        [
            np.array(_DRAWN[dimension]),
            *(one / np.linalg.norm(one) for one in others),
        ]
    )
    found = {}
    for name, make in TOYS.items():
        optimizer = make(settings["toy_learning_rate"])
        walked = descend(optimizer, starts, settings["toy_steps"])
        found[name] = {
            "norms": _rounded(walked["norm"][:, -1]),
            "left": _rounded(_degrees_left(walked["path"][:, -1])),
            "path": [_rounded(point) for point in walked["path"][0]],
            "norm": _rounded(walked["norm"][0]),
            "angle": _rounded(walked["effective_step"][0]),
        }
    return found


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _degrees_left(w: np.ndarray) -> np.ndarray:
    cosine = np.clip(w[:, 0] / np.linalg.norm(w, axis=1), -1, 1)
    return np.degrees(np.arccos(cosine))


def _network(column: Column) -> dict[str, dict[str, Any]]:
    """By optimizer and seed: means over the layers, epoch by epoch."""
    starts: dict[int, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for setting, label in zip(column.settings, column.labels, strict=True):
        for one in setting.finished:
            if one.seed not in starts:
                starts[one.seed] = initial_norms(one)
            found.setdefault(plain(label), {})[str(one.seed)] = _epochs(
                one, starts[one.seed]
            )
    return found


def _epochs(one: Run, start: Mapping[str, float]) -> dict[str, list[float]]:
    lines = [line[SPHERES] for line in one.lines]
    growth = [np.mean([at[p]["norm"] / start[p] for p in start]) for at in lines]
    angle = [np.mean([at[p]["angle"] for p in start]) for at in lines]
    return {
        "growth": [round(float(x), 8) for x in growth],
        "angle": _rounded(np.array(angle)),
    }


def initial_norms(one: Run) -> dict[str, float]:
    """For each leaf on spheres, the mean norm of its groups before the first step."""
    dataset = load_dataset(one.config["dataset"])

    def model(rngs: Any) -> Any:
        return MODELS[one.config["model"]](
            channels=len(dataset.mean), num_classes=dataset.num_classes, rngs=rngs
        )

    key, _ = jax.random.split(jax.random.key(one.seed))
    _, _, state = init_state(model, lambda _: optax.identity(), key)
    labels = dict(leaves_with_paths(label_spheres(state.params)))
    found = {}
    for path, leaf in leaves_with_paths(state.params):
        axes = CHANNEL_AXES[labels[path]]
        if axes is not None:
            found[path] = float(np.mean(geometry.norm(leaf, axes)))
    return found


def plain(label: str) -> str:
    """The name of a row in the figures: that of the toy problem."""
    name, *options = label.split()
    if name == "sgd" and "momentum=0.9" in options:
        return _MOMENTUM
    return name


def tell(settings: Settings, data: Mapping[str, Any], folder: Path | None) -> Outcome:
    """Judges the claims, on the toy problem and in the network."""
    toys, network = data["toys"], data["network"]
    if folder is not None:
        draw_all(toys, network, folder)
    verdicts = judge([*_toy_claims(toys["3"], settings), *_network_claims(network)])
    return Outcome(
        verdicts, _follows(verdicts, network), _blocks(settings, toys, network)
    )


def _toy_claims(toy: Mapping[str, Any], settings: Settings) -> list[Claim]:
    norms = {name: found["norms"] for name, found in toy.items()}
    middle = [(a + b) / 2 for a, b in zip(norms["sgd"], norms[_MOMENTUM], strict=True)]
    where = "On the toy problem in 3-D"

    def claim(text: str, larger: str, smaller: str) -> Claim:
        return Claim(
            f"{where} {text}",
            (f"norm after {settings['toy_steps']} steps: {larger}", norms[larger]),
            (smaller, norms[smaller]),
        )

    return [
        claim("momentum makes SGD's weights grow more", _MOMENTUM, "sgd"),
        Claim(
            f"{where} SGDP stops most of what momentum adds",
            (f"middle of sgd and {_MOMENTUM}", middle),
            ("sgdp", norms["sgdp"]),
        ),
        claim("AdamP's weights grow less than Adam's", "adam", "adamp"),
    ]


def _network_claims(network: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    def grown(name: str) -> tuple[str, list[float]]:
        runs = network.get(name, {})
        return name, [one["growth"][-1] for one in runs.values()]

    def turned(name: str) -> tuple[str, list[float]]:
        runs = network.get(name, {})
        late = [
            one["angle"][-max(len(one["angle"]) // 4, 1) :] for one in runs.values()
        ]
        return name, [1000 * float(np.mean(angles)) for angles in late]

    claims = []
    for more, less, words in (
        (_MOMENTUM, "sgd", "momentum makes SGD's weights grow more"),
        (_MOMENTUM, "sgdp", "SGDP's weights grow less than those of SGD with momentum"),
        ("adam", "adamp", "AdamP's weights grow less than Adam's"),
    ):
        name, values = grown(more)
        larger = f"norm over initial norm: {name}", values
        text = f"In the network {words}"
        claims.append(Claim(text, larger, grown(less), digits=4))
    for more, less, words in (
        (
            "sgdp",
            _MOMENTUM,
            "SGDP's steps turn the weights more than those of SGD with",
        ),
        ("adamp", "adam", "AdamP's steps turn the weights more than those of"),
    ):
        name, values = turned(more)
        larger = f"mrad a step, last quarter of the epochs: {name}", values
        rest = "momentum" if less == _MOMENTUM else "Adam"
        text = f"In the network, in the end, {words} {rest}"
        claims.append(Claim(text, larger, turned(less)))
    return claims


def _blocks(
    settings: Settings, toys: Mapping[str, Any], network: Mapping[str, Any]
) -> list[Block]:
    return [*_toy_blocks(settings, toys), *_network_blocks(network)]


def _toy_blocks(settings: Settings, toys: Mapping[str, Any]) -> list[Block]:
    rows = [
        [
            name,
            *(in_numbers(describe(toys[d][name]["norms"]), 3) for d in "23"),
            *(f"{np.median(toys[d][name]['left']):.2f}" for d in "23"),
        ]
        for name in TOYS
    ]
    header = ["optimizer", "norm, 2-D", "norm, 3-D", "left, 2-D (°)", "left, 3-D (°)"]
    steps, rate = settings["toy_steps"], settings["toy_learning_rate"]
    return [
        Heading(2, "On a circle and on a sphere"),
        Paragraph(
            "The loss is 1 minus the cosine between the weights and a fixed direction,"
            " on the sphere with a valley along the equator besides: it does not depend"
            f" on the norm. All begin at norm 1 with learning rate {rate:g}, momentum"
            f" 0.9 where there is any, and take {steps} steps from each of"
            f" {settings['toy_starts']} directions, drawn at random but for the first."
            " The table has the norm at the end, and the median of the angle that is"
            " left to the minimum."
        ),
        Table(header, rows, numeric=header[1:]),
        Picture(
            f"{FIGURES}/circle",
            "Paths of seven optimizers in the plane, all on one scale",
            "Weights in the plane, from the first start (square), all on one scale; the"
            " circle is norm 1. Outside it they have grown.",
        ),
        Picture(
            f"{FIGURES}/sphere",
            "Paths of seven optimizers, seen on the sphere",
            "Directions of the weights on the sphere, from the first start (dot); the"
            " star is the minimum.",
        ),
        Picture(
            f"{FIGURES}/toy-norms",
            "Norm of the weights, and angle of each step, over the steps",
            "Three dimensions, from the first start: as the norm grows, the same"
            " gradient turns the weights less. Angles below a millionth are left out.",
        ),
    ]


def _network_blocks(network: Mapping[str, Any]) -> list[Block]:
    grown = [
        [
            name,
            in_numbers(describe(one["growth"][-1] for one in runs.values()), 4),
            in_numbers(describe(1000 * one["angle"][-1] for one in runs.values()), 2),
        ]
        for name, runs in network.items()
    ]
    columns = ["optimizer", "norm over initial norm", "last step (mrad)"]
    return [
        Heading(2, "In a network"),
        Table(columns, grown, numeric=columns[1:]),
        Picture(
            f"{FIGURES}/network",
            "Growth of the norm and angle of a step over the epochs, a curve a method",
            "Means over the convolutions of a small ResNet on the handwritten digits;"
            " lines are means over the seeds, bands reach from the least to the most."
            " Growth is norm over initial norm, minus 1.",
        ),
    ]


def _follows(
    verdicts: Sequence[Verdict], network: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    grown = {
        name: describe(100 * (one["growth"][-1] - 1) for one in runs.values())
        for name, runs in network.items()
    }
    order = sorted(grown, key=lambda name: -grown[name].mean)
    said = ", ".join(f"{name} {grown[name].mean:.1f} %" for name in order)
    return [
        f"Of {count(verdicts)}.",
        f"In the network the norms grew by: {said}.",
        "All have the same learning rate within a family, which is what the claim is"
        " about; it is no comparison of optimizers that were tuned. Where weights have"
        " hardly grown, a smaller growth makes no difference to their steps.",
    ]


def _about(settings: Settings) -> str:
    return (
        "Seven optimizers on a scale-invariant toy problem in two and three dimensions,"
        " and on a small ResNet with batch norm on the handwritten digits"
        f" ({' '.join(settings['options'])}), batches of 64, no weight decay,"
        f" {settings['seeds']} seeds. A start of the toy problem counts as a seed."
    )


STUDY = Study(
    name="scale_growth",
    title="The growing norm",
    question=(
        "Does momentum make weights on spheres grow, and so lose their step, and do"
        " AdamP and SGDP stop that?"
    ),
    source="Heo et al. 2021",
    about=_about,
    run=run,
    tell=tell,
)
