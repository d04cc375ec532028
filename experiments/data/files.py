"""Files that are either whole or not there, and locks between processes."""

import contextlib
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def say(line: str) -> None:
    """Tells what takes a while, on stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def shown(name: str) -> str:
    """A file name as it can be printed: no control characters, no lone surrogates."""
    return name if name.isprintable() else ascii(name)[1:-1]


def sha256_of(path: Path) -> str:
    """The checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(status: os.stat_result) -> list[int]:
    """Changes with a file: no write leaves all of this as it was."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def delete_leftovers(path: Path) -> None:
    """Deletes what killed processes have left of new files and folders.

    Hold a lock meanwhile: what other processes are making would go as well.
    """
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when it is complete.

    It is filled under a temporary name beside ``path``, brought to the disk and
    renamed. If that fails, or the process is killed, nothing has the name; what a
    killed process left behind is deleted the next time. Hold a lock meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(path)
    made = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    try:
        yield made
        for file in made.iterdir():
            _sync(file)
        _sync(made)
        if path.exists():  # damaged, or it would have been used
            os.rename(path, made.with_name(f"{path.name}.tmp-old-{os.getpid()}"))
        os.rename(made, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    delete_leftovers(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The same for one file: a path to write to, which then takes its name.

    It needs no lock; what a killed process left behind stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.tmp-", dir=path.parent)
    os.close(handle)
    made = Path(name)
    try:
        yield made
        _sync(made)
        os.replace(made, path)
        _sync(path.parent)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Held by one process at a time; it ends with the process, however that ends.

    On Windows, which lacks this kind of lock, it does nothing: two processes then do
    the same work, and the last one's result stays.

    Args:
      path: the file that stands for what is locked.
      waiting_for: said once, if another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process: {waiting_for}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    """Brings a file or the entries of a folder to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
