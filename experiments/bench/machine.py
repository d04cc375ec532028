"""Where something was measured, and with which versions."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import spherical_optax as so
from experiments.allocator import HUGE_PAGES, start_with

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")
_OPTIONAL = ("torch", "adamp", "pytorch_optimizer")
_ROOT = Path(__file__).parent.parent.parent
_SOURCES = ("spherical_optax", "experiments/models")
_TRIM = "MALLOC_TRIM_THRESHOLD_"
_BLOCK, _MAPPED, _MAPPED_SHARE = 10**7, 2.5e9, 0.2  # bytes, and of what is free


def keep_freed_memory() -> None:
    """Lets this process keep what it frees; for that it starts anew.

    Else the C library returns the arrays of a step to the system, now and then, and the
    next step waits for 30,000 pages to be mapped: twice the time. Pages are huge, as in
    training.
    """
    start_with(
        {
            **HUGE_PAGES,
            "MALLOC_MMAP_MAX_": "0",
            _TRIM: str(2**40),
            # One for Python and one for each thread of XLA. With one for all, sums are
            # slower by a third; with more, arrays go back to the system all the same.
            "MALLOC_ARENA_MAX": str(cores() + 1),
        }
    )


def map_memory() -> None:
    """Maps memory for arrays once, where this process keeps what it frees.

    Else pages are mapped while the first rows are measured: 28 ms in place of 11.
    """
    if _TRIM not in os.environ or not on_cpu():
        return
    blocks = min(_MAPPED, _MAPPED_SHARE * (free_bytes() or 0)) / _BLOCK
    arrays = [jnp.ones(_BLOCK, jnp.int8) for _ in range(int(blocks))]
    jax.block_until_ready(arrays)


def cores() -> int:
    """The cores this process may use: XLA's threads, and PyTorch's here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_cpu() -> bool:
    """Whether JAX computes on the CPU."""
    return jax.default_backend() == "cpu"


def free_bytes() -> int | None:
    """Memory of the accelerator, else what the system says is free."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores and accelerator."""
    devices = jax.devices()
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "backend": jax.default_backend(),
        "accelerator": None if on_cpu() else devices[0].device_kind,
        "devices": len(devices),
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Versions of all that takes part; None for what is not installed."""
    return {
        "python": platform.python_version(),
        "spherical_optax": so.__version__,
        "source": _source_digest(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        **{name: installed_version(name) for name in _OPTIONAL},
    }


def flags() -> dict[str, str]:
    """Environment variables that change what is compiled or how it runs."""
    known = ("JAX_", "XLA_", "OMP_", "MKL_", "TORCH", "MALLOC_", "GLIBC_")
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(known)}


def installed_version(package: str) -> str | None:
    """The version of a package, without importing it; None if it is missing."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def load() -> list[float] | None:
    """The load averages of 1, 5 and 15 minutes; None where there are none."""
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _source_digest() -> str:
    """Tells one state of the measured code from another."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
