"""What every test shares: the CPU, 64-bit mode on request, strict broadcasting."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands that tests start would start themselves anew for it.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

import jax
import pytest
from hypothesis import settings
from prepared_sets import prepare_mnist

# Tests forget what they compiled and make the same functions anew; XLA compiles each
# program once in a process all the same. Commands that tests start have no part in it.
_COMPILED = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Examples are the same in every run, and a first compilation may take its time.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("default")


def pytest_unconfigure():
    """The last that pytest does."""
    _COMPILED.cleanup()


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


@pytest.fixture
def runs(tmp_path):
    """Where a test has its runs."""
    return tmp_path / "runs"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A data folder and a cache of its own for a test; the data folder."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("SPHERICAL_OPTAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "tfds"


@pytest.fixture
def tfds():
    """tensorflow-datasets, or no test."""
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def mnist(tfds, places):
    """MNIST as it is when it is prepared, with few images."""
    return prepare_mnist(tfds, places)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Frees what a module has compiled: thousands of programs, by the end."""
    yield
    jax.clear_caches()
