"""How far bfloat16 updates stray from float32, and what of it rounding explains.

    python -m experiments.bench.precision --json FILE --figure FILE

Every optimizer makes the same steps, for the same gradients, from the same weights

* in float32,
* with bfloat16 weights, and
* with float32 weights and a first moment in bfloat16 (``mu_dtype``), if it takes one.

Shown is the distance between the weights, over the way that float32 went. bfloat16
has 8 significant bits: to store x moves it by up to 2^-9 |x|. The dashed line is what
roundings make if they are independent, a random walk: sqrt(t) 2^-9 |x| / sqrt(3) after
t steps. The dotted line is the worst case, all in one direction: the sum of 2^-9 |x|
over the steps. Steps that keep their direction and are about as short as the spacing of
bfloat16 come near it, since each is rounded the same way.
"""

import datetime
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import tyro

import spherical_optax as so
from experiments import errors
from experiments.bench import machine
from experiments.commands import run_command
from experiments.drawing import BLUE, STYLE, VERMILION
from experiments.errors import UsageError, check_name

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adams": so.adams,
    "adamsrt": so.adamsrt,
    "adamg": so.adamg,
    "adamp": so.adamp,
    "swats": so.swats,
    "lamb": so.lamb,
}
SHAPE = (3, 3, 32, 64)
Tree = Any


@dataclass(frozen=True)
class Options:
    """What to compare.

    Attributes:
      optimizers: which of adam, adams, adamsrt, adamg, adamp, swats, lamb; all if none.
      steps: of each.
      learning_rate: of each.
      seed: of weights and gradients.
      json: file for the curves.
      figure: file for the picture, PNG or SVG by its ending.
    """

    optimizers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ()
    steps: int = 300
    learning_rate: float = 1e-2
    seed: int = 0
    json: Path | None = None
    figure: Path | None = None


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.bench.precision",
        description=__doc__,
        args=args,
    )
    return run_command(lambda: precision(options))


def precision(options: Options) -> int:
    """Compares, and shows and keeps the curves; returns the exit code.

    Raises:
      UsageError: an option cannot be used.
    """
    for name in options.optimizers:
        check_name("--optimizers", name, OPTIMIZERS)
    if options.steps < 1 or not 0 < options.learning_rate < math.inf:
        raise UsageError("--steps must be at least 1 and --learning-rate above 0")
    curves = compare(options)
    show(curves)
    if options.json:
        save(options.json, options, curves)
    if options.figure:
        draw(options.figure, curves)
    return errors.EXIT_FINISHED


def compare(options: Options) -> dict[str, dict[str, list[float]]]:
    """The curves of each optimizer: relative distances, one number a step."""
    names = options.optimizers or tuple(OPTIMIZERS)
    return {name: curves_of(OPTIMIZERS[name], options) for name in names}


def curves_of(build: Callable[..., Any], options: Options) -> dict[str, list[float]]:
    """Distances to float32, and what rounding explains, over what float32 went."""
    start = 0.05 * jax.random.normal(jax.random.key(options.seed), SHAPE)
    start = start.astype(jnp.bfloat16).astype(jnp.float32)  # equal in both types
    rate = options.learning_rate
    exact = trajectory(build(rate), start, options)
    runs = {
        "bfloat16 weights": trajectory(build(rate), start.astype("bfloat16"), options)
    }
    if "mu_dtype" in inspect.signature(build).parameters:
        optimizer = build(rate, mu_dtype=jnp.bfloat16)
        runs["bfloat16 first moment"] = trajectory(optimizer, start, options)
    went = jnp.linalg.norm((exact - start).reshape(options.steps, -1), axis=1)

    def distances(run: jax.Array) -> list[float]:
        apart = jnp.linalg.norm((run - exact).reshape(options.steps, -1), axis=1)
        return (apart / went).tolist()

    rounding = 2**-9 * jnp.linalg.norm(exact.reshape(options.steps, -1), axis=1)
    walk = jnp.sqrt(jnp.arange(1, options.steps + 1) / 3)
    return {name: distances(run) for name, run in runs.items()} | {
        "independent roundings": (walk * rounding / went).tolist(),
        "worst case of rounding": (jnp.cumsum(rounding) / went).tolist(),
    }


def trajectory(
    optimizer: optax.GradientTransformation, start: jax.Array, options: Options
) -> jax.Array:
    """The weights after each step, in float32; gradients are noise around a slope."""
    key = jax.random.key(options.seed + 1)
    slope = jax.random.normal(key, SHAPE)

    def step(carry, number):
        x, state = carry
        noise = jax.random.normal(jax.random.fold_in(key, number), SHAPE)
        gradient = (slope + noise).astype(x.dtype)
        updates, state = optimizer.update(gradient, state, x)
        x = jnp.asarray(optax.apply_updates(x, updates))
        return (x, state), x.astype(jnp.float32)

    init = (start, optimizer.init(start))
    return jax.lax.scan(step, init, jnp.arange(options.steps))[1]


def show(curves: dict[str, dict[str, list[float]]]) -> None:
    """Prints the distances after the last step."""
    for name, some in curves.items():
        last = ", ".join(f"{what} {values[-1]:.2%}" for what, values in some.items())
        print(f"{name:8s} {last}")


def save(path: Path, options: Options, curves: Tree) -> None:
    """Writes the curves, and where they come from."""
    record = {
        "command": "python -m experiments.bench.precision",
        "steps": options.steps,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "date": datetime.date.today().isoformat(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "curves": {
            name: {
                what: [float(f"{v:.4g}") for v in values] for what, values in c.items()
            }
            for name, c in curves.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record) + "\n")


def draw(path: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    """Draws a panel for each optimizer."""
    import matplotlib.pyplot as plt

    columns = min(4, len(curves))
    rows = math.ceil(len(curves) / columns)
    looks = {
        "bfloat16 weights": {"color": VERMILION},
        "bfloat16 first moment": {"color": BLUE},
        "independent roundings": {"color": "black", "ls": "--", "lw": 1},
        "worst case of rounding": {"color": "black", "ls": ":", "lw": 1},
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(2.2 * columns, 2.1 * rows + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, some) in zip(axes.flat, curves.items(), strict=False):
            for what, values in some.items():
                axis.plot(range(1, len(values) + 1), values, label=what, **looks[what])
            axis.set(title=name, xscale="log", yscale="log")
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        figure.supxlabel("step")
        figure.supylabel("distance to float32 / way it went")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        for axis in axes.flat[1 : len(curves)]:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles, labels = [*handles, handle], [*labels, label]
        figure.legend(
            handles, labels, loc="outside upper center", ncols=2, frameon=False
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
