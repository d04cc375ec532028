"""What every test shares: the CPU, 64-bit mode on request, strict broadcasting."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands that tests start would start themselves anew for it.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

import jax
import pytest
from hypothesis import settings

# Examples are the same in every run, and a first compilation may take its time.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("default")


@pytest.fixture
def x64():
    """64-bit mode for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_ranks():
    """Arrays of different ranks do not broadcast silently."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Frees what a module has compiled: thousands of programs, by the end."""
    yield
    jax.clear_caches()
