"""The run folder: what a run leaves behind, and how an older run is protected."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import spherical_optax as so
from experiments.errors import UsageError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CURVES = "learning_curves.png"
SWITCH_POINTS = "switch_points.csv"
_FILES = (METRICS, SUMMARY, CURVES, SWITCH_POINTS, CONFIG)  # the mark goes last

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")


class RunFolder:
    """A folder with one run in it.

    ``config.json`` repeats the run, ``metrics.jsonl`` has a line for each epoch, and
    ``summary.json`` says how the run ended: where it is missing, it never did.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Checks that a run may go into the folder; changes nothing yet.

        Raises:
          UsageError: there is a run in it and ``overwrite`` is false, or something
            that is not a run.
        """
        self.path, self._overwrite = path, overwrite
        try:
            taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        except OSError as error:
            raise UsageError(f"--out {path}: {error.strerror}") from None
        if taken and not _is_run(path):
            raise UsageError(f"--out {path}: exists and is not a run folder")
        if taken and not overwrite:
            raise UsageError(f"--out {path}: has a run in it; --overwrite replaces it")

    def begin(self, config: Mapping[str, Any], **facts: Any) -> None:
        """Clears the folder of an older run and writes ``config.json``.

        Only the files of a run are deleted, whatever else lies in the folder.

        Args:
          config: what ``--config`` can read again.
          **facts: of the run, for the reader.
        """
        record = {"config": config, **facts, **_provenance()}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._overwrite:
                for name in _FILES:
                    (self.path / name).unlink(missing_ok=True)
            with open(self.path / CONFIG, "x") as file:  # of two runs, one goes on
                file.write(_json(record, indent=2) + "\n")
        except FileExistsError:
            raise UsageError(f"--out {self.path}: taken by another run") from None
        except OSError as error:
            raise UsageError(f"--out {self.path}: {error.strerror}") from None

    def add_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Appends the line of an epoch; it is in the file when this returns."""
        with open(self.path / METRICS, "a") as file:
            file.write(_json(metrics) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of all epochs so far."""
        path = self.path / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes how the run ended."""
        (self.path / SUMMARY).write_text(_json(summary, indent=2) + "\n")

    def write_switch_points(self, points: Sequence[tuple[str, int, float]]) -> None:
        """Writes the table of the leaves that SWATS took over to SGD."""
        lines = ["path,step,sgd_learning_rate"]
        lines += [f"{path},{step},{rate:.6g}" for path, step, rate in points]
        (self.path / SWITCH_POINTS).write_text("\n".join(lines) + "\n")


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
            "cpus": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("JAX_", "XLA_"))
        },
    }


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
