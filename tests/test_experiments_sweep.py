"""The search: what is tried, given up, taken up again; and its best setting."""

import errno
import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from experiments import launch, study
from experiments.config import parse, to_json
from experiments.errors import UsageError
from experiments.search_space import parse_space
from experiments.study import Search, open_storage
from experiments.sweep import main

PRETENCE = Path(__file__).with_name("run_folders.py")
SEARCH = ("--optimizer", "adam", "--search")
DECAYS = "weight_decay=0.3,0,0.1"


@pytest.fixture
def sweep(tmp_path, monkeypatch, request):
    """Searches in pretence: accuracy is 90 % minus the weight decay."""
    pytest.importorskip("optuna")
    monkeypatch.setattr(launch, "TRAIN", (sys.executable, str(PRETENCE)))
    monkeypatch.setenv("PRETENCE", str(tmp_path))

    def sweep(*options, behaviour="finish", storage="sweep.journal", epochs=4):
        config = to_json(parse(["--optimizer=adam", f"--epochs={epochs}"]))
        known = {"adam": {"config": config, "behaviour": behaviour}}
        (tmp_path / "behaviour.json").write_text(json.dumps(known))
        place = ["--storage", str(tmp_path / storage), "--out", str(tmp_path / "runs")]
        return main([*SEARCH, *options, *place, f"--epochs={epochs}"])

    return sweep


@pytest.fixture
def calls(tmp_path):
    """The number of trainings so far."""

    def calls():
        file = tmp_path / "calls.txt"
        return len(file.read_text().splitlines()) if file.exists() else 0

    return calls


@pytest.mark.parametrize("storage", ["sweep.db", "sweep.journal"])
def test_grid_is_tried_once_and_ends_with_the_best_command(
    sweep, calls, capsys, storage
):
    assert sweep(DECAYS, "b2=0.99,0.999", storage=storage) == 0
    assert calls() == 6
    *_, counts, best, command = capsys.readouterr().out.splitlines()
    assert counts == "6 complete"
    assert best.startswith("best test accuracy 90.00 %: trial ")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "experiments.train"]
    config = parse(words[3:])
    assert (config.optimizer, config.epochs) == ("adam", 4)
    assert config.hyperparameters.weight_decay == 0
    assert config.hyperparameters.b2 in (0.99, 0.999)
    assert sweep(DECAYS, "b2=0.99,0.999", storage=storage) == 0
    assert calls() == 6
    assert capsys.readouterr().out.splitlines()[-3:] == [counts, best, command]


def test_tpe_tries_as_many_as_asked_for(sweep, calls, tmp_path, capsys):
    options = ("weight_decay=1e-3..0.5", "--sampler", "tpe", "--trials")
    assert sweep(*options, "4") == 0
    assert calls() == 4
    assert sweep(*options, "5") == 0
    assert calls() == 5
    assert "5 complete" in capsys.readouterr().out
    tried = [float(p.name.split("=")[1]) for p in (tmp_path / "runs").glob("weight*")]
    assert len(set(tried)) == 5
    assert all(1e-3 <= value <= 0.5 for value in tried)


def test_a_path_that_would_be_read_as_part_of_a_url(sweep, calls, capsys, tmp_path):
    """SQLAlchemy would open another file, without a word."""
    assert sweep(DECAYS, storage="a?b.db") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --storage: the path of a .db or .sqlite file")
    assert calls() == 0
    assert not (tmp_path / "a").exists()


def test_trials_that_were_not_begun_in_time_are_left(sweep, calls, capsys):
    options = ("weight_decay=1e-3..0.5", "--sampler", "tpe", "--trials", "3")
    assert sweep(*options, "--time-limit", "1s") == 5
    assert calls() == 0
    printed = capsys.readouterr().out
    assert "3 not begun" in printed
    assert "time is up: with less than 10 s left no run is begun" in printed
    assert sweep(*options) == 0
    assert "time is up" not in capsys.readouterr().out


def test_run_below_the_median_is_given_up(sweep, tmp_path, capsys):
    values = "weight_decay=0,0.01,0.02,0.03,0.04,0.8"
    assert sweep(values, behaviour="slow if bad", epochs=8) == 0
    printed = capsys.readouterr().out
    assert "trial 5: given up, below the median after epoch 2" in printed
    assert "5 complete, 1 pruned" in printed
    signal = tmp_path / "runs/weight_decay=0.8/signal.txt"
    assert signal.read_text() == "SIGTERM"


def test_no_prune_keeps_every_run(sweep, capsys):
    values = "weight_decay=0,0.01,0.02,0.03,0.04,0.8"
    assert sweep(values, "--no-prune") == 0
    assert "6 complete" in capsys.readouterr().out


def test_runs_that_are_not_finite_or_break_are_told_apart(sweep, calls, capsys):
    assert sweep(DECAYS, behaviour="not finite") == 0
    assert "3 pruned" in capsys.readouterr().out
    assert sweep("weight_decay=0.4,0.5", "--study", "b", behaviour="break") == 1
    printed = capsys.readouterr().out
    assert "trial 0: broke, exit code 1: no space left" in printed
    assert "2 failed" in printed


