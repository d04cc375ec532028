"""The grid of runs: what is skipped, resumed, claimed, recorded."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import chex
import jax
import pytest

from experiments import grid, launch, measure_seeds, models
from experiments.compiling import compile_ahead
from experiments.config import parse, to_json
from experiments.errors import UsageError
from experiments.grid import choose_optimizers
from experiments.launch import claim
from experiments.reproduce import main
from experiments.results import FINISHED, find_runs
from experiments.values import parse_duration, parse_seeds

ROOT = Path(__file__).parent.parent
PRETENCE = Path(__file__).with_name("run_folders.py")
GRID = ("--optimizers", "adam,sgd", "--seeds", "0..1", "--epochs=4")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "grid"


@pytest.fixture
def pretend(tmp_path, monkeypatch, out):
    """Trains in pretence; ``pretend(adam="break")`` says how an optimizer behaves."""
    monkeypatch.setattr(launch, "TRAIN", (sys.executable, str(PRETENCE)))
    monkeypatch.setenv("PRETENCE", str(tmp_path))

    def pretend(**behaviours):
        known = {}
        for name in ("adam", "sgd"):
            config = to_json(parse([f"--optimizer={name}", "--epochs=4"]))
            behaviour = behaviours.get(name, "finish")
            known[name] = {"config": config, "behaviour": behaviour}
        (tmp_path / "behaviour.json").write_text(json.dumps(known))

    pretend()
    return pretend


@pytest.fixture
def calls(tmp_path):
    """The trainings that were begun, and forgets them."""

    def calls():
        file = tmp_path / "calls.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    return calls


def run(out, *options):
    return main([*GRID, "--out", str(out), *options])


def test_grid_runs_once_and_ends_with_the_report_command(pretend, calls, out, capsys):
    assert run(out) == 0
    began = calls()
    assert [c.split("--seed=")[1][0] for c in began] == ["0", "0", "1", "1"]
    assert not any("--time-limit" in call for call in began)
    runs, unreadable = find_runs([out])
    assert (len(runs), unreadable) == (4, [])
    assert all(found.state == FINISHED for found in runs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"4 runs in {out}: 4 new"
    assert lines[-1] == f"report: python -m experiments.report {out}"
    assert [line.split() for line in lines[-4:-1]] == [
        ["optimizer", "seed", "0", "seed", "1"],
        ["adam", "finished", "finished"],
        ["sgd", "finished", "finished"],
    ]
    assert run(out) == 0
    assert calls() == []
    command = "python -m experiments.reproduce --dataset digits --model small_resnet"
    assert (out / "commands.txt").read_text() == (
        f"{command} --optimizers adam,sgd --seeds 0..1 --epochs=4 --out {out}\n"
    )


def test_more_seeds_are_added_to_a_grid(pretend, calls, out):
    assert run(out) == 0
    assert run(out, "--seeds", "0..2") == 0
    assert len(calls()) == 4 + 2
    assert len((out / "commands.txt").read_text().splitlines()) == 2


def test_list_of_commands_that_is_no_text_is_not_in_the_way(pretend, out):
    assert run(out) == 0
    (out / "commands.txt").write_bytes(b"\xff\xfe\n")
    assert run(out) == 0
    assert "--seeds 0..1" in (out / "commands.txt").read_text().splitlines()[1]


def test_the_folder_of_a_run_is_no_place_for_a_grid(pretend, calls, out, capsys):
    assert run(out) == 0
    calls()
    assert run(out / "adam-seed0") == 2
    assert "adam-seed0: is the folder of a run" in capsys.readouterr().err
    assert calls() == []


def test_list_runs_nothing(pretend, calls, out, capsys):
    assert run(out, "--list") == 5
    assert calls() == []
    assert not out.exists()
    assert capsys.readouterr().out.splitlines()[-2].split() == ["sgd", "-", "-"]


def test_broken_runs_are_recorded_and_tried_again(pretend, calls, out, capsys):
    pretend(adam="break")
    assert run(out) == 1
    assert len(calls()) == 4
    printed = capsys.readouterr().out
    assert "broke: adam seed 1: exit code 1: no space left" in printed
    assert "first words" in (out / "logs/adam-seed1.err").read_text()
    pretend()
    assert run(out) == 0
    assert len(calls()) == 2


def test_runs_that_are_not_finite_are_recorded_and_not_repeated(
    pretend, calls, out, capsys
):
    pretend(sgd="not finite")
    assert run(out) == 3
    assert "not finite: sgd seed 0: 1 of 4 epochs; loss nan" in capsys.readouterr().out
    assert len(calls()) == 4
    assert run(out) == 3
    assert calls() == []


def test_killed_run_is_resumed(pretend, calls, out, capsys):
    pretend(adam="break first")
    assert run(out) == 1
    assert "exit code -9" in capsys.readouterr().out
    calls()
    assert run(out) == 0
    began = calls()
    assert len(began) == 2
    assert all("--resume" in call for call in began)
    assert "adam seed 0: goes on after 2 of 4 epochs" in capsys.readouterr().out


def test_damaged_run_is_named_and_not_touched(pretend, calls, out, capsys):
    assert run(out) == 0
    calls()
    metrics = out / "adam-seed0/metrics.jsonl"
    metrics.write_text("{\n")
    assert run(out) == 1
    assert calls() == []
    printed = capsys.readouterr().out
    assert f"{out}/adam-seed0: metrics.jsonl: line 1 is not that epoch's" in printed
    assert metrics.read_text() == "{\n"
    metrics.unlink()  # to resume a run that is finished would change nothing
    assert run(out) == 1
    assert calls() == []
    assert "metrics.jsonl has 0 of 4 epochs" in capsys.readouterr().out


def test_claimed_runs_are_left_to_their_owner(pretend, calls, out, capsys):
    with claim(out / ".locks/adam-seed1") as lock:
        assert lock is not None
        assert run(out) == 5
    assert not any("adam" in call and "--seed=1" in call for call in calls())
    assert "adam        finished    running" in capsys.readouterr().out
    assert run(out) == 0
    assert len(calls()) == 1


def test_claim_dies_with_the_processes_that_hold_it(tmp_path):
    lock = tmp_path / "lock"
    script = """
