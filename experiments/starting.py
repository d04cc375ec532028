"""What holds for a command from its first moment: how signals and its output end.

A command imports this before what takes seconds to import. Nothing happens in a process
that runs no command of this package: in a test, say, or in one that reads data.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from experiments.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

_ENDS = {
    signal.SIGINT: (EXIT_INTERRUPTED, b"interrupted\n"),
    signal.SIGTERM: (EXIT_TERMINATED, b"terminated\n"),
}
_STDOUT, _STDERR = 1, 2


def _exit(number: int, frame: FrameType | None) -> None:
    """Ends the process: there is nothing yet to save.

    Not by an exception, which is lost where it comes within a callback of an import.
    """
    code, line = _ENDS[signal.Signals(number)]
    with contextlib.suppress(OSError):
        os.write(_STDERR, line)
    os._exit(code)


@contextlib.contextmanager
def catching_ctrl_c() -> Iterator[None]:
    """Within this context Ctrl-C raises a KeyboardInterrupt, as it does elsewhere."""
    if signal.getsignal(signal.SIGINT) is not _exit:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _exit)


@contextlib.contextmanager
def holding_signals() -> Iterator[None]:
    """Within this context signals wait, also for a program that is started there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)


def leave_at_once(code: int) -> None:
    """Ends a command without taking down what it has imported."""
    if _is_command():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


class _Output(io.FileIO):
    """An output that may become impossible to write: the rest of it is dropped.

    A reader that went away knows of it; anything else is told once.
    """

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                line = f"warning: the output cannot be written: {error.strerror}\n"
                with contextlib.suppress(OSError):
                    os.write(_STDERR, line.encode())
            return memoryview(data).nbytes


def _open(stream: Any, descriptor: int) -> Any:
    """The same stream as an :class:`_Output`; None where there is none."""
    if stream is None:
        return None
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _is_command() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("experiments.")


if _is_command():
    # The help texts are set in columns, and there is no end to it in very few.
    if (_columns := os.environ.get("COLUMNS", "")).isdecimal() and int(_columns) < 40:
        os.environ["COLUMNS"] = "40"
    for _number in _ENDS:
        signal.signal(_number, _exit)
    # A program that started this one anew may have held them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    sys.stdout, sys.stderr = _open(sys.stdout, _STDOUT), _open(sys.stderr, _STDERR)
