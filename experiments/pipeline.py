"""Calls of the compiled step on their way, ahead of what they return."""

import time
from collections import deque

from experiments.steps import Tally
from experiments.timing import EpochClock

# So many calls may be on their way before the tally of the oldest is read: the device
# never waits for Python, and Python never runs far ahead of the device.
_CALLS_OF_ONE_STEP = 4
_CALLS_OF_MANY_STEPS = 1
# A call of many steps lasts about this long, as signals wait for its end. Slow steps
# are handed over so far ahead at most, though one always is.
_SECONDS_A_CALL = 5.0
_FIRST_CALL = 8  # steps, while it is not known how long one takes


class Pipeline:
    """Keeps the device busy, and measures it.

    Attributes:
      clock: of the epoch.
      first_result: when the first call came back, on the clock of ``time.monotonic``.
    """

    def __init__(self, *, many_steps: bool) -> None:
        self.clock = EpochClock()
        self.first_result: float | None = None
        self._many_steps = many_steps
        self._depth = _CALLS_OF_MANY_STEPS if many_steps else _CALLS_OF_ONE_STEP
        self._calls: deque[tuple[Tally, int]] = deque()
        self._step_seconds = 0.0  # a running mean; 0 while it is not known
        self._last_result = 0.0

    def steps_of_next_call(self, left: int) -> int:
        """How many of the steps left to do in one call."""
        if not self._many_steps:
            return 1
        if not self._step_seconds:
            return min(left, _FIRST_CALL)
        return max(1, min(left, int(_SECONDS_A_CALL / self._step_seconds)))

    def seconds_ahead(self, steps: int) -> float:
        """Until so many steps, and those on their way, will be done."""
        return self._step_seconds * (steps + sum(steps for _, steps in self._calls))

    def begin_call(self) -> None:
        """A call is about to be made."""
        self.clock.start()
        idle = all(_is_done(tally) for tally, _ in self._calls)
        self.clock.step_begins(idle=idle)
        if idle:
            self._last_result = time.perf_counter()

    def add(self, tally: Tally, steps: int) -> None:
        """Takes what the call returned."""
        self.clock.step_runs()
        self._calls.append((tally, steps))

    def full(self) -> bool:
        """Whether the oldest call is to be waited for before the next is made."""
        if not self._step_seconds:
            return bool(self._calls)
        soon_done = int(_SECONDS_A_CALL / self._step_seconds)
        return len(self._calls) > max(1, min(self._depth, soon_done))

    def empty(self) -> bool:
        """Whether no call is on its way."""
        return not self._calls

    def oldest(self) -> Tally:
        """Waits for the oldest call."""
        tally, steps = self._calls.popleft()
        if not _is_done(tally):
            tally.loss.block_until_ready()
            self.clock.step_runs()
        now = time.perf_counter()
        seconds = (now - self._last_result) / steps
        self._last_result = now
        if self.first_result is None:
            self.first_result = time.monotonic()
            self._step_seconds = seconds
        self._step_seconds += 0.1 * (seconds - self._step_seconds)
        return tally

    def stop(self) -> None:
        """Ends the epoch, or leaves it where it is."""
        if self._calls:
            self._calls[-1][0].loss.block_until_ready()
            self._calls.clear()
            self.clock.step_runs()
        self.clock.pause()


def _is_done(tally: Tally) -> bool:
    return tally.loss.is_ready()  # pyright: ignore[reportAttributeAccessIssue]
