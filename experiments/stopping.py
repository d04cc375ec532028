"""Requests to stop: a run ends between two steps, and not within one.

They are Ctrl-C, SIGTERM (as from a scheduler that takes the machine away) and a time
limit.
"""

import signal
import threading
import time
from types import FrameType, TracebackType

from experiments import errors
from experiments.distributed import agree

INTERRUPTED, TERMINATED, OUT_OF_TIME = "interrupted", "terminated", "out of time"

EXIT_CODES = {
    INTERRUPTED: errors.EXIT_INTERRUPTED,
    TERMINATED: errors.EXIT_TERMINATED,
    OUT_OF_TIME: errors.EXIT_OUT_OF_TIME,
}

_ORDER: tuple[str | None, ...] = (None, OUT_OF_TIME, TERMINATED, INTERRUPTED)
_REASONS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class StoppedRun(BaseException):
    """The run was asked to stop; ``reason`` says by what.

    Like KeyboardInterrupt, it is not to be taken for an error.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopRequest:
    """Within its context signals are heard; :meth:`check` raises what they ask for.

    A second Ctrl-C kills. Until :meth:`begin` there is no step to wait for, and a
    signal takes effect at once.

    Attributes:
      reserve: seconds before the deadline that ending the run takes.
      begun_at: when the first step could begin, on the clock of ``time.monotonic``;
        None before.
    """

    def __init__(self, deadline: float | None = None, reserve: float = 0.0) -> None:
        """Takes the time to have ended by, on the clock of ``time.monotonic``."""
        self.reserve = self._reserve = reserve
        self.begun_at: float | None = None
        self._deadline = deadline
        self._requested: str | None = None

    def __enter__(self) -> "StopRequest":
        # Only the main thread may have handlers; elsewhere signals are not delivered.
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in _REASONS:
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """From now on a signal waits for the next check."""
        self.begun_at = time.monotonic()

    def renew(self) -> None:
        """Another run comes, which has not begun yet."""
        self.reserve, self.begun_at = self._reserve, None

    def check(self, seconds: float = 0.0, due: bool = False) -> bool:
        """Raises a StoppedRun if a stop was requested, in this process or another.

        Args:
          seconds: until the run can check again; the time limit must not lie in it.
          due: whether something else has to be done now.

        Returns:
          Whether something has to be done in any process.
        """
        if self._requested is None and self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left < seconds + self.reserve:
                self._requested = OUT_OF_TIME
        # Both in one word, as processes have to wait for each other's.
        agreed = agree(2 * _ORDER.index(self._requested) + due)
        # Not kept where there is none: a signal may have come since.
        if (reason := _ORDER[agreed // 2]) is not None:
            self._requested = reason
            raise StoppedRun(reason)
        return agreed % 2 == 1

    def _request(self, number: int, frame: FrameType | None) -> None:
        reason = _REASONS[signal.Signals(number)]
        # Taken down first: what is raised within a callback of another library is lost.
        again, self._requested = self._requested, reason
        if reason == INTERRUPTED and (self.begun_at is None or again):
            raise KeyboardInterrupt
        if self.begun_at is None:
            raise StoppedRun(reason)
