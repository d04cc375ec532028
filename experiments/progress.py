"""What a run shows: a line for each epoch, and a bar where there is a terminal."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import starting  # noqa: F401 - the output may go away
from experiments.steps import Means


def say(line: str, *, stderr: bool = False) -> None:
    """Prints a line as it is."""
    _print_as_it_is(Console(stderr=stderr), line)


def _print_as_it_is(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, emoji=False, highlight=False)


class ProgressDisplay:
    """Shows a run as it goes; in a log without a terminal only the epochs' lines."""

    def __init__(self, epochs: int, steps_per_epoch: int, console: Console) -> None:
        self._console = console
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=epochs * steps_per_epoch, epoch=1, numbers=""
        )

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def batches(self, epoch: int, means: Means, speed: float) -> None:
        """Moves the bar to the batches of an epoch that are done, with their means."""
        self._bar.update(
            self._task,
            completed=(epoch - 1) * self._steps_per_epoch + means.batches,
            epoch=epoch,
            numbers=(
                f"loss {means.loss:.4f}  accuracy {means.accuracy:.2%}"
                f"  {speed:,.0f} images/s"
            ),
        )

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Prints the line of an epoch."""
        width = len(str(self._epochs))
        line = (
            f"epoch {metrics['epoch']:{width}d}/{self._epochs}"
            f"  train loss {metrics['train_loss']:.4f}"
            f"  accuracy {metrics['train_accuracy']:.2%}"
            f"  test loss {metrics['test_loss']:.4f}"
            f"  accuracy {metrics['test_accuracy']:.2%}"
            f"  {metrics['timing']['images_per_second']:,.0f} images/s"
        )
        _print_as_it_is(self._console, line)
