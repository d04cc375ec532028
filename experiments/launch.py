"""Runs of the training command, each claimed by one process of several.

A claim is a lock on a file that the operating system gives back when its holders are
gone, however they went. The training process holds it too: if only the process that
started it is killed, the run is still taken until its training ends.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from experiments.allocator import HUGE_PAGES
from experiments.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

TRAIN = (sys.executable, "-m", "experiments.train")
"""The training command."""
LOCKS, LOGS, COMPILED = ".locks", "logs", ".compiled"
"""Beside the runs: locks, what runs wrote to stderr, and compiled programs."""
WORTH_STARTING = 10.0
"""Seconds; with less left of a time limit no run is begun."""
TIME_IS_UP = f"time is up: with less than {WORTH_STARTING:g} s left no run is begun"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 15.0  # for a run to stop by itself when its time is up


@dataclass(frozen=True)
class Outcome:
    """How a training process ended.

    Attributes:
      code: its exit code; minus the signal that killed it.
      message: the last line that it wrote to stderr, or nothing.
      told: whether it was told to end.
    """

    code: int
    message: str
    told: bool


@contextlib.contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Holds the lock on a file; the file itself stays.

    Args:
      path: the file; it is made where it is missing.
      wait: until the lock is free.

    Yields:
      The descriptor that holds the lock, or None if another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)  # a child that has it goes on holding the lock


class Signals:
    """Within its context Ctrl-C, SIGTERM and SIGHUP are passed on to the training.

    It saves and ends; ``received`` says that nothing more is to be begun.
    """

    _KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Signals":
        self._previous = {
            kind: signal.signal(kind, self._handle) for kind in self._KINDS
        }
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """From now on this process gets the signals, and those that came before it."""
        self._process = process
        if self.received:
            self._pass_on(self.received)

    def exit_code(self) -> int:
        """What the process should end with after such a signal."""
        if self.received == signal.SIGINT:
            return EXIT_INTERRUPTED
        return EXIT_TERMINATED

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self._process and self._process.poll() is None:
            kind = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            self._process.send_signal(kind)


def run_training(
    args: Sequence[str],
    lock: int,
    log: Path,
    compiled: Path,
    signals: Signals,
    *,
    seconds: float,
    quiet: bool,
    keep_on: Callable[[], bool],
) -> Outcome:
    """Runs ``python -m experiments.train`` in a process of its own.

    Args:
      args: its options.
      lock: descriptor of the claim on the run.
      log: gets what it writes to stderr.
      compiled: folder of compiled programs, so that of several runs of one setting
        only the first compiles.
      signals: passes signals on to it.
      seconds: when it is still there long after so many, it is told to save and end.
      quiet: put away what it prints.
      keep_on: asked several times a second; once it says no, the training is ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [*TRAIN, *args],
            env=_environment(compiled),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=errors,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C comes from here alone, and once
        )
        signals.watch(process)
        told = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
                break
            late = time.monotonic() > began + seconds + _GRACE_SECONDS
            if not told and (late or not keep_on()):
                process.terminate()
                told = True
    told = told or signals.received is not None
    return Outcome(process.returncode, _last_line(log), told)


def _environment(compiled: Path) -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **HUGE_PAGES,
        **os.environ,
        "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root,
    }


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
