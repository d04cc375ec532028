"""What updates of sharded weights say to other devices."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import OPTIMIZERS as OPTIMIZER_CASES

import spherical_optax as so
from experiments.bench.trees import model_shapes, size_in_bytes
from experiments.collectives import EXPORTED, OTHERS, Options, _kept, _write, main
from experiments.collectives_tables import (
    ring_seconds,
    step_table,
    time_table,
    update_table,
)
from experiments.optimizers import OPTIMIZERS
from experiments.programs import Collective, collectives

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


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--devices", "3"], "--devices must be an even number, got 3"),
        (["--model", "lenet"], "--model: unknown name 'lenet'"),
        (["--optimizers", "adamx"], "--optimizers: unknown name 'adamx'"),
        (["--json", "pyproject.toml"], "--json pyproject.toml: not a file of this"),
        (["--json", "none/at.json"], "--json none/at.json: there is no such folder"),
    ],
)
def test_mistakes(capsys, monkeypatch, args, told):
    monkeypatch.chdir(ROOT)
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def figures(options):
    """What is in the file of the options."""
    return json.loads(options.json.read_text())


ROW = {"optimizer": "adams", "layout": "both", "counts": {}, "bytes": 0}


@pytest.fixture
def kept(tmp_path):
    """Options of the command, with a file that has a row for ResNet-18."""
    options = Options(model="resnet18", json=tmp_path / "found.json")
    _write(options, [ROW])
    return options


@pytest.mark.parametrize("other", [{"model": "resnet20"}, {"devices": 4}])
def test_figures_of_another_model_are_not_replaced(kept, capsys, other):
    before = kept.json.read_bytes()
    words = [f"--{name}={value}" for name, value in other.items()]
    assert main([*words, "--json", str(kept.json)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--json {kept.json}: has figures of resnet18 on 8 devices" in line
    assert kept.json.read_bytes() == before


def test_figures_of_other_versions_are_counted_anew(kept):
    assert _kept(kept) == {("adams", "both"): ROW}
    kept.json.write_text(json.dumps({**figures(kept), "optax": "0.0"}))
    assert _kept(kept) == {}


def test_a_full_disk_costs_no_figures(kept, monkeypatch):
    before, write = kept.json.read_bytes(), Path.write_text

    def write_half(path, text):
        write(path, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        _write(kept, [ROW, {**ROW, "layout": "replicated"}])
    assert kept.json.read_bytes() == before
    assert list(kept.json.parent.iterdir()) == [kept.json]


def test_every_exported_optimizer_is_counted():
    """And every one of the command line; the rest of the library are blocks."""
    exported = {name.partition("-")[0] for name in EXPORTED}
    assert exported == {case.name for case in OPTIMIZER_CASES} | {"project_to_norm"}
    assert exported <= set(so.__all__)
    assert set(OPTIMIZERS) <= {*exported, *OTHERS}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Figures of the command, in a process that may have eight devices."""
    path = tmp_path_factory.mktemp("collectives") / "found.json"
    names = ["adamsrt", "adamp", "adam"]  # in the order of the table
    words = [sys.executable, "-m", "experiments.collectives"]
    words += ["--model", "convnet", "--json", str(path), "--optimizers", *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())["records"]
    updates = [record for record in found if "optimizer" in record]
    assert {record["optimizer"] for record in updates} == set(names)
    assert update_table(updates) in done.stdout
    steps = {(r["mesh"], r["batch_norm"]): r for r in found if "step" in r}
    return updates, steps


@pytest.fixture(scope="module")
def records(found):
    """Those of updates."""
    return found[0]


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
        where = record["optimizer"], record["layout"]
        if where == ("adamsrt", "output channels"):
            assert record["counts"] == {}


def test_a_whole_step_adds_up_gradients_and_local_batch_norm_says_less_often(found):
    """With fsdp it gathers, too.

    Global statistics cost no bytes more: what they add up backwards are the gradients
    of scale and bias, and the running statistics are means over devices either way.
    """
    _, steps = found
    whole, local = (steps["data=8", kind] for kind in ("global", "local"))
    for record in (whole, local):
        assert set(record["counts"]) == {"all-reduce"}
    gradients = size_in_bytes(model_shapes("convnet"))
    assert gradients <= local["bytes"] == whole["bytes"] < 1.1 * gradients
    assert sum(local["counts"].values()) < sum(whole["counts"].values())
    assert steps["fsdp=8", "global"]["counts"]["all-gather"] > 0


def test_time_of_a_ring():
    """In 2 (N - 1) hops, each with its latency and an N-th of the bytes."""
    one = ring_seconds(3, 8e6, 8, latency=1e-6, bandwidth=1e9)
    assert one == pytest.approx(14 * (3e-6 + 1e-3))
    record = {"optimizer": "lamb", "layout": "input channels", "bytes": 400_000_000}
    table = time_table([{**record, "counts": {"all-reduce": 1}}])
    # 14 hops of 5 us, and of 50 MB at 50 GB/s.
    assert "| `lamb` | 14,070 |" in table


@pytest.mark.parametrize("table", [update_table, step_table, time_table])
def test_the_tables_of_the_documentation_are_those_of_the_figures(table):
    figures = json.loads((ROOT / "experiments/results/collectives.json").read_text())
    names = dict.fromkeys(
        r["optimizer"] for r in figures["records"] if "optimizer" in r
    )
    assert tuple(names) == (*EXPORTED, *OTHERS)
    assert table(figures["records"]) in (ROOT / "docs/scaling.md").read_text()
