"""Checkpoints of a run: written by Orbax in the background, checked when read.

A checkpoint is a tree of arrays and a record, which is JSON. The record has a digest of
every array: a file system that returned other bytes than it was given is found out.
At least two are kept, so that there is one to fall back on.
"""

import hashlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.distributed import is_primary, several
from experiments.errors import UsageError

_KEEP = 2


class CheckpointError(Exception):
    """Checkpoints cannot be written, or none can be read; one line says why."""


class Checkpoints:
    """The checkpoints in a folder, which is made with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._manager: Any = None
        self._writing: int | None = None  # the step that Orbax may still be at

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, from old to new."""
        return sorted(self._open().all_steps()) if self.path.is_dir() else []

    def save(self, step: int, arrays: Any, record: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint; the arrays may change when this returns.

        Does nothing if there already is one of this step.

        Args:
          step: how far the run is.
          arrays: a tree of arrays.
          record: whatever JSON can hold.

        Raises:
          CheckpointError: this one or the one before it could not be written.
        """
        self.wait()
        if step in self.steps():
            return
        leaves = _host_copy(arrays)
        sealed = _seal(record, leaves)
        self._writing = step
        args = _orbax().args
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._open().save(
                step,
                args=args.Composite(
                    arrays=args.StandardSave(_nested(leaves)),
                    record=args.JsonSave(sealed),
                ),
            )
        except Exception as error:
            raise self._failure(error) from None

    def check(self) -> None:
        """Raises a CheckpointError if the last one is known to have failed."""
        # Not Orbax's check_for_errors: it takes the error away from the thread that
        # would delete the oldest checkpoint if all were well.
        if self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the last one; a CheckpointError if it could not be written."""
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from None
        self._writing = None

    def restore(
        self,
        like: Any,
        refuse: Callable[[Mapping[str, Any]], None],
        warn: Callable[[str], None],
    ) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that is not damaged.

        Damaged ones are set aside, under another name, and warned of.

        Args:
          like: a tree of arrays; the restored one has its structure.
          refuse: called with the record; raises if it is of another run.
          warn: called with a line for each damaged checkpoint.

        Returns:
          Arrays and record; None if there is no checkpoint.

        Raises:
          CheckpointError: there are some, and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                record = _unsealed(self._read(step, "record"))
                refuse(record["facts"])
                leaves = _verified(self._read(step, "arrays"), record["leaves"])
            except UsageError:
                raise
            except Exception as error:  # Orbax raises whatever its layers raise
                warn(self._set_aside(step, error))
            else:
                return _matched(leaves, like), record["facts"]
        if steps:
            raise CheckpointError(
                f"{self.path}: no checkpoint is left that can be read"
            )
        return None

    def seconds_to_save(self, arrays: Any) -> float:
        """Writes the arrays as a checkpoint would be, waits, and deletes them again.

        Raises:
          CheckpointError: they could not be written.
        """
        trial = Checkpoints(self.path / "trial")
        began = time.perf_counter()
        try:
            trial.save(0, arrays, {})
            trial.wait()
        finally:
            trial.close()
            shutil.rmtree(trial.path, ignore_errors=True)
        return time.perf_counter() - began

    def close(self) -> None:
        """Waits for what is being written, and lets go; errors are no longer told."""
        if self._manager is not None:
            try:
                self._manager.close()
            except Exception:
                logging.getLogger(__name__).debug("after an error", exc_info=True)
            self._manager = None

    def _open(self) -> Any:
        if self._manager is None:
            orbax = _orbax()
            options = orbax.CheckpointManagerOptions(
                max_to_keep=_KEEP,
                create=not several(),  # Orbax asks for it; the folder is there
                cleanup_tmp_directories=is_primary(),  # of a run that was killed
                multiprocessing_options=_alone(orbax),
            )
            self._manager = orbax.CheckpointManager(self.path, options=options)
        return self._manager

    def _read(self, step: int, item: str) -> Any:
        args = _orbax().args
        how = {"record": args.JsonRestore(), "arrays": args.StandardRestore()}
        return self._open().restore(step, args=args.Composite(**{item: how[item]}))[
            item
        ]

    def _failure(self, error: Exception) -> CheckpointError:
        """Clears away what was half-written, and says what is left."""
        step, self._writing = self._writing, None
        self.close()
        for unfinished in self.path.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        good = [s for s in self.steps() if s != step]
        kept = f"the last good one, of step {good[-1]}, is kept" if good else "none yet"
        return CheckpointError(
            f"{self.path}: the checkpoint of step {step} could not be written:"
            f" {_reason(error)}; {kept}"
        )

    def _set_aside(self, step: int, error: Exception) -> str:
        damaged = self.path / str(step)
        aside = self.path / f"damaged-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)
        self._open().reload()
        return f"{damaged}: damaged, set aside as {aside.name}: {_reason(error)}"


def digest(tree: Any) -> str:
    """SHA-256 over the paths, shapes, types and bits of the arrays in a tree."""
    sealed = _seal({}, _host_copy(tree))
    return sealed["digest"]


@cache
def _orbax() -> Any:
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


def _alone(orbax: Any) -> Any:
    """Of several processes each reads for itself, and one writes what all have."""
    here = jax.process_index()
    if not several():
        return orbax.options.MultiprocessingOptions()
    return orbax.options.MultiprocessingOptions(
        primary_host=here,
        active_processes={here},
        barrier_sync_key_prefix=f"process{here}",
    )


def _host_copy(tree: Any) -> dict[str, np.ndarray]:
    """The arrays by their paths, in memory of their own."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_path(path): np.array(leaf) for path, leaf in leaves}


def _path(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _nested(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Dicts within dicts, which is what Orbax reads back without being told more."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree


def _seal(facts: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The record of a checkpoint, with digests of the arrays and of itself."""
    table = {
        path: [str(leaf.dtype), list(leaf.shape), _sha256(leaf.tobytes())]
        for path, leaf in leaves.items()
    }
    record = {"facts": dict(facts), "leaves": table}
    return {**record, "digest": _sha256_of_json(record)}


def _unsealed(sealed: Any) -> dict[str, Any]:
    """The record without its digest; a ValueError if it is not as written."""
    record = {"facts": sealed["facts"], "leaves": sealed["leaves"]}
    if sealed["digest"] != _sha256_of_json(record):
        raise ValueError("the record is not what was written")
    return record


def _verified(nested: Any, table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by their paths; a ValueError if one is not as written."""
    leaves = _host_copy(nested)
    for path, (_, _, written) in table.items():
        if path not in leaves or _sha256(leaves[path].tobytes()) != written:
            raise ValueError(f"{path} is not what was written")
    return leaves


def _matched(leaves: Mapping[str, np.ndarray], like: Any) -> Any:
    """The arrays in the structure of ``like``.

    Raises:
      UsageError: ``like`` has other arrays: the program has changed since.
    """
    known, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_path(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in known}
    found = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves.items()}
    for path in [*wanted, *found]:
        here, there = wanted.get(path, "nothing"), found.get(path, "nothing")
        if here != there:
            raise UsageError(
                f"--resume: {path} is {here} here and {there} in the checkpoint; has"
                " the program changed?"
            )
    return jax.tree_util.tree_unflatten(structure, [leaves[path] for path in wanted])


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_of_json(record: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(record, sort_keys=True).encode())


def _reason(error: Exception) -> str:
    """The part of an error that a user can act on; Orbax and its layers say much."""
    text = str(error) or type(error).__name__
    system = re.search(r"([^:\n]+) \[os_error_code", text)
    return system[1].strip() if system else text.splitlines()[0]