def test_trial_of_a_dead_worker_is_taken_up_again(sweep, calls, tmp_path, capsys):
    study_name = "digits-small_resnet-adam"
    shared = ["--dataset=digits", "--model=small_resnet", "--optimizer=adam"]
    space = parse_space("adam", [DECAYS])
    with open_storage(str(tmp_path / "sweep.journal")) as storage:
        search = Search(
            storage, study_name, space, [*shared, "--epochs=4"], trials=None, warmup=1
        )
        assert search.take(lambda params: True).params == {"weight_decay": 0.3}
        assert search.take(lambda params: False).params == {"weight_decay": 0.0}
        assert search.counts() == {"running": 2, "waiting": 1}
    with launch.claim(tmp_path / "runs/.locks/weight_decay=0.0"):
        assert sweep(DECAYS) == 5  # that one has a worker still
        assert calls() == 2
        assert "2 complete, 1 running" in capsys.readouterr().out
    assert sweep(DECAYS) == 0
    assert calls() == 3
    assert "3 complete" in capsys.readouterr().out


def test_interrupted_training_is_resumed(sweep, tmp_path, calls, capsys):
    assert sweep("weight_decay=0", behaviour="break first") == 1
    assert sweep("weight_decay=0", "--study", "b", behaviour="break first") == 0
    last = (tmp_path / "calls.txt").read_text().splitlines()[-1]
    assert "--resume" in last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([DECAYS, "--weight-decay=0.1"], "--weight-decay: the search decides it"),
        ([DECAYS, "--resume"], "--resume: the search decides it"),
        (["momentum=0.9"], "--momentum: adam does not take it"),
        (["decoy=1"], "--search: unknown name 'decoy'"),
        (["b1=a1,"], "--search must be like"),
        (["b1=0.9..0.5"], "--search: 0 <= LOW < HIGH"),
        (["b1=0.1..0.5"], "--search b1: a grid takes values"),
        (["b1=0.1", "b1=0.2"], "--search: b1 comes twice"),
        (["b1=2"], "--b1 must be a number in [0, 1)"),
        ([DECAYS, "b1=0.9,0.5,2"], "--b1 must be a number in [0, 1), got 2.0"),
        (["b1=0..2", "--sampler", "tpe"], "--b1 must be a number in [0, 1), got 2.0"),
        ([DECAYS, "--trials", "0"], "--trials must be at least 1"),
        ([DECAYS, "--time-limit", "x"], "--time-limit must be a time like"),
    ],
)
def test_usage_errors(sweep, calls, capsys, options, message):
    assert sweep(*options) == 2
    assert message in capsys.readouterr().err
    assert calls() == 0
    assert sweep("weight_decay=0") == 0  # no study was begun


