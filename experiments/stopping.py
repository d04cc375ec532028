"""Ctrl-C as a request, so that a run ends between two steps and not within one."""

import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """Within its context the first Ctrl-C only sets ``requested``; the next kills."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        # Only the main thread may have handlers; elsewhere Ctrl-C is not delivered.
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
