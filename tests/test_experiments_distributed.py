"""Real processes that train one model, over this machine's own network."""

import json
import signal
import socket
import time

import numpy as np
import pytest
from tiny_training import start, summary_of

from experiments.distributed import join
from experiments.errors import UsageError

OPTIONS = ("--epochs", "3", "--optimizer", "adamsrt", "--checkpoint-every", "1")


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def start_all(folder, processes, devices, *args):
    """Starts processes that train together."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(
            *OPTIONS,
            *("--out", str(folder), "--coordinator", address),
            *("--processes", str(processes), "--process", str(number), *args),
            flags=f"--xla_force_host_platform_device_count={devices}",
        )
        for number in range(processes)
    ]


def numbers(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return np.array([[line[name] for name in names] for line in lines])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process, on one device."""
    folder = tmp_path_factory.mktemp("distributed") / "alone"
    process = start(*OPTIONS, "--out", str(folder))
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    return numbers(folder)


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"), [(2, 2, None), (4, 1, "data=2,fsdp=2")]
)
def test_several_processes_are_as_one(alone, tmp_path, processes, devices, mesh):
    folder = tmp_path / "run"
    options = ("--mesh", mesh) if mesh else ()
    running = start_all(folder, processes, devices, *options)
    told = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * processes, told
    assert "on 4 devices" in told[0][0]
    assert all("epoch" not in out for out, _ in told[1:])  # one speaks for all
    np.testing.assert_allclose(numbers(folder), alone, rtol=1e-5)
    assert summary_of(folder)["status"] == "finished"


def test_when_one_is_killed_the_others_end_and_fewer_go_on(alone, tmp_path):
    folder = tmp_path / "run"
    first, second = start_all(folder, 2, 1)
    while "epoch 1/3" not in (line := first.stdout.readline()):
        assert line, first.stderr.read()
    second.send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, error = first.communicate(timeout=120)
    assert time.monotonic() - began < 90
    assert first.returncode != 0
    assert "another process has ended" in error or "another task died" in error
    second.communicate()
    process = start(*OPTIONS, "--out", str(folder), "--resume")
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert "goes on after" in out
    np.testing.assert_allclose(numbers(folder), alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((None, 2, 0), "need --coordinator"),
        (("host:1", None, 0), "needs --processes N"),
        (("host:1", 2, 2), "--process must be from 0 to 1, got 2"),
        (("host", 2, 0), "HOST:PORT, got host"),
        (("auto", 2, 0), "finds --processes and --process itself"),
        (("auto", None, None), "--coordinator auto: "),
    ],
)
def test_mistakes(options, told):
    with pytest.raises(UsageError, match=told):
        join(*options)
