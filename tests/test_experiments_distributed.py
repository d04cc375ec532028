"""Real processes that train one model, over this machine's own network."""

import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from free_port import free_port
from tiny_training import numbers, results, run_here, start, summary_of

from experiments.config import parse
from experiments.distributed import join
from experiments.errors import UsageError

OPTIONS = ("--epochs", "3", "--optimizer", "adamsrt", "--checkpoint-every", "1")
LAUNCH = Path(__file__).parent.parent / "docs/launch"


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


def wait_for_first_checkpoint(running, folder):
    """Returns when that of the first epoch is complete."""
    while not (folder / "checkpoints/22").is_dir():
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)


def all_end(running):
    """What they had to say, as they ended in time."""
    began = time.monotonic()
    told = [process.communicate(timeout=120) for process in running]
    assert time.monotonic() - began < 90
    return told


def slurm(processes):
    """What all processes of a job under SLURM find in their environment."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(processes),
        "JAX_COORDINATOR_PORT": str(free_port()),
    }


@pytest.fixture(scope="module")
def alone_folder(tmp_path_factory):
    """Of the same run in one process, on one device, watched."""
    folder = tmp_path_factory.mktemp("distributed") / "alone"
    run_here(folder, *OPTIONS, "--monitor")
    return folder


@pytest.fixture(scope="module")
def alone(alone_folder):
    """What came of it."""
    return numbers(alone_folder)


def test_two_processes_of_two_devices_under_slurm_are_as_one(alone, tmp_path):
    folder, job = tmp_path / "run", slurm(2)
    running = [
        start(
            *(*OPTIONS, "--out", str(folder), "--coordinator", "auto"),
            flags="--xla_force_host_platform_device_count=2",
            environment={**job, "SLURM_PROCID": number, "SLURM_LOCALID": number},
        )
        for number in ("0", "1")
    ]
    told = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert "on 4 devices" in told[0][0]
    assert "epoch" not in told[1][0]  # one speaks for all
    np.testing.assert_allclose(numbers(folder), alone, rtol=1e-5)
    assert summary_of(folder)["status"] == "finished"


def test_when_one_of_four_is_killed_the_others_end_and_one_goes_on(
    alone, alone_folder, tmp_path
):
    folder = tmp_path / "run"
    running = start_all(folder, 4, 1, "--mesh", "data=2,fsdp=2", "--monitor")
    wait_for_first_checkpoint(running, folder)
    running[2].send_signal(signal.SIGKILL)
    told = all_end(running)
    for number in (0, 1, 3):
        assert running[number].returncode != 0
        error = told[number][1]
        assert "another process has ended" in error or "another task died" in error
    one = run_here(folder, *OPTIONS, "--monitor", "--resume")
    assert summary_of(folder)["resumed_at_steps"] == [22]
    np.testing.assert_allclose(one, alone, rtol=1e-5)
    # The first epoch was that of all four, each with a part of the weights.
    found, expected = (results(f)[0]["spheres"] for f in (folder, alone_folder))
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf == pytest.approx(expected[path], rel=1e-3, abs=1e-6)


def test_what_the_first_alone_refuses_ends_both_at_once(tmp_path):
    """It alone looks at the run folder; the other one waits for it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "letter.txt").write_text("not a run")
    running = start_all(folder, 2, 1)
    (_, first), (_, second) = all_end(running)
    assert running[0].returncode == 2
    assert first == f"error: --out {folder}: exists and is not a run folder\n"
    assert running[1].returncode != 0
    assert "another process has ended" in second or "another task died" in second


def test_what_both_refuse_each_of_them_says(tmp_path):
    running = start_all(tmp_path / "run", 2, 1, "--batch-size", "100000")
    for process, (_, error) in zip(running, all_end(running), strict=True):
        assert process.returncode == 2
        assert error.startswith("error: --batch-size must be at most ")
        assert error.count("\n") == 1


def test_when_the_disk_of_one_of_two_is_full_both_end_and_one_goes_on(alone, tmp_path):
    folder = tmp_path / "run"
    running = start_all(folder, 2, 1, "--mesh", "fsdp=2")
    wait_for_first_checkpoint(running, folder)
    # From now on no file of the second process may grow any larger.
    resource.prlimit(running[1].pid, resource.RLIMIT_FSIZE, (200, 200))
    told = all_end(running)
    assert running[0].returncode != 0
    assert running[1].returncode == 1
    found = re.search("last good one, of step ([0-9]+), is kept", told[1][1])
    assert found, told[1]
    assert "could not be written: File too large" in told[1][1]
    one = run_here(folder, *OPTIONS, "--resume")
    assert summary_of(folder)["resumed_at_steps"] == [int(found[1])]
    np.testing.assert_allclose(one, alone, rtol=1e-5)


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


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_NNODES": "2"}, None),
    ],
)
def test_a_process_that_has_a_machine_to_itself_has_all_its_gpus(
    monkeypatch, environment, expected
):
    """JAX would take the first one alone."""
    for name in ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked = {}
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **options: asked.update(options)
    )
    join("auto", None, None)
    devices = asked["local_device_ids"]
    assert devices == (None if expected is None else list(range(expected)))


def check_command(words):
    """The options of a launch file are options, and go on where a run stopped."""
    start = words.index("experiments.train")
    assert words[start - 2 : start] == [*words[start - 2 : start - 1], "-m"]
    config = parse(words[start + 1 :])
    assert config.resume
    assert config.coordinator is not None
    return config


def test_the_launch_file_for_slurm():
    file = LAUNCH / "train.slurm"
    subprocess.run(["bash", "-n", str(file)], check=True)
    lines = file.read_text().replace("\\\n", " ").splitlines()
    (command,) = [line for line in lines if line.startswith("srun")]
    assert check_command(command.split()).coordinator == "auto"


def test_the_launch_file_for_kubernetes():
    found = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in container["args"]]
    config = check_command([*container["command"], *words])
    # The address is that of the first pod: set, job, number of the job, of the pod.
    name = found["metadata"]["name"]
    assert config.coordinator == f"{name}-{job['name']}-0-0.{name}:12345"
    assert config.processes == spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"
