"""The package: what the wheel holds, that it works alone, and what it promises."""

import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import public_api
import pytest

import spherical_optax as so

ROOT = Path(__file__).parent.parent


def test_public_interface_is_as_stored():
    assert public_api.described() == public_api.STORED.read_text(), (
        "the public interface changed: if that is wanted, run"
        " `python tests/public_api.py`, and tell it in CHANGELOG.md"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", folder, ROOT),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"spherical_optax-{so.__version__}.dist-info/"
    held = {name for name in names if not name.startswith(info)}
    sources = (ROOT / "spherical_optax").glob("*.py")
    assert held == {
        "spherical_optax/py.typed",
        *(f"spherical_optax/{source.name}" for source in sources),
    }
    assert info + "licenses/LICENSE" in names


def required_by(names):
    """The distributions that these need, they themselves among them."""
    found, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # only needed elsewhere
        for requirement in found[key].requires or []:
            if "extra ==" not in requirement:
                waiting.append(re.match(r"[\w.-]+", requirement)[0])
    return found.values()


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory):
    """Python in a new environment: the wheel, jax, optax, and what they need."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in required_by(["jax", "optax"]):
        tops = {Path(file).parts[0] for file in distribution.files or []}
        for top in tops - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install"),
            *("--quiet", "--no-index", "--disable-pip-version-check", wheel),
        ],
        check=True,
    )
    return python


def run_clean(python, code):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", code],
        cwd=python.parent,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


STEP_OF_EVERY_OPTIMIZER = """
import jax.numpy as jnp, optax, spherical_optax as so
for module in ("flax", "matplotlib", "experiments"):
    try:
        __import__(module)
    except ImportError:
        continue
    raise SystemExit(module + " is there")
params = {"conv": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}
for make in (so.adams, so.adamsrt, so.adamg, so.sgdmrt, so.adamp, so.sgdp, so.swats,
             so.adabound, so.lamb, so.adam_abs, so.adamh, so.muonh):
    optimizer = make(1e-3)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert jnp.isfinite(updates["conv"]).all()
print(so.__version__, so.__file__)
"""


def test_wheel_works_in_a_clean_environment(clean_python):
    version, file = run_clean(clean_python, STEP_OF_EVERY_OPTIMIZER).split()
    assert version == so.__version__
    assert Path(file).is_relative_to(clean_python.parent.parent)


SECONDS_TO_IMPORT = """
import time, jax, jax.numpy, optax
began = time.process_time()
import spherical_optax
print(time.process_time() - began)
"""


def test_imports_in_under_a_second(clean_python):
    """Beyond jax and optax, in processor time, which other work does not change."""
    seconds = [float(run_clean(clean_python, SECONDS_TO_IMPORT)) for _ in range(3)]
    assert statistics.median(seconds) < 1
