"""Finds a learning rate: a run whose learning rate grows until the loss explodes.

    python -m experiments.find_lr --optimizer adamsrt --dataset fashion_mnist

The learning rate begins at --start and is multiplied by --factor at every batch. The
test ends when the smoothed loss is --stop-at times its lowest value, or no number. It
leaves a figure and the numbers, and suggests the learning rate at which the smoothed
loss falls fastest; where it is lowest is already too much.

Options that are not listed are those of python -m experiments.train: --model,
--dataset, --batch-size, --seed, and the optimizer with its hyperparameters.

Exit codes: 0 there is a suggestion; 1 there is none, the loss never fell; 2 an option
cannot be used; 4 SIGTERM; 130 Ctrl-C. A test that was stopped leaves nothing.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments import errors
from experiments.allocator import use_huge_pages
from experiments.commands import run_command
from experiments.config import Config, parse, to_json
from experiments.data import STREAMED, dataset_label, load_dataset
from experiments.drawing import plain
from experiments.errors import UsageError
from experiments.loop import Loop
from experiments.models import label_spheres
from experiments.optimizers import flag, make_optimizer
from experiments.options import Hyperparameters
from experiments.progress import say
from experiments.schedules import listed
from experiments.stopping import TERMINATED, StoppedRun, StopRequest
from experiments.values import is_in_float32, make_folder

_SMOOTHING = 0.7  # share of the past in the smoothed loss
_MOST_STEPS = 100_000
_TAKEN = {
    *("dataset", "model", "optimizer", "protocol", "batch_size", "seed", "augment"),
    *("image_size", "dtype", "config"),
    *(field.name for field in dataclasses.fields(Hyperparameters)),
} - {"learning_rate"}
"""Options of a run that a range test has a use for."""


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.find_lr``."""

    start: float = 1e-6
    """The first learning rate."""
    end: float = 100.0
    """The last, if the loss has not exploded before."""
    factor: float = 1.1
    """What it is multiplied by at every batch."""
    stop_at: float = 3.0
    """The smoothed loss, as a multiple of its lowest value, that ends the test."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where lr.png and lr.json go, by default runs/find_lr-DATASET-MODEL-OPTIMIZER."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw.

    Attributes:
      rates: the learning rate of each step.
      losses: the loss of its batch, before the step; the last may be no number.
      smoothed: their running mean.
      suggestion: where the smoothed loss falls fastest; None if it never falls.
      lowest: where it is lowest.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    lowest: float | None


def range_test(loop: Loop, rates: Sequence[float], stop_at: float) -> RangeTest:
    """Walks through the rates until the loss explodes.

    Args:
      loop: of a run whose learning rates are ``rates``.
      rates: growing.
      stop_at: multiple of the lowest smoothed loss that ends the test.
    """
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for count in range(1, len(rates) + 1):
        loss = loop.step().loss
        losses.append(loss)
        if not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed.append(mean / (1 - _SMOOTHING**count))
        if smoothed[-1] > stop_at * min(smoothed):
            break
    suggestion, lowest = suggest(rates[: len(smoothed)], smoothed)
    return RangeTest(list(rates[: len(losses)]), losses, smoothed, suggestion, lowest)


def suggest(
    rates: Sequence[float], smoothed: Sequence[float]
) -> tuple[float | None, float | None]:
    """Where a smoothed loss falls fastest over the logarithm of the rate, and its low.

    Both are None if the loss is never a tenth below where it began: batches differ.

    Example:
      >>> suggest([0.1, 0.2, 0.4, 0.8], [2.0, 1.9, 1.0, 1.5])
      (0.4, 0.4)
    """
    values = np.asarray(smoothed)
    if len(values) < 2 or values.min() > 0.9 * values[0]:
        return None, None
    low = int(values.argmin())
    slopes = np.diff(values[: low + 1]) / np.diff(np.log(rates[: low + 1]))
    return float(rates[int(slopes.argmin()) + 1]), float(rates[low])


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options, rest = tyro.cli(
        Options,
        prog="python -m experiments.find_lr",
        description=__doc__,
        args=args,
        return_unknown_args=True,
    )

    def act() -> int:
        try:
            with StopRequest():
                return find_lr(options, rest)
        except StoppedRun:
            say(f"{TERMINATED}: nothing is kept", stderr=True)
            return errors.EXIT_TERMINATED

    return run_command(act, interrupted="interrupted: nothing is kept")


def find_lr(options: Options, rest: Sequence[str]) -> int:
    """Does the test, draws it, and says what it suggests; returns the exit code.

    Raises:
      UsageError: an option cannot be used.
    """
    rates = growing_rates(options)
    config = parse(rest)
    _check_taken(rest)
    if config.dataset in STREAMED:
        raise UsageError(f"--dataset {config.dataset}: is streamed, not in memory")
    name = f"{dataset_label(config.dataset)}-{config.model}-{config.optimizer}"
    out = options.out or Path("runs") / f"find_lr-{name}"
    make_folder("--out", out)
    dataset = load_dataset(config.dataset, image_size=config.image_size)
    found = range_test(make_loop(config, dataset, rates), rates, options.stop_at)
    title = f"{config.optimizer}, {config.model}, {dataset.name}"
    record = {**to_json(config), "learning_rate": None, **_plain(found)}
    (out / "lr.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(found, title, out / "lr.png")
    end = (
        "at a loss that is no number" if len(found.smoothed) < len(found.losses) else ""
    )
    say(
        f"{len(found.losses)} steps, learning rate {rates[0]:g} to"
        f" {found.rates[-1]:.3g} {end}".rstrip()
        + f"; {out / 'lr.png'}"
    )
    if found.suggestion is None:
        say("no suggestion: the loss never fell", stderr=True)
        return errors.EXIT_FAILED
    say(
        f"suggestion: --learning-rate {found.suggestion:.2g} (lowest loss at"
        f" {found.lowest:.2g})"
    )
    return errors.EXIT_FINISHED


def _check_taken(rest: Sequence[str]) -> None:
    """Raises a UsageError for options of a run that would change nothing here."""
    for argument in rest:
        name = argument.split("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name.removeprefix("no_") not in _TAKEN:
            raise UsageError(
                f"{flag(name)}: not an option of a range test; it takes"
                f" {', '.join(map(flag, sorted(_TAKEN)))}"
            )


def growing_rates(options: Options) -> list[float]:
    """The learning rates of a test.

    Raises:
      UsageError: they do not grow from a positive number.
    """
    for name, value, least in (
        ("--start", options.start, 0.0),
        ("--end", options.end, options.start),
        ("--factor", options.factor, 1.0),
        ("--stop-at", options.stop_at, 1.0),
    ):
        if not least < value < math.inf:
            raise UsageError(f"{name} must be a number above {least:g}, got {value:g}")
        if not is_in_float32(value):
            raise UsageError(f"{name} must be a number of float32, got {value:g}")
    steps = math.log(options.end / options.start) / math.log(options.factor)
    if steps > _MOST_STEPS:
        raise UsageError(
            f"--factor {options.factor} takes {steps:.3g} steps from --start to"
            f" --end, and {_MOST_STEPS:,} is the most"
        )
    return [options.start * options.factor**i for i in range(int(steps + 1e-9) + 1)]


def make_loop(config: Config, dataset: Any, rates: Sequence[float]) -> Loop:
    """A run whose learning rate at each step is given."""
    hyperparameters = {**config.hyperparameters.given(), "learning_rate": 1.0}

    def build(params: Any) -> Any:
        return make_optimizer(
            config.optimizer,
            hyperparameters,
            listed(rates),
            label_spheres,
            params,
        )

    return Loop(config, dataset, build)


def plot(found: RangeTest, title: str, path: Path) -> None:
    """Draws the loss over the learning rate, with the suggestion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    finite = len(found.smoothed)
    axes.plot(found.rates[:finite], found.losses[:finite], ".", color="0.7", ms=4)
    axes.plot(found.rates[:finite], found.smoothed, label="smoothed loss")
    if found.suggestion is not None:
        axes.axvline(
            found.suggestion,
            color="#D55E00",
            ls="--",
            label=f"falls fastest: {found.suggestion:.2g}",
        )
    top = 1.1 * max([*found.smoothed[:1], 2 * min(found.smoothed, default=1.0)])
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss of the batch")
    axes.set(title=plain(title), ylim=(0, max(top, 1e-3)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plain(found: RangeTest) -> dict[str, Any]:
    losses = [loss if math.isfinite(loss) else None for loss in found.losses]
    return {
        "suggestion": found.suggestion,
        "lowest": found.lowest,
        "rates": found.rates,
        "losses": losses,
        "smoothed": found.smoothed,
    }


if __name__ == "__main__":
    use_huge_pages()  # may start the program anew
    sys.exit(main())