import subprocess, sys
from pathlib import Path
from experiments.launch import claim
with claim(Path(sys.argv[1])) as fd:
    child = subprocess.Popen(["sleep", "60"], pass_fds=(fd,))
    print(child.pid, flush=True)
    child.wait()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script, lock], cwd=ROOT, stdout=subprocess.PIPE
    )
    with owner:
        child = int(owner.stdout.readline())
        owner.kill()
    with claim(lock) as taken:
        assert taken is None  # the training itself is still there
    os.kill(child, signal.SIGKILL)
    with claim(lock, wait=True) as taken:
        assert taken is not None


def test_two_processes_share_a_grid(pretend, calls, out, tmp_path):
    pretend(adam="finish")
    script = (
        "import sys; from experiments import launch, reproduce;"
        f"launch.TRAIN = (sys.executable, {str(PRETENCE)!r});"
        "sys.exit(reproduce.main(sys.argv[1:]))"
    )
    args = [*GRID, "--seeds", "0..9", "--out", str(out)]
    command = [sys.executable, "-c", script, *args]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for worker in workers:
        worker.communicate(timeout=120)
    assert {worker.returncode for worker in workers} <= {0, 5}
    began = [call.split("--out=")[1] for call in calls()]
    assert len(began) == len(set(began)) == 20
    assert run(out, "--seeds", "0..9") == 0


@pytest.mark.parametrize(
    ("number", "passed_on", "code"),
    [(signal.SIGTERM, "SIGTERM", 4), (signal.SIGINT, "SIGINT", 130)],
)
def test_signals_reach_the_training(pretend, calls, out, number, passed_on, code):
    pretend(adam="slow")
    folder = out / "adam-seed0"

    def send():
        while not (folder / "config.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert run(out) == code
    sender.join()
    assert (folder / "signal.txt").read_text() == passed_on
    assert len(calls()) == 1


def test_time_limit_is_passed_on(pretend, calls, out, capsys):
    assert run(out, "--time-limit", "1m") == 0
    limits = [int(call.split("--time-limit=")[1].split("s")[0]) for call in calls()]
    assert limits == sorted(limits, reverse=True)
    assert 30 < limits[0] <= 60
    assert run(out, "--time-limit", "5s", "--seeds", "0..9") == 5
    assert calls() == []
    assert capsys.readouterr().out.count("time is up: with less than 10 s left") == 1
    assert run(out, "--time-limit", "5s") == 0
    assert "time is up" not in capsys.readouterr().out


def test_run_that_is_out_of_time_ends_the_work(pretend, calls, out, capsys):
    pretend(adam="out of time")
    assert run(out, "--time-limit", "1m") == 5
    assert len(calls()) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["adam", "2/4", "-"] in rows


def test_training_that_ignores_its_time_limit_is_ended(pretend, out, monkeypatch):
    pretend(adam="slow")
    monkeypatch.setattr(launch, "_GRACE_SECONDS", -11.0)
    assert run(out, "--time-limit", "12s") == 5
    assert (out / "adam-seed0/signal.txt").read_text() == "SIGTERM"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs=5"], "has a run with --epochs 4, not 5; choose another --out"),
        (["--b1=0.5"], "has a run with --b1 0.9, not 0.5"),
        (["--optimizers", "adamm"], "--optimizers: unknown name 'adamm'; known: all,"),
        (["--optimizers", "adam,adam"], "--optimizers: all, or names once each"),
        (["--optimizers", "adam:b1"], "--optimizers: NAME:OPTION=VALUE"),
        (["--optimizers", "adam:seed=3"], "--optimizers adam:seed=3: --seed: the grid"),
        (["--optimizers", "adam:optimizer=sgd"], "--optimizer: the grid decides it"),
        (["--optimizers", "adam:time_limit=9s"], "--time-limit: the grid decides it"),
        (["--seeds", "4..0"], "--seeds must be like 0..4 or 0,2,5"),
        (["--seed=3"], "--seed: the grid decides it"),
        (["--resume"], "--resume: the grid decides it"),
        (["--time-limit", "9 hours"], "--time-limit must be a time like 90s, 9m"),
        (["--model", "resnet"], "--model: unknown name 'resnet'"),
        (
            ["--protocol", "spherical", "--optimizers", "all"],
            "--optimizers all: --protocol spherical is published for none with"
            " small_resnet on digits",
        ),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: No such file or directory"),
        (["--out", __file__], f"--out {__file__}: File exists"),
    ],
)
def test_usage_errors_come_before_any_run(
    pretend, calls, out, capsys, options, message
):
    assert run(out, "--seeds", "0", "--optimizers", "adam") == 0
    calls()
    assert run(out, "--optimizers", "adam", *options) == 2
    assert message in capsys.readouterr().err
    assert calls() == []


