"""``--seeds``: several runs in one process, each as if it were alone."""

import json
import time

import jax
import pytest
from tiny_training import TINY, install, summary_of
from torture import ending

from experiments import models
from experiments.config import parse
from experiments.seeds import train_each_seed
from experiments.stopping import TERMINATED, StoppedRun, StopRequest
from experiments.train import main

ARGS = ["--model", "tiny", "--epochs", "1"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command in this process: its exit code and its folder."""
    install(monkeypatch)
    out = tmp_path / "runs"

    def train(*options, folder=out):
        return main([*ARGS, "--out", str(folder), *options]), folder

    return train


def test_each_ends_as_if_it_were_alone(train, tmp_path, capsys):
    args = ["--validation-fraction", "0.1"]
    code, folder = train("--seeds", "0,3", *args)
    assert code == 0
    assert {path.name for path in folder.iterdir()} == {"seed0", "seed3"}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("2 of 2 seeds finished: test accuracy ")
    accuracies = []
    for seed in (0, 3):
        name = f"seed{seed}"
        record = json.loads((folder / name / "config.json").read_text())
        assert record["config"]["seed"] == seed
        assert record["sources"]["seed"] == "command line"
        assert "seeds" not in record["config"]
        code, alone = train("--seed", str(seed), *args, folder=tmp_path / name)
        assert code == 0
        assert ending(folder / name) == ending(alone)
        accuracies.append(100 * summary_of(alone)["test_accuracy"])
    mean = sum(accuracies) / 2
    deviation = (sum((a - mean) ** 2 for a in accuracies)) ** 0.5
    assert f" {mean:.2f} %, standard deviation {deviation:.2f}" in last


def test_all_are_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", TINY)
    compiled, compile_ = [], jax.stages.Lowered.compile

    def fast(self, options=None):
        compiled.append(self)
        return compile_(self, {**(options or {}), "xla_backend_optimization_level": 0})

    monkeypatch.setattr(jax.stages.Lowered, "compile", fast)
    args = [*ARGS, "--optimizer", "sgd"]
    assert main([*args, "--seed", "5", "--out", str(tmp_path / "one")]) == 0
    of_one = len(compiled)
    assert of_one >= 4  # the first state, the step, the check of weights, the test
    compiled.clear()
    assert main([*args, "--seeds", "0..2", "--out", str(tmp_path / "three")]) == 0
    assert len(compiled) == of_one
    # And no longer than --seeds lasts.
    compiled.clear()
    assert main([*args, "--seed", "6", "--out", str(tmp_path / "other")]) == 0
    assert len(compiled) == of_one


def test_without_a_folder_each_has_its_own(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*ARGS, "--seeds", "7,8"]) == 0
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {f"digits-tiny-adamsrt-seed{seed}" for seed in (7, 8)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0..1", "--seed", "2"], "--seed and --seeds: give one of them"),
        (["--seeds", "4..0"], "--seeds must be like 0..4 or 0,2,5"),
        (["--seeds", "1,1"], "--seeds names a seed twice"),
    ],
)
def test_usage_errors(options, message, train, capsys):
    code, folder = train(*options)
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not folder.exists()


def test_not_within_another_run(train, capsys):
    """Nobody would look for them there."""
    _, folder = train("--seed", "0")
    assert train("--seeds", "1,2")[0] == 2
    message = f"--out {folder}: is the folder of a run; choose another"
    assert message in capsys.readouterr().err
    assert not (folder / "seed1").exists()


def test_a_run_in_the_way_is_found_before_the_first_begins(train, capsys):
    _, folder = train("--seeds", "1")
    assert train("--seeds", "0..1")[0] == 2
    assert f"--out {folder / 'seed1'}: has a run in it" in capsys.readouterr().err
    assert train("--seeds", "0..1", "--resume", "--epochs", "2")[0] == 2
    assert "--epochs is 2 here and 1 in" in capsys.readouterr().err
    assert not (folder / "seed0").exists()


def test_stopped_in_the_second_it_goes_on_from_there(train, monkeypatch, capsys):
    _, whole = train("--seeds", "0..2")
    looks, check = 0, StopRequest.check

    def stop_in_the_second(self, seconds=0.0, due=False):
        nonlocal looks
        looks += 1
        if looks == 40:  # 1 before each run, and 23 in it
            raise StoppedRun(TERMINATED)
        return due

    monkeypatch.setattr(StopRequest, "check", stop_in_the_second)
    folder = whole.with_name("stopped")
    assert train("--seeds", "0..2", folder=folder)[0] == 4
    assert {path.name for path in folder.iterdir()} == {"seed0", "seed1"}
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of 3 seeds finished")
    monkeypatch.setattr(StopRequest, "check", check)
    assert train("--seeds", "0..2", "--resume", folder=folder)[0] == 0
    assert "nothing left to do: finished after 1" in capsys.readouterr().out
    for seed in range(3):
        assert ending(folder / f"seed{seed}") == ending(whole / f"seed{seed}")


def test_one_that_is_not_finite_does_not_end_the_others(train):
    code, folder = train("--seeds", "0..1", "--learning-rate", "1e30")
    assert code == 3
    for seed in range(2):
        assert summary_of(folder / f"seed{seed}")["status"] == "not finite"


def test_no_run_is_begun_that_has_no_time(tmp_path, capsys):
    done = []

    def train(config, stop, began):
        done.append(config.seed)
        stop.begun_at = began + 1000  # so long it takes to begin
        return 0

    config = parse(["--seeds", "3..5", "--out", str(tmp_path / "runs")])
    now = time.monotonic()
    assert train_each_seed(config, StopRequest(now + 900), now, train) == 5
    assert done == [3]
    assert capsys.readouterr().err == "out of time before seed 4 began\n"
