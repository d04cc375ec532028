"""How a command ends: with an exit code, and with one line if a user has to act."""

from collections.abc import Callable

from experiments import errors
from experiments.progress import say
from experiments.starting import catching_ctrl_c, leave_at_once


def run_command(act: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Does what a command does; returns its exit code, or that of what went wrong.

    Args:
      act: returns an exit code. A :class:`UsageError`, a :class:`CheckpointError` or an
        :class:`OSError` becomes a line on the standard error output.
      interrupted: what Ctrl-C prints there.
    """
    try:
        with catching_ctrl_c():
            return act()
    except errors.UsageError as error:
        say(f"error: {error}", stderr=True)
        return errors.EXIT_USAGE
    except (OSError, errors.CheckpointError) as error:
        say(f"error: {error}", stderr=True)
        return errors.EXIT_FAILED
    except KeyboardInterrupt:
        say(interrupted, stderr=True)
        # Threads that still compile crash when Python takes its modules down.
        leave_at_once(errors.EXIT_INTERRUPTED)
        return errors.EXIT_INTERRUPTED
