"""The learning-rate finder: on a real run, and on made-up losses."""

import json
import math
import os
import signal

import pytest
from tiny_training import install

from experiments import find_lr as command
from experiments import loop
from experiments.find_lr import RangeTest, main, plot, range_test, suggest
from experiments.steps import Means


@pytest.fixture
def tiny(monkeypatch):
    install(monkeypatch)
    from tiny_training import compile_once

    monkeypatch.setattr(loop, "compile_ahead", compile_once)


class Told:
    """A loop that returns given losses."""

    def __init__(self, losses):
        self._losses = iter(losses)

    def step(self):
        return Means(next(self._losses), 0.0, 1)


def test_a_real_range_test(tiny, tmp_path, capsys):
    out = tmp_path / "test"
    args = [
        "--model",
        "tiny",
        "--optimizer",
        "sgd",
        "--start",
        "1e-4",
        "--factor",
        "1.3",
    ]
    assert main([*args, "--no-augment", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "suggestion: --learning-rate" in shown
    found = json.loads((out / "lr.json").read_text())
    assert found["rates"][0] == 1e-4
    assert found["rates"][1] == pytest.approx(1.3e-4)
    assert len(found["losses"]) == len(found["rates"])
    assert 1e-3 < found["suggestion"] <= found["lowest"] < 100
    assert found["optimizer"] == "sgd"
    assert (out / "lr.png").stat().st_size > 5_000


def test_it_stops_when_the_loss_explodes():
    losses = [2.0, 2.0, 1.0, 1.0, 1.0, 30.0, 1.0]
    found = range_test(Told(losses), [0.1 * 2**i for i in range(7)], 3.0)
    assert found.losses == losses[:6]
    assert found.suggestion in found.rates[1:5]


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_it_stops_at_what_is_no_number(last, tmp_path):
    found = range_test(
        Told([2.0, 1.5, 1.0, last, 1.0]), [1.0, 2.0, 4.0, 8.0, 16.0], 3.0
    )
    assert (len(found.losses), len(found.smoothed)) == (4, 3)
    assert found.suggestion in (2.0, 4.0)
    plot(found, "title", tmp_path / "lr.png")
    assert (tmp_path / "lr.png").exists()


def test_no_number_at_once(tmp_path):
    found = range_test(Told([math.nan]), [1.0, 2.0], 3.0)
    assert found == RangeTest([1.0], found.losses, [], None, None)
    plot(found, "title", tmp_path / "lr.png")


def test_a_loss_that_never_falls():
    assert suggest([1.0, 2.0, 4.0], [1.0, 1.0, 1.2]) == (None, None)


def test_no_suggestion_has_a_code_of_its_own(tiny, tmp_path, capsys):
    args = ["--model", "tiny", "--start", "1e-9", "--end", "1e-8", "--factor", "2"]
    assert main([*args, "--out", str(tmp_path)]) == 1
    assert "no suggestion: the loss never fell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--start", "0"], "--start must be a number above 0, got 0"),
        (["--start", "1e-60"], "--start must be a number of float32, got 1e-60"),
        (["--end", "1e-9"], "--end must be a number above 1e-06"),
        (["--factor", "1"], "--factor must be a number above 1, got 1"),
        (["--stop-at", "nan"], "--stop-at must be a number above 1, got nan"),
        (["--factor", "1.0000001"], "--factor 1.0000001 takes 1.84e+08 steps"),
        (["--epochs", "3"], "--epochs: not an option of a range test"),
        (["--learning-rate=0.1"], "--learning-rate: not an option of a range test"),
        (["--accumulate", "4"], "--accumulate: not an option of a range test"),
        (["--optimizer", "adamx"], "--optimizer"),
        (["--batch-size", "5000"], "--batch-size must be at most 1442"),
        (["--dataset", "imagenet2012"], "--dataset imagenet2012: is streamed"),
    ],
)
def test_bad_options(args, message, tmp_path, capsys):
    assert main([*args, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 4, "terminated")],
)
def test_a_signal_ends_it_and_leaves_nothing(
    tiny, monkeypatch, tmp_path, capsys, number, code, told
):
    monkeypatch.setattr(loop.Loop, "step", lambda self: os.kill(os.getpid(), number))
    assert main(["--model", "tiny", "--out", str(tmp_path)]) == code
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_place_to_write(capsys):
    assert command.main(["--out", "/dev/null/x"]) == 2
    assert "--out" in capsys.readouterr().err


def test_any_name_can_be_drawn(tmp_path):
    found = RangeTest([0.1, 0.2], [2.0, 1.0], [2.0, 1.0], 0.2, 0.2)
    plot(found, "folder:a$_$b\udcff", tmp_path / "lr.png")
    assert (tmp_path / "lr.png").exists()


def test_numbers_stay_where_drawing_fails(tiny, monkeypatch, tmp_path, capsys):
    def break_(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "plot", break_)
    short = ["--model", "tiny", "--start=1", "--end=1.1", "--out", str(tmp_path)]
    assert main(short) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lr.json"]
