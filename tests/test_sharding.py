"""Parameters spread over devices: the state goes with them, the numbers stay."""

import json
import os
import pathlib
import subprocess
import sys

import cases


def test_sharded_parameters():
    tests = pathlib.Path(__file__).parent
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    worker = subprocess.run(
        [sys.executable, tests / "sharding_worker.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert worker.returncode == 0, worker.stderr
    report = json.loads(worker.stdout)
    assert report["cases"] == [case.id for case in cases.DISTINCT]
    problems = report["problems"]
    assert not problems, "\n\n".join(f"{k}:\n{v}" for k, v in problems.items())
    in_host_memory = [name for name in report["counts"] if "host memory" in name]
    assert len(in_host_memory) >= 4
    assert len(report["counts"]) == 5 * len(cases.DISTINCT) + len(in_host_memory)
    # So that it is seen to count: filters are divided among devices.
    assert report["counts"]["adams: input channels"] > 0
    assert report["counts"]["adams: output channels"] == 0
