"""Trains a model and keeps the run in a folder.

    python -m experiments.train

trains a small ResNet with AdamSRT on the handwritten digits of scikit-learn;
``--help`` lists everything that can be asked for.

With ``--resume`` a run that was stopped, or killed, goes on to the same last bit.
"""

from experiments.starting import leave_at_once

# isort: split
# Only now what takes seconds to import.
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

import spherical_optax as so
from experiments import errors
from experiments.allocator import use_huge_pages
from experiments.config import Config, parse, to_json
from experiments.data import STREAMED, load_dataset, load_streamed
from experiments.distributed import (
    LostProcessError,
    is_primary,
    join,
    leave,
    leave_the_lost,
    several,
)
from experiments.errors import CheckpointError
from experiments.inspect import label_differences
from experiments.keeper import Keeper, how_it_ended
from experiments.plots import plot_learning_curves
from experiments.progress import ProgressDisplay, say
from experiments.results import FINISHED, NOT_FINITE
from experiments.runs import CONFIG, CURVES, SPHERES_FIGURE, RunFolder
from experiments.seeds import train_each_seed
from experiments.spheres import SPHERES, plot_spheres
from experiments.stopping import (
    EXIT_CODES,
    OUT_OF_TIME,
    TERMINATED,
    StoppedRun,
    StopRequest,
)
from experiments.summary import ended_line, summarize, summary_line
from experiments.timing import process_start
from experiments.trackers import check_trackers, open_trackers
from experiments.trainer import NonFiniteError, Trainer
from experiments.values import parse_duration

_EXIT_CODES = {
    FINISHED: errors.EXIT_FINISHED,
    NOT_FINITE: errors.EXIT_NON_FINITE,
    **EXIT_CODES,
}


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    stop = None
    began = process_start() if args is None else time.monotonic()
    loading = time.monotonic() - began
    try:
        config = parse(sys.argv[1:] if args is None else args)
        limit = config.time_limit
        end = began + parse_duration("--time-limit", limit) if limit else None
        # Python takes its modules down about as fast as it loaded them.
        with StopRequest(end, reserve=0.5 + 1.5 * loading) as stop:
            join(config.coordinator, config.processes, config.process)
            if config.seeds is not None:
                return train_each_seed(config, stop, began, train)
            return train(config, stop, began)
    except jax.errors.JaxRuntimeError as error:
        if several():
            leave_the_lost(error)
        raise
    except LostProcessError as error:
        say(f"error: {error}", stderr=True)
        return errors.EXIT_FAILED
    except errors.UsageError as error:
        say(f"error: {error}", stderr=True)
        leave(errors.EXIT_USAGE)
        return errors.EXIT_USAGE
    except (OSError, CheckpointError) as error:
        say(f"error: {error}", stderr=True)
        leave()
        return errors.EXIT_FAILED
    except StoppedRun as stopped:
        say(f"{stopped.reason} before the first step", stderr=True)
        return _end_unbegun(_EXIT_CODES[stopped.reason])
    except KeyboardInterrupt:
        if stop is None or stop.begun_at is None:
            say("interrupted before the first step", stderr=True)
        else:
            goes_on = "--resume goes on from the last checkpoint, if there is one"
            say(f"interrupted twice, and not saved; {goes_on}", stderr=True)
        return _end_unbegun(errors.EXIT_INTERRUPTED)


def _end_unbegun(code: int) -> int:
    """Ends a command that was stopped early, at once; returns the code elsewhere.

    Threads may still compile, and crash when Python takes its modules down. Other
    processes would wait for a farewell.
    """
    if not jax.distributed.is_initialized():
        leave_at_once(code)
    return code


def train(config: Config, stop: StopRequest, began: float) -> int:
    """Does one run, from data to figures; returns the exit code.

    Args:
      config: of the run.
      stop: says when to end before the end.
      began: when the command was given, on the clock of ``time.monotonic``.
    """
    # 1. The run folder; there may be nothing left to do in it.
    assert config.out is not None  # completed when the command line was read
    check_trackers(config)
    speaks = is_primary()
    with RunFolder(
        config.out, config.overwrite, config.resume, writes=speaks
    ) as folder:
        if config.resume and (ended := how_it_ended(folder, config)):
            if speaks:
                draw(config, folder, ended.lines)
            say(f"nothing left to do: {ended_line(ended)}")
            return _EXIT_CODES[ended.summary["status"]]

        # 2. Data, and the compiled program with its first state, or where it stopped.
        dataset = load(config)
        if config.check_labels and (wrong := label_differences(config, dataset)):
            say(f"warning: --check-labels: {wrong}", stderr=True)
        trainer = Trainer(config, dataset, parts_of(folder, config))
        keeper = Keeper(config, folder, trainer, stop)
        if not (config.resume and keeper.take_up()):
            folder.begin(
                to_json(config),
                sources=config.sources,
                parameters=trainer.parameter_count(),
                images=trainer.images,
                batch_norm_parts=trainer.batch_norm_parts,
            )
        if config.time_limit:
            keeper.prepare_for_the_limit()
        if speaks:
            say(opening_line(config, trainer, keeper))

        # 3. Epochs, until the last one or until something ends them.
        try:
            status, message = run_epochs(config, folder, trainer, keeper, stop)
            if status != NOT_FINITE:
                keeper.close(finished=status == FINISHED)
        finally:
            keeper.let_go()

        # 4. What is left of it: tables, the summary, figures.
        has_time = speaks and status not in (TERMINATED, OUT_OF_TIME)
        if has_time and config.optimizer == "swats":
            state = trainer.state
            points = so.swats_switch_points(state.opt_state, state.params)
            folder.write_switch_points(points)
        summary = summarize(keeper, trainer, status, message, began)
        folder.write_summary(summary)
        if has_time:
            draw(config, folder, keeper.lines)
        if speaks:
            say(summary_line(config, summary))
        if message:
            say(f"stopped: {message}", stderr=True)
        return _EXIT_CODES[status]


