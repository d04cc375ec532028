"""Study 3: how fast weights on spheres grow, and what that does to their step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spherical_optax as so
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.report.stats import Sample, contrast, describe
from experiments.results import Run
from experiments.spheres import SPHERES
from experiments.studies.drawing import drawing, line_style
from experiments.studies.grids import run_grid
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

_STEPS = 200
_LABELS = {"w": "layer"}
TOYS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "sgd, momentum": lambda: optax.sgd(0.1, 0.9),
    "sgdp": lambda: so.sgdp(0.1, 0.9),
    "sgdmrt": lambda: so.sgdmrt(0.1, 0.9, labels=_LABELS),
    "adam": lambda: optax.adam(0.1),
    "adamp": lambda: so.adamp(0.1),
    "adamsrt": lambda: so.adamsrt(0.1, labels=_LABELS),
}
"""Name to optimizer, with the same learning rate for all."""
_NETWORK = (
    *("sgd:momentum=0", "sgd:momentum=0.9", "sgdp:momentum=0.9", "sgdmrt:momentum=0.9"),
    *("adam", "adamp", "adamsrt"),
)
_PAIRS = (
    ("sgd momentum=0.9", "sgdp", "SGD with momentum grows the weights more than SGDP"),
    ("adam", "adamp", "Adam grows the weights more than AdamP"),
)


def descend(
    optimizer: optax.GradientTransformation, start: np.ndarray, steps: int = _STEPS
) -> dict[str, np.ndarray]:
    r"""A path on the toy problem, which does not depend on the length of the weights.

    .. math:: f(w) = 1 - \bar w_1 + 2 \bar w_3^2, \qquad \bar w = \frac{w}{|w|}

    where the last term, a valley along the equator, is there from three dimensions on.

    Args:
      optimizer: under test.
      start: weights to begin with, shape ``(d,)``.
      steps: how many.

    Returns:
      ``path`` of shape ``(steps + 1, d)``; and over the steps ``norm``, and
      ``effective_step``, the angle of a step.
    """

    def loss(params: Any) -> jax.Array:
        w = params["w"][:, 0]
        unit = w / jnp.linalg.norm(w)
        return 1 - unit[0] + 2 * jnp.sum(unit[2:3] ** 2)

    monitored = so.monitor_sphere(optimizer, labels=_LABELS)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = monitored.update(jax.grad(loss)(params), state, params)
        params: Any = optax.apply_updates(params, updates)
        seen = so.sphere_statistics(state)["w"]
        return (params, state), (params["w"][:, 0], seen.norm_after, seen.angle)

    # A column, since AdamP and SGDP leave vectors alone.
    params = {"w": jnp.asarray(start, jnp.float32)[:, None]}
    carry = (params, monitored.init(params))
    _, (path, norm, angle) = jax.jit(
        lambda carry: jax.lax.scan(step, carry, None, steps)
    )(carry)
    return {
        "path": np.concatenate([start[None], np.asarray(path)]),
        "norm": np.asarray(norm).ravel(),
        "effective_step": np.asarray(angle).ravel(),
    }


def run(place: Place) -> Outcome:
    """The toy problems, and the same optimizers on a network."""
    starts = {
        2: np.array([np.cos(2.5), np.sin(2.5)]),
        3: np.array([-0.6, 0.48, 0.64]),
    }
    toys = {
        d: {name: descend(make(), start) for name, make in TOYS.items()}
        for d, start in starts.items()
    }
    options = ["--monitor", "--schedule=constant", "--epochs=12"]
    column = run_grid(place, "digits", "small_resnet", _NETWORK, *options)
    growth = {
        _plain(label): [_growth(run) for run in setting.finished]
        for setting, label in zip(column.settings, column.labels, strict=True)
    }
    firsts = {
        _plain(label): setting.finished[0]
        for setting, label in zip(column.settings, column.labels, strict=True)
        if setting.finished
    }
    _draw_toys(toys, place)
    _draw_network(firsts, place)
    verdicts = [
        *(_judge_toy(toys[3], *pair) for pair in _TOY_PAIRS),
        *(_judge(growth, *pair) for pair in _PAIRS),
    ]
    return Outcome(verdicts, _blocks(toys, growth), {"growth_in_network": growth})


_TOY_PAIRS = (
    (
        "sgd, momentum",
        "sgd",
        "On the toy problem momentum makes SGD's weights grow more",
    ),
    ("sgd, momentum", "sgdp", "On the toy problem SGDP stops what momentum adds"),
    ("adam", "adamp", "On the toy problem AdamP's weights grow less than Adam's"),
)


def _judge_toy(
    found: Mapping[str, Mapping[str, np.ndarray]], more: str, less: str, claim: str
) -> Verdict:
    norms = [float(found[name]["norm"][-1]) for name in (more, less)]
    evidence = (
        f"norm after {_STEPS} steps from 1, in three dimensions: {more} {norms[0]:.3f},"
        f" {less} {norms[1]:.3f}; nothing is random here, n = 1"
    )
    return Verdict(claim, YES if norms[0] > norms[1] + 1e-3 else NO, evidence)


def _judge(
    growth: Mapping[str, Sequence[float]], more: str, less: str, claim: str
) -> Verdict:
    if not growth.get(more) or not growth.get(less):
        return Verdict(claim, NEVER, f"no finished run of {more} or {less}")
    samples = [describe(growth[name]) for name in (more, less)]
    found = contrast([(1.0, samples[0]), (-1.0, samples[1])])
    means = ", ".join(
        f"{name} {in_numbers(sample, 3)}"
        for name, sample in zip((more, less), samples, strict=True)
    )
    evidence = f"norm at the end over norm after an epoch, mean over layers: {means}"
    if found is None:
        return Verdict(claim, NO, f"undecided: {evidence}")
    evidence += (
        f"; 95 % interval of the difference {found.low:+.3f} to {found.high:+.3f}"
    )
    return Verdict(claim, YES if found.low > 0 else NO, evidence)


def _growth(run: Run) -> float:
    """By what factor norms grew from the first epoch to the last, mean over layers."""
    first, last = run.lines[0][SPHERES], run.lines[-1][SPHERES]
    return float(np.mean([last[p]["norm"] / first[p]["norm"] for p in first]))


def _plain(label: str) -> str:
    """``sgd momentum=0.9`` as it stands, others by their name alone."""
    name, *options = label.split()
    return label if name == "sgd" and options else name


def _draw_toys(toys: Mapping[int, Mapping[str, Any]], place: Place) -> None:
    """Paths on the circle and on the sphere, and what becomes of the norm."""
    names = list(TOYS)
    with drawing(place.figures / "circle", 2, 4, height=4.2) as axes:
        turn = np.linspace(0, 2 * np.pi, 200)
        for index, name in enumerate(names):
            axis, path = axes[index], toys[2][name]["path"]
            axis.plot(np.cos(turn), np.sin(turn), color="0.8", lw=0.8)
            axis.plot(path[:, 0], path[:, 1], marker=".", **_thin(index), ms=2)
            axis.plot(*path[0], "ks", ms=3)
            axis.set_title(f"{name}\nnorm {toys[2][name]['norm'][-1]:.2f}", loc="left")
            axis.set_aspect("equal")
            axis.set_axis_off()
        axes[-1].remove()
    with drawing(
        place.figures / "sphere", 2, 4, height=4.0, subplot_kw={"projection": "3d"}
    ) as axes:
        for index, name in enumerate(names):
            draw_on_sphere(axes[index], toys[3][name]["path"], name, index)
        axes[-1].remove()
    with drawing(place.figures / "toy-norms", 1, 2, height=2.8) as axes:
        for index, name in enumerate(names):
            found = toys[3][name]
            axes[0].plot(found["norm"], label=name, **line_style(index))
            axes[1].plot(np.maximum(found["effective_step"], 1e-6), **line_style(index))
        axes[0].set(xlabel="step", ylabel="norm of the weights")
        axes[1].set(xlabel="step", ylabel="angle of a step (rad)", yscale="log")
        axes[0].legend(fontsize=7, frameon=False)


def draw_on_sphere(axis: Any, path: np.ndarray, name: str, index: int) -> None:
    """Draws the directions of a path, seen on the sphere; a star is the minimum."""
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 19), np.linspace(0, np.pi, 10))
    axis.plot_wireframe(
        np.cos(u) * np.sin(v),
        np.sin(u) * np.sin(v),
        np.cos(v),
        color="0.88",
        lw=0.4,
    )
    unit = path / np.linalg.norm(path, axis=1, keepdims=True)
    axis.plot(*unit.T, **_thin(index))
    axis.scatter(*unit[0], color="k", s=8)
    axis.scatter(1, 0, 0, color="k", marker="*", s=25)
    axis.set_title(name, fontsize=8, y=1.0)
    axis.set_axis_off()
    axis.set_box_aspect((1, 1, 1), zoom=1.45)
    axis.view_init(elev=25, azim=60)


def _thin(index: int) -> dict[str, Any]:
    return {**line_style(index), "lw": 1.0, "ls": "-"}


def _draw_network(runs: Mapping[str, Run], place: Place) -> None:
    """Means over the layers, epoch by epoch."""
    with drawing(place.figures / "network", 1, 2, height=2.9) as axes:
        for index, (name, found) in enumerate(runs.items()):
            for axis, quantity in zip(axes, ("norm", "angle"), strict=True):
                values = [
                    np.mean([layer[quantity] for layer in line[SPHERES].values()])
                    for line in found.lines
                ]
                epochs = [line["epoch"] for line in found.lines]
                axis.plot(epochs, values, label=name, **line_style(index))
        for axis in axes:
            axis.locator_params("x", integer=True)
        axes[0].set(xlabel="epoch", ylabel="norm, mean over layers")
        axes[1].set(xlabel="epoch", ylabel="angle of a step (rad)", yscale="log")
        axes[0].legend(fontsize=7, frameon=False)


def _blocks(
    toys: Mapping[int, Mapping[str, Mapping[str, np.ndarray]]],
    growth: Mapping[str, Sequence[float]],
) -> list[Block]:
    rows = [
        [
            name,
            *(f"{toys[d][name]['norm'][-1]:.3f}" for d in (2, 3)),
            *(_degrees_left(toys[d][name]["path"][-1]) for d in (2, 3)),
        ]
        for name in TOYS
    ]
    header = ["optimizer", "norm, 2-D", "norm, 3-D", "left, 2-D", "left, 3-D"]
    samples: dict[str, Sample] = {k: describe(v) for k, v in growth.items()}
    return [
        Heading(2, "On a circle and on a sphere"),
        Paragraph(
            "The loss is 1 minus the cosine between the weights and a fixed direction,"
            " on the sphere with a valley along the equator besides: it does not depend"
            " on the norm. All begin at norm 1 with learning rate 0.1, and take"
            f" {_STEPS} steps. The table has the norm at the end, and the"
            " angle that is left to the minimum, in degrees."
        ),
        Table(header, rows, numeric=header[1:]),
        Picture(
            f"{FIGURES}/circle",
            "Paths of seven optimizers in the plane",
            "Weights in the plane; the circle is where they begin. Outside it they have"
            " grown.",
        ),
        Picture(
            f"{FIGURES}/sphere",
            "Paths of seven optimizers, seen on the sphere",
            "Directions of the weights on the sphere; the star is the minimum.",
        ),
        Picture(
            f"{FIGURES}/toy-norms",
            "Norm of the weights, and angle of each step, over the steps",
            "Three dimensions: as the norm grows, the angle of a step shrinks.",
        ),
        Heading(2, "In a network"),
        Table(
            ["optimizer", "growth of the norm"],
            [[name, in_numbers(sample, 3)] for name, sample in samples.items()],
        ),
        Picture(
            f"{FIGURES}/network",
            "Norm and angle over the epochs, one curve a method",
            "Means over the convolutions of a small ResNet on the digits, first seed.",
        ),
    ]


def _degrees_left(w: np.ndarray) -> str:
    cosine = np.clip(w[0] / np.linalg.norm(w), -1, 1)
    return f"{np.degrees(np.arccos(cosine)):.2f}"


STUDY = Study(
    name="scale_growth",
    title="The growing norm",
    question=(
        "Does momentum make weights on spheres grow, and so lose their step, and do"
        " AdamP and SGDP stop that?"
    ),
    source="Heo et al. 2021",
    about=(
        "Seven optimizers on a scale-invariant toy problem in two and three dimensions,"
        " and on a small ResNet with batch norm on the digits: 12 epochs of batches of"
        " 64 at a constant learning rate, no weight decay, three seeds."
    ),
    full_scale=(
        "python -m experiments.reproduce --dataset cifar10 --model resnet18 --monitor"
        " --optimizers sgd,sgdp,sgdmrt,adam,adamp,adamsrt --seeds 0..2 --epochs 100"
        " --schedule constant --protocol none",
    ),
    seeds=3,
    run=run,
)