def test_value_that_the_parser_refuses_begins_no_study(sweep, calls, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep("switch=local,foo", "--optimizer", "swats")
    assert "--switch" in capsys.readouterr().err
    assert calls() == 0
    assert not (tmp_path / "sweep.journal").exists()


def test_options_that_a_protocol_needs_may_be_searched(sweep, capsys):
    rest = ("--protocol=spherical", "--learning-rate=0.1", "--b2=0.9")
    assert sweep(DECAYS, *rest) == 2
    assert "give --b1" in capsys.readouterr().err
    assert sweep(DECAYS, "b1=0.9", *rest, "--validation-fraction=0") == 0


def test_study_has_one_kind_of_runs(sweep, capsys):
    assert sweep("weight_decay=0") == 0
    assert sweep("weight_decay=0.1") == 2
    assert "was begun with other space" in capsys.readouterr().err
    assert sweep("weight_decay=0", "--batch-size=32") == 2
    assert "was begun with other runs" in capsys.readouterr().err


@pytest.mark.parametrize("storage", ["sweep.txt", "sweep"])
def test_storage_is_named_by_its_ending(sweep, capsys, storage):
    assert sweep(DECAYS, storage=storage) == 2
    assert "--storage must be a file that ends in .db" in capsys.readouterr().err


def test_storage_that_is_no_database_is_an_error(sweep, tmp_path, capsys):
    (tmp_path / "sweep.db").write_text("not a database" * 100)
    assert sweep(DECAYS, storage="sweep.db") == 2
    assert f"--storage {tmp_path}/sweep.db: " in capsys.readouterr().err


def test_half_a_line_at_the_end_of_a_journal_is_cut_off(sweep, calls, tmp_path):
    journal = tmp_path / "sweep.journal"
    for half in ('{"op_code":4,"wor', "{"):
        assert sweep(DECAYS) == 0
        with journal.open("a") as file:
            file.write(half)
    assert sweep(DECAYS) == 0
    assert calls() == 3
    for line in journal.read_text().splitlines():
        assert json.loads(line)


@pytest.mark.parametrize(
    "text",
    [
        "words\n",
        "words",
        '{"op_code":4,"wor{"op_code":4}\n',
        '{"op_code":4,"wor{"op_code":4}\n{"op_code":4}\n{"op_code":4,"wor',
        "[]\n",
        "\0\0\0",
        "\0\n\n",
    ],
)
def test_file_that_is_no_journal_is_an_error(sweep, tmp_path, capsys, text):
    (tmp_path / "sweep.journal").write_text(text)
    assert sweep(DECAYS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --storage {tmp_path}/sweep.journal: ")
    assert (tmp_path / "sweep.journal").read_text() == text
    assert not (tmp_path / "sweep.journal.lock").is_symlink()


@pytest.mark.parametrize("name", ["a.journal", "words/a.journal", "words/a.db"])
def test_storage_that_cannot_be_there_is_an_error(sweep, tmp_path, capsys, name):
    (tmp_path / "a.journal").mkdir()
    (tmp_path / "words").touch()
    assert sweep(DECAYS, storage=name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --storage {tmp_path}/{name}: ")


def test_journal_that_cannot_be_written_is_an_error(sweep, monkeypatch, capsys):
    assert sweep(DECAYS) == 0

    def read_only(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), source)

    monkeypatch.setattr(os, "symlink", read_only)
    assert sweep(DECAYS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("sweep.journal: Read-only file system")


def test_full_disk_is_said_of_the_journal(sweep, calls, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        os.truncate(descriptor, os.fstat(descriptor).st_size - 9)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert sweep(DECAYS) == 1
    (line,) = capsys.readouterr().err.splitlines()
    place = tmp_path / "sweep.journal"
    assert line == f"error: --storage {place}: No space left on device"
    assert sweep(DECAYS) == 0
    assert calls() == 3


def test_without_optuna_the_error_says_how_to_get_it(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep(DECAYS) == 2
    assert "pip install 'spherical-optax[sweep]'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="Optuna"):
        study.import_optuna()


@pytest.mark.parametrize("storage", ["sweep.db", "sweep.journal"])
def test_point_of_a_worker_killed_before_it_chose_is_not_lost(
    sweep, calls, tmp_path, capsys, storage
):
    """Optuna begins a trial first, and sets its parameters one by one."""
    optuna = pytest.importorskip("optuna")
    shared = ["--dataset=digits", "--model=small_resnet", "--optimizer=adam"]
    shared.append("--epochs=4")
    space = parse_space("adam", [DECAYS, "b2=0.99,0.999"])
    with open_storage(str(tmp_path / storage)) as kept:
        name = "digits-small_resnet-adam"
        search = Search(kept, name, space, shared, trials=None, warmup=1)
        search._study.ask()  # nothing chosen
        half = search._study.ask()
        half.suggest_categorical("weight_decay", [0.3, 0.0, 0.1])
        states = optuna.trial.TrialState
        assert len(search._study.get_trials(states=[states.RUNNING])) == 2
    assert sweep(DECAYS, "b2=0.99,0.999", storage=storage) == 0
    assert calls() == 6
    assert "6 complete" in capsys.readouterr().out


def test_storage_is_opened_by_one_worker_at_a_time(sweep, monkeypatch, tmp_path):
    """Two that made the tables of a database together would be in each other's way."""
    opened = study.open_storage

    def watched(place):
        with launch.claim(tmp_path / "runs/.locks/study") as lock:
            assert lock is None
        return opened(place)

    monkeypatch.setattr("experiments.sweep.open_storage", watched)
    assert sweep("weight_decay=0", storage="sweep.db") == 0


def test_setting_that_another_worker_has_is_no_failure(sweep, tmp_path, capsys):
    """Workers that draw from few settings may draw the same."""
    with launch.claim(tmp_path / "runs/.locks/b2=0.9"):
        tpe = ("b2=0.9", "--sampler", "tpe", "--trials", "2")
        assert sweep(*tpe) == 0
    assert "2 repeated" in capsys.readouterr().out


def test_best_run_that_is_damaged_does_not_hide_the_result(sweep, tmp_path, capsys):
    assert sweep(DECAYS) == 0
    (tmp_path / "runs/weight_decay=0.0/summary.json").write_text("{")
    assert sweep(DECAYS) == 0
    assert "best test accuracy 90.00 %" in capsys.readouterr().out


def test_trial_that_cannot_be_run_is_given_up(
    sweep, calls, tmp_path, monkeypatch, capsys
):
    """A study of an earlier version may have one, and it is running still."""
    texts = ["b1=0.5,2,foo"]
    space = parse_space("adam", texts)
    shared = ["--dataset=digits", "--model=small_resnet", "--optimizer=adam"]
    with open_storage(str(tmp_path / "sweep.journal")) as kept:
        name = "digits-small_resnet-adam"
        shared.append("--epochs=4")
        search = Search(kept, name, space, shared, trials=None, warmup=1)
        for _ in range(3):
            search.take(lambda params: False)
        assert search.counts() == {"running": 3}
    monkeypatch.setattr("experiments.sweep.edge_points", lambda space: [{"b1": 0.5}])
    for _ in range(2):
        assert sweep(*texts) == 1
        assert "1 complete, 2 failed" in capsys.readouterr().out
    assert calls() == 1
