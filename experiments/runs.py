"""The run folder: what a run leaves behind, and how an older run is protected."""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

import spherical_optax as so
from experiments.errors import UsageError
from experiments.locks import FolderLock, lock_folder
from experiments.trackers import EVENTS, WANDB_ID

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CURVES = "learning_curves.png"
SPHERES_FIGURE = "spheres.png"
SWITCH_POINTS = "switch_points.csv"
CHECKPOINTS = "checkpoints"
_UNFINISHED = ".unfinished"  # ends the name of a file that is being written
_OF_A_RUN = (
    *(METRICS, SUMMARY, CURVES, SPHERES_FIGURE, SWITCH_POINTS),
    *(WANDB_ID, CHECKPOINTS, EVENTS),
)

_PACKAGES = (
    *("jax", "jaxlib", "optax", "flax", "orbax-checkpoint"),
    *("numpy", "scikit-learn"),
)


class RunFolder:
    """A folder with one run in it.

    ``config.json`` repeats the run, ``metrics.jsonl`` has a line for each epoch, and
    ``summary.json`` says how the run ended: where it is missing, it never did. Used in
    a ``with`` statement, it is free for other processes afterwards.
    """

    def __init__(
        self,
        path: Path,
        overwrite: bool,
        resume: bool = False,
        *,
        writes: bool = True,
    ) -> None:
        """Checks that a run may go into the folder; changes nothing yet.

        Args:
          path: of the folder.
          overwrite: whether it may replace a run.
          resume: whether it may go on with one.
          writes: without, nothing is ever written: another process does that.

        Raises:
          UsageError: there is a run in it, and neither ``overwrite`` nor ``resume`` is
            asked for, or something that is not a run.
        """
        self.path, self._replaces = path, overwrite or resume
        self._writes = writes
        self._lock: FolderLock | None = None
        if not writes:
            return
        try:
            taken = path.exists() and (not path.is_dir() or any(_contents(path)))
        except OSError as error:
            raise UsageError(f"--out {path}: {error.strerror or error}") from None
        if taken and not _is_run(path):
            raise UsageError(f"--out {path}: exists and is not a run folder")
        if taken and not (overwrite or resume):
            raise UsageError(
                f"--out {path}: has a run in it; --overwrite replaces it, --resume goes"
                " on with it"
            )

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def begin(self, config: Mapping[str, Any], **facts: Any) -> None:
        """Clears the folder of an older run and writes ``config.json``.

        Only the files of a run are deleted, whatever else lies in the folder.

        Args:
          config: what ``--config`` can read again.
          **facts: of the run, for the reader.
        """
        if not self._writes:
            return
        record = {"config": config, **facts, **_provenance()}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            if (self.path / CONFIG).exists() and not self._replaces:
                raise UsageError(f"--out {self.path}: taken by another run")
            for name in _OF_A_RUN:
                _clear(self.path / name)
            self._replace(CONFIG, _json(record, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"--out {self.path}: {error.strerror or error}") from None

    def lock(self) -> None:
        """Keeps other processes out of the folder, until the folder is let go.

        Raises:
          UsageError: another one is in it.
        """
        if self._lock is not None or not self._writes:
            return
        try:
            self._lock = lock_folder(self.path)
        except BlockingIOError:
            raise UsageError(f"--out {self.path}: taken by another run") from None

    def is_gone(self) -> bool:
        """Whether ``config.json`` was there and is not, as in a folder that is moved.

        False in a process that writes nothing.
        """
        return self._writes and not (self.path / CONFIG).exists()

    def read_config(self) -> dict[str, Any] | None:
        """``config.json``; None if there is none."""
        return _read_object(self.path / CONFIG)

    def resume(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Brings the files to where the run goes on: after so many epochs."""
        if not self._writes:
            return
        self._replace(METRICS, "".join(_json(line) + "\n" for line in lines))
        for name in (SUMMARY, CURVES, SPHERES_FIGURE):
            (self.path / name).unlink(missing_ok=True)

    def add_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Appends the line of an epoch; it is in the file when this returns."""
        if not self._writes:
            return
        with _named(self.path / METRICS) as path, open(path, "a") as file:
            file.write(_json(metrics) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of all epochs so far."""
        path = self.path / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def read_summary(self) -> dict[str, Any]:
        """How the run ended; empty if it did not.

        Raises:
          UsageError: it is damaged.
        """
        return _read_object(self.path / SUMMARY) or {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes how the run ended."""
        self._replace(SUMMARY, _json(summary, indent=2) + "\n")

    def write_switch_points(self, points: Sequence[tuple[str, int, float]]) -> None:
        """Writes the table of the leaves that SWATS took over to SGD."""
        lines = ["path,step,sgd_learning_rate"]
        lines += [f"{path},{step},{rate:.6g}" for path, step, rate in points]
        self._replace(SWITCH_POINTS, "\n".join(lines) + "\n")

    def _replace(self, name: str, text: str) -> None:
        """Writes a file: all of it or, if the process is killed, none of it."""
        if not self._writes:
            return
        with self.new_file(name) as path:
            path.write_text(text)

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A path to write a file to, which takes its name when it is complete."""
        with _named(self.path / name) as path:
            unfinished = path.with_name(name + _UNFINISHED)
            yield unfinished
            unfinished.replace(path)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[Path]:
    """Gives an error that names no file, as of a full disk, the name of this one."""
    try:
        yield path
    except OSError as error:
        if error.filename is None:
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise


def _clear(path: Path) -> None:
    """Deletes a file or a folder; of a link to a folder, what is in that folder.

    The link stays: what comes next goes where it leads, as onto another disk.
    """
    if not path.is_symlink() or not path.is_dir():
        _delete(path)
        return
    for inside in path.iterdir():
        _delete(inside)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _contents(path: Path) -> Iterator[Path]:
    """What is in a folder, but for files that a kill left unfinished."""
    return (p for p in path.iterdir() if not p.name.endswith(_UNFINISHED))


def _read_object(path: Path) -> dict[str, Any] | None:
    """A file of a run; None if there is none."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: damaged: {error}; --overwrite begins the run anew"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: damaged: no object; --overwrite begins the run anew")
    return found


def _is_run(path: Path) -> bool:
    """Whether the folder's config.json was written by :class:`RunFolder`."""
    try:
        record = json.loads((path / CONFIG).read_text())
        return "config" in record and "spherical_optax" in record["versions"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _provenance() -> dict[str, Any]:
    """Versions, machine and command: what else the numbers may depend on."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    changes = _git("status", "--porcelain")
    return {
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "experiments.train", *sys.argv[1:]],
        "versions": {
            "python": platform.python_version(),
            "spherical_optax": so.__version__,
            **versions,
        },
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("JAX_", "XLA_"))
        },
    }


def _processor() -> str | None:
    """The name of the processor; None where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, None)


def _git(*args: str) -> str | None:
    """What git says about the source; None without git or outside a repository."""
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _json(record: Any, indent: int | None = None) -> str:
    """JSON as the standard has it: a number that is not finite becomes null."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
