"""Training on several devices is training on one, to rounding."""

import json
import signal

import jax
import numpy as np
import pytest
from tiny_training import numbers, run_here, start

from experiments import train
from experiments.config import parse
from experiments.errors import UsageError
from experiments.mesh import Layout, make_layout
from experiments.runs import RunFolder

EIGHT = "--xla_force_host_platform_device_count=8"
OPTIONS = ("--epochs", "2", "--optimizer", "adamsrt", "--checkpoint-every", "1")
ROUNDING = 1e-5  # of losses of two epochs, relative


def run(folder, *args):
    """Trains in a process that has eight devices; returns what it printed."""
    process = start(*OPTIONS, "--out", str(folder), *args, flags=EIGHT)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def stop_after_an_epoch(folder, *args, by):
    """The same, up to a signal."""
    process = start(*OPTIONS, "--out", str(folder), *args, flags=EIGHT)
    while "epoch 1/2" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(by)
    process.communicate(timeout=100)
    return process.returncode


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run on one device."""
    return run_here(tmp_path_factory.mktemp("mesh") / "alone", *OPTIONS)


@pytest.mark.parametrize(
    ("args", "mesh"),
    [((), "data=8,fsdp=1"), (("--mesh", "fsdp=2", "--monitor"), "data=1,fsdp=2")],
)
def test_many_devices_are_as_one(alone, tmp_path, args, mesh):
    assert f"({mesh})" in run(tmp_path / "run", *args)
    np.testing.assert_allclose(numbers(tmp_path / "run"), alone, rtol=ROUNDING)


def test_parts_of_a_batch_on_many_devices_are_those_on_one(tmp_path):
    parts = ("--accumulate", "2", "--optimizer", "lamb")
    run(tmp_path / "many", *parts, "--mesh", "data=2,fsdp=2")
    expected = run_here(tmp_path / "one", *OPTIONS, *parts)
    np.testing.assert_allclose(numbers(tmp_path / "many"), expected, rtol=ROUNDING)


def test_a_killed_run_goes_on_with_another_mesh(alone, tmp_path):
    folder = tmp_path / "run"
    mesh = ("--mesh", "data=4,fsdp=2")
    assert stop_after_an_epoch(folder, *mesh, by=signal.SIGKILL) == -signal.SIGKILL
    run(folder, "--resume", "--mesh", "data=2")
    np.testing.assert_allclose(numbers(folder), alone, rtol=ROUNDING)


def test_local_batch_norm_on_many_devices_and_on_fewer(alone, tmp_path, monkeypatch):
    """Each quarter of a batch is normalized apart, wherever the run goes on."""
    folder, local = tmp_path / "run", ("--batch-norm", "local")
    args = (*local, "--mesh", "data=4")
    assert stop_after_an_epoch(folder, *args, by=signal.SIGTERM) == 4
    run_here(folder, *OPTIONS, *local, "--resume")
    monkeypatch.setattr(train, "parts_of", lambda folder, config: 4)
    expected = run_here(tmp_path / "one", *OPTIONS, *local)
    np.testing.assert_allclose(numbers(folder), expected, rtol=ROUNDING)
    assert abs(numbers(folder)[0, 0] / alone[0, 0] - 1) > 10 * ROUNDING
    # Gradients are those of four parts, one after another; running statistics differ.
    parts = run_here(tmp_path / "parts", *OPTIONS, "--accumulate", "4")
    np.testing.assert_allclose(numbers(folder)[:, 0], parts[:, 0], rtol=ROUNDING)


@pytest.mark.parametrize("parts", ["4", 0, True, 3, None])
def test_a_record_of_parts_that_cannot_be(tmp_path, parts):
    (tmp_path / "config.json").write_text(json.dumps({"batch_norm_parts": parts}))
    folder = RunFolder(tmp_path, overwrite=False, resume=True, writes=False)
    args = ["--batch-norm", "local", "--resume", "--batch-size", "8"]
    with pytest.raises(UsageError, match=r"config\.json: damaged: batch_norm_parts"):
        train.parts_of(folder, parse(args))


def test_by_default_as_many_devices_as_can_share_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 6)
    monkeypatch.setattr(jax, "make_mesh", lambda *args, **options: None)
    assert str(make_layout(None, 64)) == "data=4,fsdp=1"
    assert str(make_layout(None, 7)) == "data=1,fsdp=1"
    assert str(make_layout("fsdp=3", 9)) == "data=1,fsdp=3"


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        ("data", "--mesh must be as"),
        ("data=0", "--mesh must be as"),
        ("model=2", "--mesh must be as"),
        ("data=1,data=1", "--mesh must be as"),
        ("data=4096", "needs 4096 devices, and there are"),
    ],
)
def test_mistakes(mesh, told):
    with pytest.raises(UsageError, match=told):
        make_layout(mesh, 4096)


def test_rows_of_a_test_that_devices_share(monkeypatch):
    monkeypatch.setattr(jax, "make_mesh", lambda *args, **options: None)
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    layout = Layout({"data": 8, "fsdp": 1})
    assert layout.shareable(355, 1000) == 360
    assert layout.shareable(10_000, 1000) == 1000
    assert layout.shareable(10_000, 1001) == 1000
    assert layout.shareable(10_000, 4) == 8


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    with pytest.raises(UsageError, match="8 devices cannot share 60 images evenly"):
        make_layout("data=8", 60)
