"""TensorBoard and Weights & Biases beside ``metrics.jsonl``."""

import json
import struct
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from tiny_training import install

from experiments import trackers
from experiments.config import parse
from experiments.stopping import TERMINATED, StoppedRun, StopRequest
from experiments.trackers import scalars
from experiments.train import main

ARGS = ["--model", "tiny", "--epochs", "2", "--validation-fraction", "0.1"]
LINE = {
    "epoch": 2,
    "step": 44,
    "learning_rate": 0.1,
    "train_loss": 1.5,
    "test_accuracy": 0.25,
    "validation_loss": None,
    "timing": {"images_per_second": 100.0, "unknown": None},
}
SCALARS = {
    "step": 44,
    "learning_rate": 0.1,
    "train/loss": 1.5,
    "test/accuracy": 0.25,
    "timing/images_per_second": 100.0,
}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command in this process: its exit code and its folder."""
    install(monkeypatch)
    folder = tmp_path / "run"
    return lambda *options: (main([*ARGS, "--out", str(folder), *options]), folder)


@pytest.fixture
def stopped(train, monkeypatch):
    """Stops a run in its second epoch: ``stopped(*options)``."""

    def stopped(*options):
        looks = 0

        def check(self, seconds=0.0, due=False):
            nonlocal looks
            looks += 1
            if looks == 30:
                raise StoppedRun(TERMINATED)
            return due

        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "check", check)
            code, folder = train(*options)
        assert code == 4
        return folder

    return stopped


def lines_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def events(folder):
    """Tag and step to value, of all event files; read without TensorBoard's code.

    A record is its length, a checksum, the message, a checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in (folder / "tensorboard").iterdir():
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            message = data[place + 12 : place + 12 + length]
            assert len(message) == length
            event = Event.FromString(message)
            for value in event.summary.value:
                found.append(((value.tag, event.step), value.simple_value))
            place += length + 16
    assert max(Counter(key for key, _ in found).values()) == 1
    return dict(found)


def check_events(folder):
    """They have every number of the metrics, under the epoch."""
    expected = {
        (tag, line["epoch"]): value
        for line in lines_of(folder)
        for tag, value in scalars(line).items()
    }
    assert events(folder) == pytest.approx(expected, rel=1e-6)
    assert ("validation/accuracy", 2) in expected
    assert ("timing/images_per_second", 1) in expected


def test_numbers_are_grouped_and_what_is_missing_left_out():
    assert scalars(LINE) == SCALARS


def test_event_files_have_the_metrics(train):
    pytest.importorskip("tensorboardX")
    code, folder = train("--tensorboard")
    assert code == 0
    assert len(lines_of(folder)) == 2
    check_events(folder)


def test_run_that_resumes_has_one_curve(train, stopped):
    pytest.importorskip("tensorboardX")
    folder = stopped("--tensorboard")
    assert {step for _, step in events(folder)} == {1}
    assert train("--tensorboard", "--resume")[0] == 0
    assert len(list((folder / "tensorboard").iterdir())) == 1
    check_events(folder)


def test_trackers_may_join_a_run_that_began_without_them(train, stopped):
    """They do not change its numbers, so they make it no other run."""
    pytest.importorskip("tensorboardX")
    folder = stopped()
    assert not (folder / "tensorboard").exists()
    assert train("--tensorboard", "--resume")[0] == 0
    check_events(folder)


@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [("--tensorboard", "tensorboardX", "tensorboard"), ("--wandb", "wandb", "wandb")],
)
def test_missing_package_is_one_line(
    train, monkeypatch, capsys, option, package, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    code, folder = train(option)
    assert code == 2
    assert capsys.readouterr().err == (
        f"error: {option}: {package} is not installed; pip install {package}, or the"
        f" extra '{extra}' of this project\n"
    )
    assert not folder.exists()


@pytest.fixture
def wandb(monkeypatch):
    """A Weights & Biases that takes down what it is told."""
    runs = []

    def init(**options):
        run = SimpleNamespace(options=options, logged={}, finished=False)
        run.log = lambda values, step: run.logged.update({step: values})
        run.finish = lambda: setattr(run, "finished", True)
        runs.append(run)
        return run

    fake = SimpleNamespace(init=init, login=lambda: True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return runs


def test_weights_and_biases_go_on_under_one_id(train, stopped, wandb):
    folder = stopped("--wandb")
    assert train("--wandb", "--resume")[0] == 0
    first, second = wandb
    assert first.finished
    assert second.finished
    assert (set(first.logged), set(second.logged)) == ({1}, {2})
    expected = scalars(lines_of(folder)[1])
    assert second.logged[2] == expected
    assert first.options == second.options
    assert first.options["id"] == (folder / "wandb_id.txt").read_text().strip()
    assert first.options["resume"] == "allow"
    assert first.options["config"]["hyperparameters"]["learning_rate"] == 0.001


@pytest.mark.parametrize("refuses", ["login", "init"])
def test_weights_and_biases_that_refuse_are_one_line(
    train, wandb, capsys, monkeypatch, refuses
):
    def refuse(**options):
        raise RuntimeError("api_key not configured.\nRun wandb login")

    monkeypatch.setattr(sys.modules["wandb"], refuses, refuse)
    code, folder = train("--wandb")
    assert code == 2
    assert capsys.readouterr().err == (
        "error: --wandb: RuntimeError: api_key not configured. Run wandb login\n"
    )
    assert folder.exists() == (refuses == "init")  # the key is asked for first


def test_a_process_that_reports_nothing_needs_no_key(wandb, monkeypatch):
    monkeypatch.setattr(trackers, "is_primary", lambda: False)
    monkeypatch.delattr(sys.modules["wandb"], "login")
    trackers.check_trackers(parse(["--wandb"]))
