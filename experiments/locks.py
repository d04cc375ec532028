"""Folders that belong to one process at a time."""

import os
import time
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


class FolderLock:
    """Held until it is released or deleted, or its process ends, in whatever way."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._release = (
            None if descriptor is None else weakref.finalize(self, os.close, descriptor)
        )

    def release(self) -> None:
        """Lets another process take the folder."""
        if self._release is not None:
            self._release()


def lock_folder(path: Path, patience: float = 0.0) -> FolderLock:
    """Takes a folder; a BlockingIOError if another process has it for longer.

    Args:
      path: of the folder.
      patience: seconds to wait for it.

    Returns:
      The lock. Where the system has no such locks, every process gets one.
    """
    if fcntl is None:
        return FolderLock()
    descriptor = os.open(path, os.O_RDONLY)
    lock = FolderLock(descriptor)
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return lock
        else:
            return lock
