"""``python -m experiments.bench``."""

import experiments.starting  # noqa: F401 - before what takes seconds to import

# isort: split
import os
import sys

# JAX and PyTorch share the accelerator: neither may take all of its memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# PyTorch's threads that wait for each other must not keep the cores from what they wait
# for: on a busy machine its updates would take 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiments.bench.command import main
from experiments.bench.machine import keep_freed_memory

keep_freed_memory()  # may start the program anew
sys.exit(main())
