"""Checkpoints of a run: written by Orbax in the background, checked when read.

A checkpoint is a tree of arrays and a record, which is JSON. The record has a digest of
every array: a file system that returned other bytes than it was given is found out.
At least two are kept, so that there is one to fall back on.

Several processes write one together, each what is on its own devices, and share what is
on all. Any number of processes, with any mesh, reads it back: each what it needs.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.digests import (
    by_path,
    digest,
    first_difference,
    is_old,
    is_shared,
    sha256_of_json,
    table_of,
)
from experiments.distributed import agree, is_primary, several
from experiments.errors import CheckpointError, UsageError
from experiments.orbax_io import (
    abstract,
    copies,
    failure_of_the_system,
    nested,
    open_reader,
    open_writer,
    orbax,
    reason,
    unreadable_notes,
)

__all__ = ["Checkpoints", "digest"]

_KEEP = 2
_GOOD, _REFUSED, _DAMAGED, _UNREAD = range(4)  # what came of reading, ever worse
_UNFINISHED = ".orbax-checkpoint-tmp"  # ends the name of what is not complete


class Checkpoints:
    """The checkpoints in a folder, which is made with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._writer: Any = None
        self._reader: Any = None  # the writer, where there is one process
        self._writing: int | None = None  # the step that Orbax may still be at
        self._failed: list[BaseException] = []  # to write, here

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, from old to new."""
        if not self.path.is_dir():
            return []
        reader = self._open_reader()
        if several():
            reader.reload()  # the first process takes old ones away
        return sorted(reader.all_steps())

    def save(self, step: int, arrays: Any, record: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint; the arrays may change when this returns.

        Does nothing if there already is one of this step. Every process calls it; the
        record is that of the first.

        Args:
          step: how far the run is.
          arrays: a tree of arrays; of those that lie on devices of several processes
            each writes a part, all others are the same in all.
          record: whatever JSON can hold.

        Raises:
          CheckpointError: this one or the one before it could not be written.
        """
        self.wait()
        if agree(int(step in self.steps())):
            return
        leaves = copies(by_path(arrays))
        sealed = _seal(record, table_of(leaves))
        self._writing = step
        args = orbax().args
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._open_writer().save(
                step,
                args=args.Composite(
                    arrays=args.StandardSave(nested(leaves)),
                    record=args.JsonSave(sealed),
                ),
            )
        except Exception as error:
            raise self._failure(error) from None

    def check(self) -> None:
        """Raises a CheckpointError if the last one is known to have failed."""
        # Not Orbax's check_for_errors: it takes the error away from the thread that
        # would delete the oldest checkpoint if all were well.
        writer = self._writer
        if self._failed or (writer is not None and not writer.is_saving_in_progress()):
            self.wait()

    def wait(self) -> None:
        """Waits for the last one; a CheckpointError if it could not be written."""
        if self._writing is None:
            return
        try:
            self._writer.wait_until_finished()
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

        Damaged ones are set aside, under another name, and warned of. Every process
        calls it; what is damaged for one of them is so for all.

        Args:
          like: a tree of arrays; the restored one has its structure, and lies on
            devices of several processes where that one does.
          refuse: called with the record; raises if it is of another run.
          warn: called with a line for each damaged checkpoint.

        Returns:
          Arrays and record; None if there is no checkpoint.

        Raises:
          CheckpointError: there are some, and all are damaged, now or before; or the
            system fails to read one, which need not be damaged.
        """
        lost = self._set_unlisted_aside(warn)
        steps = self.steps()
        for step in reversed(steps):
            found, failure = None, None
            try:
                found = self._read_checked(step, like, refuse)
            except Exception as error:  # Orbax raises whatever its layers raise
                failure = error
            worst, who = _worst_of_all(failure)
            if worst == _UNREAD:
                raise self._unread(step, failure, who)
            if worst == _REFUSED:
                where = self.path / str(step)
                raise failure or UsageError(f"--resume: process {who} refuses {where}")
            if found is not None and worst == _GOOD:
                leaves, record = found
                wrong = first_difference(leaves, record["leaves"])
                if not agree(int(wrong is not None)):
                    return _in_place(leaves, like), record["facts"]
                failure = ValueError(f"{wrong or 'it'} is not what was written")
            elif failure is None or isinstance(failure, UsageError):
                failure = ValueError(f"process {who} cannot read it")
            self._set_aside(step, failure, warn)
        aside = sorted(self.path.glob("damaged-*"), key=lambda p: (len(p.name), p))
        if agree(int(bool(steps or lost or aside))):
            only = f", only {', '.join(path.name for path in aside)}" if aside else ""
            raise CheckpointError(
                f"{self.path}: no checkpoint is left that can be read{only};"
                " --overwrite begins the run anew"
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
        """Waits for what is being written, and lets go; errors are no longer told.

        Where other processes write, too, it does not wait: they may be lost.
        """
        writer = self._writer
        if several() and writer is not None and writer.is_saving_in_progress():
            self._writer = None
        for manager in {id(m): m for m in (self._writer, self._reader) if m}.values():
            try:
                manager.close()
            except Exception:
                logging.getLogger(__name__).debug("after an error", exc_info=True)
        self._writer = self._reader = None

    def _open_writer(self) -> Any:
        if self._writer is None:
            self._writer = open_writer(self.path, _KEEP, self._failed)
        return self._writer

    def _open_reader(self) -> Any:
        if self._reader is None:
            alone = not several()
            try:
                self._reader = self._open_writer() if alone else open_reader(self.path)
            except ValueError as error:  # what Orbax notes beside the checkpoints
                raise CheckpointError(f"{self.path}: damaged: {error}") from None
        return self._reader

    def _set_unlisted_aside(self, warn: Callable[[str], None]) -> bool:
        """Sets aside whatever keeps Orbax from listing the checkpoints at all.

        That is notes beside one of them which are JSON, but not Orbax's. Returns
        whether there were any.
        """
        try:
            self.steps()
            listed = True
        except CheckpointError:
            listed = False
        if not agree(int(not listed)):
            return False
        folders = [path for path in self.path.iterdir() if path.name.isdecimal()]
        wrong = {int(path.name): unreadable_notes(path) for path in folders}
        agree(0)  # before one is renamed, all have seen it
        for step, error in sorted(wrong.items()):
            if error:
                self._set_aside(step, error, warn)
        return True

    def _read_checked(
        self, step: int, like: Any, refuse: Callable[[Mapping[str, Any]], None]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays by their paths, not yet held against their digests, and the record."""
        record = _unsealed(self._read(step, "record", None))
        refuse(record["facts"])
        wanted, table = by_path(like), record["leaves"]
        _check_same_arrays(wanted, table)
        # Each what it needs; of an old one all, as its digests are of whole arrays.
        item = abstract(wanted, whole=is_old(table))
        leaves = by_path(self._read(step, "arrays", nested(item)))
        for path, (dtype, shape, _) in table.items():
            leaf = leaves.get(path)
            if leaf is None or [str(leaf.dtype), list(leaf.shape)] != [dtype, shape]:
                raise ValueError(f"{path} is not what was written")
        return {path: leaves[path] for path in wanted}, record

    def _read(self, step: int, item: str, like: Any) -> Any:
        args = orbax().args
        how = args.JsonRestore() if item == "record" else args.StandardRestore(like)
        found = self._open_reader().restore(step, args=args.Composite(**{item: how}))
        return found[item]

    def _unread(
        self, step: int, failure: Exception | None, who: int
    ) -> CheckpointError:
        """Says what keeps this process, or another one, from reading a checkpoint."""
        folder = self.path / str(step)
        file, why = folder, f"by process {who}"
        behind = failure and failure_of_the_system(failure)
        if behind:
            file, why = getattr(behind, "filename", None) or file, reason(behind)
        return CheckpointError(
            f"{file}: cannot be read: {why}; --resume tries it again, or goes on from"
            f" the one before it once {folder} is moved away"
        )

    def _failure(self, error: Exception) -> CheckpointError:
        """Clears away what was half-written, and says what is left."""
        step, self._writing = self._writing, None
        if several():
            self._writer = None  # this process ends; to close it would be to wait
        self.close()
        if is_primary():
            for unfinished in self.path.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(unfinished, ignore_errors=True)
        good = [s for s in self.steps() if s != step]
        kept = f"the last good one, of step {good[-1]}, is kept" if good else "none yet"
        return CheckpointError(
            f"{self.path}: the checkpoint of step {step} could not be written:"
            f" {reason(error)}; {kept}"
        )

    def _set_aside(
        self, step: int, error: Exception, warn: Callable[[str], None]
    ) -> None:
        damaged, aside = self.path / str(step), self.path / f"damaged-{step}"
        if is_primary():
            shutil.rmtree(aside, ignore_errors=True)
            damaged.rename(aside)
        agree(0)  # the others wait until that is done
        if self._reader is not None:
            self._reader.reload()
        warn(f"{damaged}: damaged, set aside as {aside.name}: {reason(error)}")


