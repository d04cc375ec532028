"""A time limit that also holds for what cannot be asked to stop: a compiler, a step."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def calling_at(end: float, act: Callable[[], object]) -> Iterator[None]:
    """Calls something in another thread if its context has not ended by then.

    Args:
      end: on the clock of ``time.monotonic``; it may be infinite.
      act: what to call; the context ends no earlier than this.
    """
    seconds = min(max(end - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
