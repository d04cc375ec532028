"""``python -m experiments.bench``."""

import os
import sys

# JAX and PyTorch share the accelerator: neither may take all of its memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# PyTorch's threads that wait for each other must not keep the cores from what they wait
# for: on a busy machine its updates would take 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What is freed stays with the process. Else the C library returns the arrays of a step to
# the system, now and then, and the next step waits for 30,000 pages to be mapped anew:
# twice the time. It reads these when the program starts.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
if sys.platform == "linux" and not KEEP_FREED_MEMORY.keys() & os.environ.keys():
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_FREED_MEMORY})

from experiments.bench.command import main

sys.exit(main())
