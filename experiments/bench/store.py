"""Finished rows in a JSON file, so that what is done is not done again."""

import contextlib
import datetime
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.bench import machine
from experiments.bench.show import to_markdown
from experiments.errors import UsageError
from experiments.locks import lock_folder

FORMAT = 1
_RECORD_KEYS = ("bench", "row", "settings", "environment", "result")
_PATIENCE = 5.0  # seconds that another process may take to write


@dataclass(frozen=True)
class Job:
    """One row to measure.

    Attributes:
      bench: name of the measurement.
      row: name within it.
      settings: all that decides what is measured, for JSON.
    """

    bench: str
    row: str
    settings: Mapping[str, Any]

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of this row with these settings."""
        settings = json.loads(json.dumps(self.settings))
        mine = (self.bench, self.row, settings)
        return mine == tuple(record[key] for key in _RECORD_KEYS[:3])


@dataclass
class Store:
    """Records by row, settings and machine; of each the last one is kept.

    A record is up to date if machine, versions and the measured source are those of
    this process. Several processes may add to one file.

    Attributes:
      path: of the file; None keeps everything in memory alone.
      command: that is running now.
      environments: machine and versions by their digest.
      records: one a row, in the order in which they were measured.
    """

    path: Path | None
    command: str
    environments: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Reads the file, where there is one."""
        self._read()

    def _read(self) -> None:
        if self.path is not None and self.path.exists():
            document = read(self.path)
            self.environments = document["environments"]
            self.records = document["records"]

    def find(self, job: Job) -> dict[str, Any] | None:
        """The up-to-date record of a row; None if it has to be measured."""
        here = _digest(environment())
        for record in self.records:
            if job.matches(record) and record["environment"] == here:
                return record
        return None

    def check_writable(self) -> None:
        """Raises a UsageError if the file cannot be written: not after minutes."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished().touch()
            self._unfinished().unlink()
        except OSError as error:
            raise UsageError(f"--json {self.path}: {error.strerror}") from None

    def add(
        self,
        job: Job,
        result: Mapping[str, Any],
        seconds: float,
        load_before: Sequence[float] | None,
    ) -> dict[str, Any]:
        """Keeps a result, in place of what the same machine had for this row."""
        here = environment()
        digest = _digest(here)
        record = {
            "bench": job.bench,
            "row": job.row,
            "settings": dict(job.settings),
            "environment": digest,
            "command": self.command,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "load": {"before": load_before, "after": machine.load()},
            "took_seconds": round(seconds, 2),
            "result": _rounded(result),
        }
        with self._alone():
            self._read()  # what another process has added
            self.environments[digest] = here
            self.records = [r for r in self.records if not self._replaced(r, job, here)]
            self.records.append(record)
            self._write()
        return record

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        used = {record["environment"] for record in self.records}
        environments = {k: v for k, v in self.environments.items() if k in used}
        return {
            "format": FORMAT,
            "environments": environments,
            "records": self.records,
        }

    def _replaced(
        self, record: Mapping[str, Any], job: Job, here: Mapping[str, Any]
    ) -> bool:
        there = self.environments[record["environment"]]
        return job.matches(record) and there["machine"] == here["machine"]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within this context no other process writes; not for ever."""
        lock = None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(BlockingIOError):
                lock = lock_folder(self.path.parent, _PATIENCE)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _unfinished(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")

    def _write(self) -> None:
        if self.path is None:
            return
        unfinished = self._unfinished()
        try:
            unfinished.write_text(json.dumps(self.document(), indent=1) + "\n")
            os.replace(unfinished, self.path)
        finally:
            unfinished.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """The document in a file.

    Raises:
      UsageError: it cannot be read, or is something else.
    """
    try:
        document = json.loads(path.read_text())
        known = document["environments"]
        complete = document["format"] == FORMAT and all(
            all(key in record for key in _RECORD_KEYS)
            and record["environment"] in known
            for record in document["records"]
        )
        to_markdown(document)  # whatever else a table needs
    except OSError as error:
        raise UsageError(f"--json {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        complete = False
        document = {}
    if not complete:
        raise UsageError(f"--json {path}: not a file of python -m experiments.bench")
    return document


@functools.cache
def environment() -> dict[str, Any]:
    """Machine, versions and flags of this process."""
    return {
        "machine": machine.machine(),
        "versions": machine.versions(),
        "flags": machine.flags(),
    }


def _digest(description: Mapping[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _rounded(value: Any) -> Any:
    """Numbers with four significant digits: more were not measured."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