def _worst_of_all(failure: Exception | None) -> tuple[int, int]:
    """What came of reading where it went worst, and in which process that was."""
    mine = _GOOD
    if isinstance(failure, UsageError):
        mine = _REFUSED
    elif failure is not None:
        mine = _UNREAD if failure_of_the_system(failure) else _DAMAGED
    count = jax.process_count()
    worst, who = divmod(agree(mine * count + jax.process_index()), count)
    return worst, who


def _seal(facts: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a checkpoint, with digests of the arrays and of itself."""
    record = {"facts": dict(facts), "leaves": table}
    return {**record, "digest": sha256_of_json(record)}


def _unsealed(sealed: Any) -> dict[str, Any]:
    """The record without its digest; a ValueError if it is not as written."""
    record = {"facts": sealed["facts"], "leaves": sealed["leaves"]}
    if sealed["digest"] != sha256_of_json(record):
        raise ValueError("the record is not what was written")
    return record


def _check_same_arrays(
    wanted: Mapping[str, Any], table: Mapping[str, Sequence[Any]]
) -> None:
    """Raises a UsageError unless a checkpoint has these arrays: the program changed."""
    here = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in wanted.items()}
    there = {path: f"{dtype}{shape}" for path, (dtype, shape, _) in table.items()}
    for path in [*here, *there]:
        mine, theirs = here.get(path, "nothing"), there.get(path, "nothing")
        if mine != theirs:
            raise UsageError(
                f"--resume: {path} is {mine} here and {theirs} in the checkpoint; has"
                " the program changed?"
            )


def _in_place(leaves: Mapping[str, Any], like: Any) -> Any:
    """The arrays in the structure of ``like``, and on its devices."""

    def put(path: str, there: Any) -> Any:
        leaf = leaves[path]
        if not is_shared(there) or is_shared(leaf):
            return leaf
        return jax.make_array_from_callback(
            leaf.shape, there.sharding, lambda index: leaf[index]
        )

    return jax.tree.unflatten(
        jax.tree.structure(like), [put(*item) for item in by_path(like).items()]
    )
