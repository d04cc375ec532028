"""Metrics for TensorBoard and Weights & Biases, beside ``metrics.jsonl``."""

import contextlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from experiments.config import Config, to_json
from experiments.distributed import is_primary
from experiments.errors import UsageError

EVENTS = "tensorboard"
WANDB_ID = "wandb_id.txt"


class Tracker(Protocol):
    """Where the metrics of a run go as well."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Takes the line of an epoch."""
        ...

    def close(self) -> None:
        """Writes out what is not yet."""
        ...


def open_trackers(
    config: Config, folder: Path, past: Iterable[Mapping[str, Any]]
) -> list[Tracker]:
    """Opens the trackers that are asked for.

    Args:
      config: says which, and is shown.
      folder: of the run.
      past: the lines of the epochs that are done, where the run resumes.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(folder / EVENTS, past))
    if config.wandb:
        trackers.append(WeightsAndBiases(folder, to_json(config)))
    return trackers


def check_trackers(config: Config) -> None:
    """Finds out, before anything is compiled, whether what is asked for can be had.

    Raises:
      UsageError: a package is missing, or the key for Weights & Biases.
    """
    if config.tensorboard:
        _import("--tensorboard", "tensorboardX", "tensorboard")
    if config.wandb:
        wandb = _import("--wandb", "wandb", "wandb")
        if is_primary():  # the others report nothing, and may have no key
            with _refusals():
                wandb.login()  # asks nobody where WANDB_MODE is offline or disabled


class TensorBoard:
    """Event files: a scalar for each number of a line, over the epochs."""

    def __init__(self, path: Path, past: Iterable[Mapping[str, Any]]) -> None:
        """Makes a file of all epochs done, so that a resumed run has one curve."""
        tensorboardx = _import("--tensorboard", "tensorboardX", "tensorboard")
        for old in path.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = tensorboardx.SummaryWriter(str(path), flush_secs=30)
        for line in past:
            self.log(line)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Adds an epoch."""
        for name, value in scalars(metrics).items():
            self._writer.add_scalar(name, value, metrics["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; one that resumes goes on under its old id."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = _import("--wandb", "wandb", "wandb")
        file = folder / WANDB_ID
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:8] + "\n")
        with _refusals():
            self._run = wandb.init(
                project="spherical_optax",
                name=folder.name,
                id=file.read_text().strip(),
                dir=str(folder),
                config=dict(config),
                resume="allow",
            )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Adds an epoch."""
        self._run.log(scalars(metrics), step=metrics["epoch"])

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line, grouped: ``test/loss``, ``timing/images_per_second``."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            for part, number in value.items():
                if isinstance(number, Mapping):  # of a layer: the same quantities
                    found |= {f"{name}/{q}/{part}": n for q, n in number.items()}
                else:
                    found[f"{name}/{part}"] = number
        elif value is not None and name != "epoch":
            split, _, quantity = name.partition("_")
            grouped = split in ("train", "validation", "test")
            found[f"{split}/{quantity}" if grouped else name] = value
    return {name: value for name, value in found.items() if value is not None}


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Makes one line of what Weights & Biases says: no account, no network."""
    try:
        yield
    except Exception as error:  # it has many classes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"--wandb: {reason}") from error


def _import(option: str, package: str, extra: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise UsageError(
            f"{option}: {package} is not installed; pip install {package}, or the extra"
            f" {extra!r} of this project"
        ) from None
