"""Trains a model and keeps the run in a folder.

    python -m experiments.train

trains a small ResNet with AdamSRT on the handwritten digits of scikit-learn;
``--help`` lists everything that can be asked for.

Exit codes: 0 finished; 1 something broke; 2 an option cannot be used; 3 the loss or a
gradient was not finite; 130 Ctrl-C. After 3 and 130 what was measured is kept.
"""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

import spherical_optax as so
from experiments import errors
from experiments.config import Config, parse, to_json
from experiments.data import load_dataset
from experiments.plots import plot_learning_curves
from experiments.progress import ProgressDisplay
from experiments.runs import CURVES, RunFolder
from experiments.stopping import StopRequest
from experiments.trainer import InterruptedRun, NonFiniteError, Trainer

_EXIT_CODES = {
    "finished": errors.EXIT_FINISHED,
    "not finite": errors.EXIT_NON_FINITE,
    "interrupted": errors.EXIT_INTERRUPTED,
}


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    try:
        return train(parse(sys.argv[1:] if args is None else args))
    except errors.UsageError as error:
        _say(f"error: {error}", stderr=True)
        return errors.EXIT_USAGE
    except OSError as error:
        _say(f"error: {error}", stderr=True)
        return errors.EXIT_FAILED
    except KeyboardInterrupt:
        _say("interrupted before the first step", stderr=True)
        return errors.EXIT_INTERRUPTED


def train(config: Config) -> int:
    """Does one run, from data to figures; returns the exit code."""
    began = time.perf_counter()

    # 1. Data, run folder, and the compiled program with its first state.
    assert config.out is not None  # completed when the command line was read
    folder = RunFolder(config.out, overwrite=config.overwrite)
    dataset = load_dataset(config.dataset)
    trainer = Trainer(config, dataset)
    folder.begin(
        to_json(config),
        parameters=trainer.parameter_count(),
        images={"train": len(dataset.train), "test": len(dataset.test)},
    )
    _say(
        f"{config.optimizer} on {config.dataset} ({len(dataset.train):,} images) with"
        f" {config.model} ({trainer.parameter_count():,} parameters), seed"
        f" {config.seed}; compiled in {trainer.compile_seconds:.1f} s",
    )

    # 2. Epochs, until the last one or until something ends them.
    status, message = "finished", None
    display = ProgressDisplay(config.epochs, trainer.steps_per_epoch, Console())
    with StopRequest() as stop, display:
        try:
            for epoch in range(1, config.epochs + 1):
                metrics = run_epoch(trainer, epoch, display, stop)
                folder.add_metrics(metrics)
                display.epoch(metrics)
                check_finite(metrics)
        except NonFiniteError as error:
            status, message = "not finite", str(error)
        except InterruptedRun:
            status = "interrupted"

    # 3. What is left of it: figures, tables, the summary.
    lines = folder.read_metrics()
    if lines:
        title = f"{config.optimizer}, {config.model}, {config.dataset}"
        plot_learning_curves(lines, title, folder.path / CURVES)
    if config.optimizer == "swats":
        state = trainer.state
        points = so.swats_switch_points(state.opt_state, state.params)
        folder.write_switch_points(points)
    summary = summarize(lines, trainer, time.perf_counter() - began)
    folder.write_summary({"status": status, "message": message, **summary})
    _say(summary_line(config, status, summary))
    if message:
        _say(f"stopped: {message}", stderr=True)
    return _EXIT_CODES[status]


def run_epoch(
    trainer: Trainer, epoch: int, display: ProgressDisplay, stop: StopRequest
) -> dict[str, Any]:
    """Trains for an epoch and evaluates: a line of ``metrics.jsonl``.

    What a clock measured is under ``timing``; all the rest is the same, to the last
    bit, whenever the run is repeated on the same machine.
    """
    train, seconds = trainer.train_epoch(epoch, display.batches, stop)
    began = time.perf_counter()
    test = trainer.evaluate(stop)
    images = trainer.steps_per_epoch * trainer.batch_size
    return {
        "epoch": epoch,
        "step": int(trainer.state.step),
        "learning_rate": trainer.learning_rate(),
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "timing": {
            "train_seconds": seconds,
            "test_seconds": time.perf_counter() - began,
            "images_per_second": images / seconds,
        },
    }


def check_finite(metrics: dict[str, Any]) -> None:
    """Raises a NonFiniteError where a whole epoch went well and its test did not."""
    if not math.isfinite(metrics["test_loss"]):
        raise NonFiniteError(
            f"not finite after epoch {metrics['epoch']}, step {metrics['step']}: test"
            f" loss {metrics['test_loss']}, every gradient and weight finite"
        )


def summarize(
    lines: Sequence[dict[str, Any]], trainer: Trainer, seconds: float
) -> dict[str, Any]:
    """How far the run came, and how well, with its last epoch and its best."""
    train_seconds = sum(line["timing"]["train_seconds"] for line in lines)
    images = len(lines) * trainer.steps_per_epoch * trainer.batch_size
    summary: dict[str, Any] = {"epochs": len(lines)}
    if lines:
        best = max(lines, key=lambda line: line["test_accuracy"])
        summary |= {
            "test_accuracy": lines[-1]["test_accuracy"],
            "best_test_accuracy": best["test_accuracy"],
            "best_epoch": best["epoch"],
        }
    unfinished = trainer.unfinished()
    if unfinished.batches and trainer.epoch > len(lines):
        summary["unfinished_epoch"] = {
            "epoch": trainer.epoch,
            "batches": unfinished.batches,
            "train_loss": unfinished.loss,
            "train_accuracy": unfinished.accuracy,
        }
    summary["timing"] = {
        "seconds": seconds,
        "compile_seconds": trainer.compile_seconds,
        "train_seconds": train_seconds,
        "images_per_second": images / train_seconds if lines else None,
    }
    return summary


def summary_line(config: Config, status: str, summary: dict[str, Any]) -> str:
    """The last line that a run prints."""
    line = f"{status} after {summary['epochs']} of {config.epochs} epochs"
    timing = summary["timing"]
    if summary["epochs"]:
        line += (
            f": test accuracy {summary['test_accuracy']:.2%} (best"
            f" {summary['best_test_accuracy']:.2%} after epoch"
            f" {summary['best_epoch']}), {timing['images_per_second']:,.0f} images/s"
        )
    return f"{line}, {timing['seconds']:.1f} s in all; {config.out}"


def _say(line: str, *, stderr: bool = False) -> None:
    console = Console(stderr=stderr)
    console.print(line, highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