def parts_of(folder: RunFolder, config: Config) -> int | None:
    """Into how many parts batch norm divides the batches of a run that goes on.

    None for a new run, whose devices decide.

    Raises:
      UsageError: what ``config.json`` says of it cannot be.
    """
    record = folder.read_config() if config.resume else None
    if record is None or config.batch_norm == "global":
        return None
    parts = record.get("batch_norm_parts")
    images = config.batch_size // config.accumulate
    if type(parts) is not int or parts < 1 or images % parts:
        raise errors.UsageError(
            f"{folder.path / CONFIG}: damaged: batch_norm_parts is {parts!r};"
            " --overwrite begins the run anew"
        )
    return parts


def load(config: Config) -> Any:
    """Loads the data set, into memory or as a stream."""
    if config.dataset in STREAMED:
        return load_streamed(config.dataset)
    return load_dataset(config.dataset, image_size=config.image_size)


def run_epochs(
    config: Config,
    folder: RunFolder,
    trainer: Trainer,
    keeper: Keeper,
    stop: StopRequest,
) -> tuple[str, str | None]:
    """Does the epochs that are not done; returns how that ended, and why."""
    speaks = is_primary()
    console = Console(quiet=not speaks)
    display = ProgressDisplay(config.epochs, trainer.steps_per_epoch, console)
    trackers = open_trackers(config, folder.path, keeper.lines) if speaks else []
    try:
        with display:
            stop.begin()
            for epoch in range(len(keeper.lines) + 1, config.epochs + 1):
                metrics = run_epoch(trainer, epoch, display, keeper)
                keeper.record(metrics)
                for tracker in trackers:
                    tracker.log(metrics)
                display.epoch(metrics)
                check_finite(metrics)
                keeper.after_epoch(epoch)
    except NonFiniteError as error:
        return NOT_FINITE, str(error)
    except StoppedRun as stopped:
        if stopped.reason == OUT_OF_TIME and trainer.pipeline.first_result is None:
            return stopped.reason, "no step was done: --time-limit is too short"
        return stopped.reason, None
    finally:
        for tracker in trackers:
            tracker.close()
    return FINISHED, None


def run_epoch(
    trainer: Trainer, epoch: int, display: ProgressDisplay, keeper: Keeper
) -> dict[str, Any]:
    """Trains for an epoch and evaluates: a line of ``metrics.jsonl``.

    What a clock measured is under ``timing``; all the rest is the same, to the last
    bit, whenever the run is repeated on the same machine.
    """
    train = trainer.train_epoch(epoch, display.batches, keeper.pause)
    began = time.perf_counter()
    tested: dict[str, float] = {}
    for split in ("validation", "test"):
        if split in trainer.images:
            means = trainer.evaluate(split, keeper.pause)
            tested |= {f"{split}_loss": means.loss, f"{split}_accuracy": means.accuracy}
    clock = trainer.pipeline.clock
    images = trainer.steps_per_epoch * trainer.batch_size
    return {
        "epoch": epoch,
        "step": trainer.step,
        "learning_rate": trainer.learning_rate(),
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        **tested,
        **({"skipped_steps": trainer.skipped_steps()} if trainer.skips else {}),
        **({SPHERES: trainer.spheres()} if trainer.monitors else {}),
        "timing": {
            "train_seconds": clock.seconds,
            "outside_step_seconds": clock.outside,
            "test_seconds": time.perf_counter() - began,
            "images_per_second": images / clock.seconds,
        },
    }


def check_finite(metrics: Mapping[str, Any]) -> None:
    """Raises a NonFiniteError where a whole epoch went well and its test did not."""
    for split in ("validation", "test"):
        loss = metrics.get(f"{split}_loss", 0.0)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"not finite after epoch {metrics['epoch']}, step {metrics['step']}:"
                f" {split} loss {loss}, every gradient and weight finite"
            )


def draw(config: Config, folder: RunFolder, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draws those figures of a run that ended that are not there."""
    title = f"{config.optimizer}, {config.model}, {config.dataset}"
    figures = {CURVES: plot_learning_curves}
    if any(line.get(SPHERES) for line in lines):
        figures[SPHERES_FIGURE] = plot_spheres
    for name, plot in figures.items():
        if lines and not (folder.path / name).exists():
            with folder.new_file(name) as path:
                plot(lines, title, path)


def opening_line(config: Config, trainer: Trainer, keeper: Keeper) -> str:
    """The first line that a run prints."""
    layout = trainer.layout
    devices = f", on {layout.devices} devices ({layout})" if layout.devices > 1 else ""
    line = (
        f"{config.optimizer} on {config.dataset} ({trainer.images['train']:,} images)"
        f" with {config.model} ({trainer.parameter_count():,} parameters), seed"
        f" {config.seed}{devices}; compiled in {trainer.compile_seconds:.1f} s"
    )
    if keeper.resumed_at:
        line += f"; goes on after {len(keeper.lines)} epochs, at step {trainer.step}"
    elif config.resume:
        line += "; nothing to resume, so it begins"
    return line


if __name__ == "__main__":
    use_huge_pages()  # may start the program anew
    sys.exit(main())
