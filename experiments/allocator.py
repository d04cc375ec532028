"""Settings of the GNU C library's allocator, which it reads when a program starts."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from experiments.starting import holding_signals

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Arrays lie in pages of 2 MB, where the system gives them to who asks.

XLA allocates the arrays of a step on a CPU anew at every step. In pages of 4 kB their
first touch costs a fifth of the time of training.
"""
_WHO_GETS_THEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Lets this process have huge pages; for that it starts anew.

    Nothing happens where the system gives them to all or to none, nor where the
    environment has tunables of the C library already. Results are the same bits.
    """
    try:
        on_request = "[madvise]" in _WHO_GETS_THEM.read_text()
    except OSError:
        on_request = False
    if on_request:
        start_with(HUGE_PAGES)


def start_with(settings: Mapping[str, str]) -> None:
    """Starts this program anew with environment variables; on Linux alone.

    Does nothing if one of them is set already: then this was done, or the user has a
    say. Signals wait until the new program is ready for them.
    """
    if sys.platform == "linux" and not settings.keys() & os.environ.keys():
        with holding_signals():
            os.execve(sys.executable, sys.orig_argv, {**os.environ, **settings})