def test_optimizers_may_have_options_of_their_own(out):
    options = ["--epochs=1"]
    variants = ["swats:switch=local", "swats:switch=global:b1=0.8"]
    jobs = grid.plan(variants, [3], options, out)
    assert [job.folder.name for job in jobs] == [
        "swats-switch=local-seed3",
        "swats-switch=global-b1=0.8-seed3",
    ]
    assert jobs[1].config.hyperparameters.switch == "global"
    assert jobs[1].config.hyperparameters.b1 == 0.8


def test_all_is_what_the_protocol_is_published_for():
    spherical = choose_optimizers(["all"], "spherical", "cifar10", "resnet20")
    assert set(spherical) == {
        *("sgd", "sgdmrt", "adam", "adamw", "adamg", "adams", "adamsrt")
    }
    swats = choose_optimizers(["all"], "swats", "cifar10", "resnet18")
    assert swats == ["swats:switch=local", "swats:switch=global", "adabound"]
    assert "muon" in choose_optimizers(["all"], "none", "digits", "small_resnet")


def test_seeds_together_are_trained_as_one_after_another(monkeypatch, capsys):
    tiny = partial(models.ResNet, widths=(2,), blocks=(1,))
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    fast = partial(compile_ahead, options={"xla_backend_optimization_level": 0})
    monkeypatch.setattr(measure_seeds, "compile_ahead", fast)
    made = []
    monkeypatch.setattr(
        measure_seeds, "measure", lambda program, _: made.append(program) or 1.0
    )
    small = ["--batch-size=2", "--image-size=8", "--seeds=2", "--steps=2"]
    assert measure_seeds.main(["--model=tiny", "--optimizer=sgd", *small]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"
    single, stacked = made
    apart = [single.run(state) for state in single.states]
    (start,) = stacked.states
    joint = stacked.run(start)
    assert joint.step.tolist() == [2, 2]
    for seed in (0, 1):
        of_seed = jax.tree.map(lambda leaf, seed=seed: leaf[seed], joint)
        chex.assert_trees_all_close(of_seed, apart[seed], rtol=1e-4, atol=1e-5)


def test_measured_time_is_of_one_step_and_seed():
    program = measure_seeds.Program(lambda state: time.sleep(0.02), [0, 1])
    options = measure_seeds.Options(seeds=2, steps=10)
    assert 0.002 <= measure_seeds.measure(program, options) < 0.02


def test_measuring_no_seeds_is_a_usage_error(capsys):
    assert measure_seeds.main(["--seeds=0"]) == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0..4", (0, 1, 2, 3, 4)),
        ("0,2,5", (0, 2, 5)),
        ("7", (7,)),
        ("0..1,9", (0, 1, 9)),
    ],
)
def test_seeds_are_read(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "1..", "3..1", "0,,1", "-1", "1,1", "0..99999", "4294967296"]
)
def test_seeds_that_cannot_be_are_an_error(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("9m", 540), ("1.5h", 5400)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration("--time-limit", text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1m", "1y", "m", "inf"])
def test_durations_that_cannot_be_are_an_error(text):
    with pytest.raises(UsageError, match="--time-limit must be a time like"):
        parse_duration("--time-limit", text)
