"""Orbax as checkpoints need it: silent, and with one process or several."""

import errno
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.digests import is_shared
from experiments.distributed import several

_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_BARRIER_SECONDS = 300  # after which a process that waits for others gives up


def open_writer(path: Path, keep: int, failed: list[BaseException]) -> Any:
    """A manager that all processes write with, together; it keeps the newest few.

    What goes wrong in this one of several processes is added to ``failed``.
    """
    everyone = set(range(jax.process_count())) if several() else None
    options = orbax().CheckpointManagerOptions(
        max_to_keep=keep,
        create=not several(),  # Orbax asks for it; the folder is there
        cleanup_tmp_directories=True,  # of a run that was killed
        multiprocessing_options=orbax().options.MultiprocessingOptions(
            active_processes=everyone
        ),
        async_options=orbax().AsyncOptions(
            timeout_secs=_BARRIER_SECONDS,
            barrier_sync_fn=_barrier(everyone, failed) if everyone else None,
        ),
    )
    return orbax().CheckpointManager(path, options=options)


def _barrier(everyone: set[int], failed: list[BaseException]) -> Callable[..., None]:
    """Waits for all processes, but not with an error that they know nothing of.

    Orbax meets them even then, and would wait for minutes before it told of the error.
    """
    meet = orbax().multihost.get_barrier_sync_fn(processes=everyone)

    def barrier(key: str, timeout_ms: int) -> None:
        error = sys.exc_info()[1]
        if error is not None:
            failed.append(error)
            raise error
        meet(key=key, timeout_ms=timeout_ms)

    return barrier


def open_reader(path: Path) -> Any:
    """A manager that one of several processes reads with, and asks no other."""
    here = jax.process_index()
    options = orbax().CheckpointManagerOptions(
        read_only=True,
        multiprocessing_options=orbax().options.MultiprocessingOptions(
            primary_host=here,
            active_processes={here},
            barrier_sync_key_prefix=f"process{here}",
        ),
    )
    return orbax().CheckpointManager(path, options=options)


def unreadable_notes(step: Path) -> Exception | None:
    """What Orbax says against the notes beside a checkpoint; None if nothing.

    It reads those of all when it opens a folder: so it is shown a folder with this one.
    """
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / step.name).symlink_to(step, target_is_directory=True)
        try:
            open_reader(Path(alone)).close()
        except ValueError as error:
            return error
    return None


@cache
def orbax() -> Any:
    """Orbax, imported when it is needed, and silent: what fails is told by us."""
    import orbax.checkpoint

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Nor what asyncio says of the other leaves when one could not be written.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    told = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Reads of a damaged checkpoint that come back after the first has failed.
        if str(unraisable.exc_value) != "Event loop is closed":
            told(unraisable)

    sys.unraisablehook = hook
    return orbax.checkpoint


def copies(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays in memory of their own; those of several processes on the devices."""
    shared = {path: leaf for path, leaf in leaves.items() if is_shared(leaf)}
    if jax.default_backend() == "cpu":
        # Orbax would look at the devices' own memory, which the next step reuses.
        shared = _copy_on_device(shared)
    return {
        path: shared[path] if path in shared else np.array(leaf)
        for path, leaf in leaves.items()
    }


@jax.jit
def _copy_on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Dicts within dicts, which is what Orbax reads back without being told more."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree


def abstract(leaves: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """What Orbax has to make: arrays on devices of several processes, or in memory."""

    def shape_of(leaf: Any) -> Any:
        if is_shared(leaf) and not whole:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return np.empty(leaf.shape, leaf.dtype)

    return {path: shape_of(leaf) for path, leaf in leaves.items()}


def reason(error: BaseException) -> str:
    """The part of an error that a user can act on; Orbax and its layers say much."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code, text = _system_code(error), str(error) or type(error).__name__
    return text.splitlines()[0] if code is None else os.strerror(code)


def failure_of_the_system(error: BaseException) -> BaseException | None:
    """What kept the system from reading, where that is behind an error; else None.

    It says nothing of what is written: a disk that does not answer, too many open
    files, too little memory. A file that is missing, or is none, is not of these.
    """
    behind: BaseException | None = error
    while behind is not None:
        code = _system_code(behind)
        if isinstance(behind, (MemoryError, jax.errors.JaxRuntimeError)):
            return behind
        if code is not None and code not in _NO_SUCH_FILE:
            return behind
        behind = behind.__cause__ or behind.__context__
    return None


def _system_code(error: BaseException) -> int | None:
    """The number that the system gave an error; None if it is not the system's."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    return int(found[1]) if found else None
