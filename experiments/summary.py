"""What came of a run, for ``summary.json`` and for its last line."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config import Config
from experiments.digests import digest
from experiments.keeper import Keeper
from experiments.results import Run
from experiments.trainer import Trainer


def summarize(
    keeper: Keeper, trainer: Trainer, status: str, message: str | None, began: float
) -> dict[str, Any]:
    """How far the run came, and how well, with the epoch that counts and the best.

    The epoch that counts is the one of the best validation accuracy, or the last one
    where there is no validation split. ``state_sha256`` is over all that was trained:
    parameters, statistics and the optimizer's state.

    Args:
      keeper: with the lines of ``metrics.jsonl``.
      trainer: in its last state.
      status: how the run ended.
      message: why, if there is more to say.
      began: when the command was given, on the clock of ``time.monotonic``.
    """
    lines, first = keeper.lines, trainer.pipeline.first_result
    summary: dict[str, Any] = {
        "status": status,
        "message": message,
        "epochs": len(lines),
    }
    if lines:
        counts = selected(lines)
        best = max(lines, key=lambda line: line["test_accuracy"])
        summary |= {
            "test_accuracy": counts["test_accuracy"],
            "selected_epoch": counts["epoch"],
            "selected_by": selected_by(lines),
            "last_test_accuracy": lines[-1]["test_accuracy"],
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
    return {
        **summary,
        "resumed_at_steps": keeper.resumed_at,
        "state_sha256": digest(trainer.state),
        "timing": {
            "seconds": time.monotonic() - began,
            "compile_seconds": trainer.compile_seconds,
            "seconds_to_first_step": first - began if first else None,
            "checkpoint_seconds": keeper.seconds,
            **_speed(lines, trainer.steps_per_epoch * trainer.batch_size),
        },
    }


def selected(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The epoch that counts; of several that are equally good, the first."""
    if selected_by(lines) == "validation":
        return max(lines, key=lambda line: line["validation_accuracy"])
    return lines[-1]


def selected_by(lines: Sequence[Mapping[str, Any]]) -> str:
    """What chooses the epoch that counts: ``"validation"``, or ``"last"``."""
    return "validation" if "validation_accuracy" in lines[-1] else "last"


def summary_line(config: Config, summary: Mapping[str, Any]) -> str:
    """The last line that a run prints."""
    line = f"{summary['status']} after {summary['epochs']} of {config.epochs} epochs"
    timing = summary["timing"]
    if summary["epochs"]:
        line += f": test accuracy {summary['test_accuracy']:.2%}"
        if summary["selected_by"] == "validation":
            line += f" (best validation after epoch {summary['selected_epoch']}; "
        else:
            line += " ("
        line += (
            f"best {summary['best_test_accuracy']:.2%} after epoch"
            f" {summary['best_epoch']}), {timing['images_per_second']:,.0f} images/s"
            f" ({timing['outside_step_share']:.1%} of the time outside the step)"
        )
    if timing["seconds_to_first_step"] is not None:
        line += f", first step after {timing['seconds_to_first_step']:.1f} s"
    return f"{line}, {timing['seconds']:.1f} s in all; {config.out}"


def ended_line(run: Run) -> str:
    """What is said of a run that ended before."""
    line = f"{run.summary['status']} after {len(run.lines)} of {run.config['epochs']}"
    accuracy = f": test accuracy {run.accuracy / 100:.2%}" if run.lines else ""
    return f"{line} epochs{accuracy}; {run.path}"


def _speed(lines: Sequence[Mapping[str, Any]], images: int) -> dict[str, Any]:
    """Over all epochs, those before the run was taken up again included."""
    seconds = sum(line["timing"]["train_seconds"] for line in lines)
    outside = sum(line["timing"]["outside_step_seconds"] for line in lines)
    return {
        "train_seconds": seconds,
        "test_seconds": sum(line["timing"]["test_seconds"] for line in lines),
        "images_per_second": len(lines) * images / seconds if lines else None,
        "outside_step_share": outside / seconds if lines else None,
    }
