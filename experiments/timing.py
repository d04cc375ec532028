"""Clocks: how old the process is, and how long the device waited for Python."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def process_start() -> float:
    """When this process began, on the clock of ``time.monotonic``.

    Where the system does not tell (it does on Linux), when this module was imported.
    """
    try:
        stat = Path("/proc/self/stat").read_text()
        # Fields are counted from behind the name, which may hold anything.
        ticks = int(stat.rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED
    return min(time.monotonic() - age, _IMPORTED)


class EpochClock:
    """Seconds of training in an epoch, and in how many of them no step was running.

    ``outside`` is the time between the moment a step was last known to run (it was
    just handed over, or a wait for it just ended) and the moment the next one is handed
    over, wherever by then none was left running: an upper bound of what the device
    waited. Evaluation, checkpoints and figures are not in it.
    """

    def __init__(self, seconds: float = 0.0, outside: float = 0.0) -> None:
        self.seconds, self.outside = seconds, outside
        self._running = False
        self._since = self._busy = 0.0

    def start(self) -> None:
        """The epoch begins, or goes on; nothing changes if it already does."""
        if not self._running:
            self._running = True
            self._since = self._busy = time.perf_counter()

    def pause(self) -> None:
        """The epoch ends, or is left for a while; no step is running."""
        if self._running:
            now = time.perf_counter()
            self.seconds += now - self._since
            self.outside += now - self._busy
            self._running = False

    def step_begins(self, *, idle: bool) -> None:
        """The next step is about to be handed over; ``idle`` if none is running."""
        if idle:
            self.outside += time.perf_counter() - self._busy

    def step_runs(self) -> None:
        """A step was running until now at least."""
        self._busy = time.perf_counter()

    def so_far(self) -> float:
        """Seconds of training up to now."""
        running = time.perf_counter() - self._since if self._running else 0.0
        return self.seconds + running
