"""How a run can end, and the one-line errors that a user can act on."""

from collections.abc import Iterable

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NON_FINITE = 3
EXIT_TERMINATED = 4
EXIT_OUT_OF_TIME = 5
EXIT_INTERRUPTED = 130

EXIT_CODES = {
    EXIT_FINISHED: "finished",
    EXIT_FAILED: "something broke: a full disk, a defect of the program",
    EXIT_USAGE: "an option, a name or a folder cannot be used",
    EXIT_NON_FINITE: "the loss or a gradient was not finite",
    EXIT_TERMINATED: "SIGTERM: saved, --resume goes on",
    EXIT_OUT_OF_TIME: "--time-limit: saved, --resume goes on",
    EXIT_INTERRUPTED: "Ctrl-C: saved, --resume goes on",
}
"""What each exit code of the training command means."""


class UsageError(Exception):
    """A mistake in the call: one line that names the option and what it takes."""


class CheckpointError(Exception):
    """Checkpoints cannot be written, or none can be read; one line says why."""


def check_name(option: str, name: str, known: Iterable[str]) -> None:
    """Raises a UsageError that lists the known names unless ``name`` is one."""
    known = list(known)
    if name not in known:
        raise UsageError(f"{option}: unknown name {name!r}; known: {', '.join(known)}")
