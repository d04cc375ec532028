"""Several processes that train one model: how they meet, agree and part.

Every process runs the same program on the devices of all. The first one, the primary,
writes the run folder and speaks; the others only read. What depends on a clock or on a
signal, as to stop or to save, has to be agreed on before anyone does it.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from experiments.errors import EXIT_FAILED, UsageError

T = TypeVar("T")
_MEETING_SECONDS = 300
_SILENCE_SECONDS = 30
"""A process that was not heard of for so long is taken for lost."""
_FAREWELL_SECONDS = 120
"""So long one waits for the others at its end; the first still draws figures."""
_LAST_WORD_SECONDS = 3


class LostProcessError(Exception):
    """Another process has ended, or cannot be reached."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meets the other processes, before anything else is asked of JAX.

    Args:
      coordinator: address of the first process as ``host:port``; ``"auto"`` to find it,
        and the other two, in the environment (SLURM, Kubernetes, Cloud TPU, Open MPI);
        None for a process that is alone.
      processes: how many there are.
      process: the number of this one, from 0.

    Raises:
      UsageError: the three do not fit together.
      LostProcessError: the others did not come.
    """
    explicit = processes is not None or process is not None
    if coordinator is None:
        if explicit:
            raise UsageError("--processes and --process need --coordinator HOST:PORT")
        return
    if coordinator != "auto":
        if processes is None or process is None:
            raise UsageError(
                "--coordinator HOST:PORT needs --processes N and --process I"
            )
        if not 0 <= process < processes:
            raise UsageError(
                f"--process must be from 0 to {processes - 1}, got {process}"
            )
        if not coordinator.rpartition(":")[2].isdecimal():
            raise UsageError(
                f"--coordinator must be auto or HOST:PORT, got {coordinator}"
            )
    elif explicit:
        raise UsageError("--coordinator auto finds --processes and --process itself")
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            processes,
            process,
            local_device_ids=_gpus_of_the_machine() if coordinator == "auto" else None,
            initialization_timeout=_MEETING_SECONDS,
            heartbeat_timeout_seconds=_SILENCE_SECONDS,
            shutdown_timeout_seconds=_FAREWELL_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if coordinator == "auto":
            raise UsageError(f"--coordinator auto: {reason}") from None
        raise LostProcessError(
            f"the processes did not meet at {coordinator}: {reason}"
        ) from None


def _gpus_of_the_machine() -> list[int] | None:
    """The GPUs of a process that SLURM has started alone on its machine.

    JAX would give it the first alone, as if there were a process for each.
    """
    tasks, machines, gpus = (
        os.environ.get(f"SLURM_{name}") for name in ("NTASKS", "NNODES", "GPUS_ON_NODE")
    )
    if tasks is None or tasks != machines or gpus is None or not gpus.isdecimal():
        return None
    return list(range(int(gpus)))


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def agree(number: int) -> int:
    """The largest of the numbers that the processes call this with."""
    if not several():
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def add_up(numbers: Sequence[int]) -> list[int]:
    """The sums, over the processes, of the numbers that they call this with.

    Each is from 0 to 2^64 - 1, and so is the sum: what is above is left out.
    """
    if not several() or not numbers:
        return list(numbers)
    from jax.experimental import multihost_utils

    # In halves, as JAX has no wide integers unless it is told to.
    halves = np.array(numbers, np.uint64).view(np.uint32)
    found = np.asarray(multihost_utils.process_allgather(halves))
    return np.ascontiguousarray(found).view(np.uint64).sum(0, np.uint64).tolist()


def to_host(tree: Any) -> Any:
    """Arrays of all processes as arrays of this one."""
    if not several():
        return tree
    from jax.experimental import multihost_utils

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def leave_the_lost(error: Exception) -> None:
    """Ends this process now: the others would never answer its farewell."""
    reason = str(error).partition("\n")[0]
    print(
        f"error: process {jax.process_index()}: another process has ended or cannot be"
        f" reached ({reason}); start all of them again with --resume",
        file=sys.stderr,
        flush=True,
    )
    leave()


def leave(code: int = EXIT_FAILED) -> None:
    """Where there are others, ends this process now, so that they do not wait for it.

    They notice, and end as well: when the first one ends, in no time. So it leaves them
    a moment in which to say what they have met themselves.
    """
    if jax.distributed.is_initialized() and several():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_primary():
            time.sleep(_LAST_WORD_SECONDS)
        os._exit(code)
