"""What updates of sharded weights say to other devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.collectives import Collective, collectives, main, table

ROOT = Path(__file__).parent.parent


def test_collectives_are_found_in_a_program():
    program = """
  %a = (f32[1,1,1,64]{3,2,1,0}, bf16[8]{0}) all-reduce(%x, %y), channel_id=1
  %b = f32[16,8]{1,0} all-gather-start(%z), dimensions={0}
  %c = f32[2]{0} add(%p, %all-reduce.1)
"""
    assert collectives(program) == [
        Collective("all-reduce", 64, 4 * 64 + 2 * 8),
        Collective("all-gather", 128, 512),
    ]


def test_an_odd_number_of_devices_is_a_mistake(capsys):
    assert main(["--devices", "3"]) == 2
    assert "--devices must be an even number" in capsys.readouterr().err


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Figures of the command, in a process that may have eight devices."""
    path = tmp_path_factory.mktemp("collectives") / "found.json"
    names = ["adam", "adamsrt", "adamg", "sgdmrt", "adamp", "swats", "lamb"]
    command = [sys.executable, "-m", "experiments.collectives"]
    command += ["--model", "convnet", "--json", str(path), "--optimizers", *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert {record["optimizer"] for record in found} == set(names)
    return found


def test_no_weights_travel(records):
    """Numbers of groups are added up, a few times a step, and nothing is gathered."""
    for record in records:
        assert set(record["counts"]) <= {"all-reduce"}, record
        assert sum(record["counts"].values()) <= 4, record
        assert record["largest"] <= 64, record  # filters of the largest leaf


def test_replicated_weights_need_no_word(records):
    for record in records:
        if record["layout"] == "replicated" or record["optimizer"] == "adam":
            assert record["counts"] == {}


def test_filters_that_lie_whole_need_no_word(records):
    for record in records:
        alone = record["optimizer"] in ("adamsrt", "adamg", "sgdmrt")
        if alone and record["layout"] == "output channels":
            assert record["counts"] == {}


def test_the_table_of_the_documentation_is_that_of_the_figures():
    figures = json.loads((ROOT / "experiments/results/collectives.json").read_text())
    assert table(figures) in (ROOT / "docs/scaling.md").read_text()
