"""How a run can end, and the one-line errors that a user can act on."""

from collections.abc import Iterable

EXIT_FINISHED = 0
EXIT_FAILED = 1  # something broke: a full disk, a defect of the program
EXIT_USAGE = 2  # an option, a name or a folder that cannot be used
EXIT_NON_FINITE = 3  # the loss or a gradient was not finite
EXIT_INTERRUPTED = 130  # Ctrl-C


class UsageError(Exception):
    """A mistake in the call: one line that names the option and what it takes."""


def check_name(option: str, name: str, known: Iterable[str]) -> None:
    """Raises a UsageError that lists the known names unless ``name`` is one."""
    known = list(known)
    if name not in known:
        raise UsageError(f"{option}: unknown name {name!r}; known: {', '.join(known)}")
