"""Folders that belong to one process at a time."""

import os
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


def lock_folder(path: Path) -> FolderLock:
    """Takes a folder; a BlockingIOError if another process has it.

    Where the system has no such locks, every process gets one.
    """
    if fcntl is None:
        return FolderLock()
    descriptor = os.open(path, os.O_RDONLY)
    lock = FolderLock(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass
    return lock
