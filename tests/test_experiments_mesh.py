"""Training on several devices is training on one, to rounding."""

import json
import signal

import jax
import numpy as np
import pytest
from tiny_training import start

from experiments.errors import UsageError
from experiments.mesh import make_layout

EIGHT = "--xla_force_host_platform_device_count=8"
OPTIONS = ("--epochs", "2", "--optimizer", "adamsrt", "--checkpoint-every", "1")


def run(folder, *args):
    """Trains in a process that has eight devices; returns what it printed."""
    process = start(*OPTIONS, "--out", str(folder), *args, flags=EIGHT)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def numbers(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return np.array([[line[name] for name in names] for line in lines])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run on one device."""
    folder = tmp_path_factory.mktemp("mesh") / "alone"
    assert " devices (" not in run(folder, "--mesh", "data=1")
    return numbers(folder)


@pytest.mark.parametrize(
    ("args", "mesh"),
    [
        ((), "data=8,fsdp=1"),
        (("--mesh", "data=4,fsdp=2"), "data=4,fsdp=2"),
        (("--mesh", "fsdp=2", "--monitor"), "data=1,fsdp=2"),
    ],
)
def test_many_devices_are_as_one(alone, tmp_path, args, mesh):
    assert f"({mesh})" in run(tmp_path / "run", *args)
    np.testing.assert_allclose(numbers(tmp_path / "run"), alone, rtol=1e-5)


def test_a_killed_run_goes_on_with_another_mesh(alone, tmp_path):
    folder = tmp_path / "run"
    process = start(
        *OPTIONS, "--out", str(folder), "--mesh", "data=4,fsdp=2", flags=EIGHT
    )
    while "epoch 1/2" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(folder, "--resume", "--mesh", "data=2")
    np.testing.assert_allclose(numbers(folder), alone, rtol=1e-5)


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


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    with pytest.raises(UsageError, match="8 devices cannot share 60 images evenly"):
        make_layout("data=8", 60)
