"""The loop over the steps: on the device as from Python, and what it measures."""

import json
import time

import jax
import numpy as np
import pytest
from tiny_training import STEPS, install, results, summary_of

from experiments import trainer
from experiments.feeds import ResidentFeed
from experiments.pipeline import Pipeline
from experiments.steps import Tally
from experiments.stopping import TERMINATED, StoppedRun, StopRequest
from experiments.train import main

ARGS = ["--model", "tiny", "--epochs", "2", "--validation-fraction", "0.1"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command; ``on_device`` as an accelerator does, many steps a call."""
    install(monkeypatch)

    def train(name, *options, on_device=False):
        monkeypatch.setattr(trainer, "many_steps_a_call", lambda: on_device)
        folder = tmp_path / name
        return main([*ARGS, "--out", str(folder), *options]), folder

    return train


@pytest.fixture
def calls(monkeypatch):
    """The numbers of steps that calls of the compiled function did."""
    done, add = [], Pipeline.add

    def recorded(self, tally, steps):
        done.append(steps)
        add(self, tally, steps)

    monkeypatch.setattr(Pipeline, "add", recorded)
    return done


def test_epochs_on_the_device_are_those_of_the_python_loop(train, calls):
    code, by_step = train("by step")
    assert code == 0
    steps = len(calls) // 2
    assert calls == [1] * (2 * steps)
    calls.clear()
    code, on_device = train("on device", on_device=True)
    assert code == 0
    assert sum(calls) == 2 * steps
    assert calls[0] == 8  # to find out how long one takes
    assert len(calls) <= 4  # then all the rest of an epoch at once
    for one, other in zip(results(by_step), results(on_device), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            # Two programs may take sums in another order; one image of the test of
            # 355 may then be judged otherwise.
            reach = 0.003 if name.endswith("accuracy") else 0
            assert other[name] == pytest.approx(value, rel=1e-5, abs=reach), name


def test_epochs_on_the_device_resume_to_the_same_bits(train, calls, monkeypatch):
    _, whole = train("whole", on_device=True)
    calls.clear()
    looks = 0

    def check(self, seconds=0.0, due=False):
        nonlocal looks
        looks += 1
        if looks == 2:
            raise StoppedRun(TERMINATED)
        return due

    monkeypatch.setattr(StopRequest, "check", check)
    assert train("stopped", on_device=True)[0] == 4
    assert calls == [8]
    code, stopped = train("stopped", "--resume", on_device=True)
    assert code == 0
    assert summary_of(stopped)["resumed_at_steps"] == [8]
    assert results(stopped) == results(whole)
    assert summary_of(stopped)["state_sha256"] == summary_of(whole)["state_sha256"]


def test_only_the_cpu_is_called_for_every_step(monkeypatch):
    for backend, many in (("cpu", False), ("gpu", True), ("tpu", True)):
        monkeypatch.setattr(jax, "default_backend", lambda name=backend: name)
        assert trainer.many_steps_a_call() == many


def test_share_of_time_outside_the_step_is_recorded(train, capsys):
    code, folder = train("run", "--epochs", "3")
    assert code == 0
    timing = summary_of(folder)["timing"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["timing"] for line in lines]
    seconds = sum(epoch["train_seconds"] for epoch in epochs)
    outside = sum(epoch["outside_step_seconds"] for epoch in epochs)
    assert 0 < outside < seconds
    assert timing["train_seconds"] == pytest.approx(seconds)
    assert timing["outside_step_share"] == pytest.approx(outside / seconds)
    assert timing["compile_seconds"] > 0
    assert timing["seconds_to_first_step"] > timing["compile_seconds"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"({timing['outside_step_share']:.1%} of the time outside the step)" in last


def test_waiting_for_images_is_time_outside_the_step(train, monkeypatch):
    """As with a stream whose workers are too slow."""
    source = ResidentFeed.source

    def slowly(self):
        time.sleep(0.02)
        return source(self)

    monkeypatch.setattr(ResidentFeed, "source", slowly)
    _, folder = train("run", "--epochs", "1")
    timing = summary_of(folder)["timing"]
    steps = results(folder)[0]["step"]
    assert 0 < steps < STEPS
    assert timing["train_seconds"] >= 0.02 * steps
    assert timing["outside_step_share"] > 0.5


def test_last_line_separates_what_it_says(train, capsys):
    train("run", "--epochs", "1")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "(best validation after epoch 1; best " in last


def test_a_tally_that_is_done_is_not_waited_for():
    pipeline = Pipeline(many_steps=False)
    for _ in range(2):
        pipeline.begin_call()
        pipeline.add(Tally.zero(), 1)
        while not pipeline.empty():
            assert np.asarray(pipeline.oldest().batches) == 0
    pipeline.stop()
    clock = pipeline.clock
    assert 0 < clock.outside <= clock.seconds


@pytest.mark.parametrize(
    ("seconds", "ahead"), [(0.001, 4), (1.0, 4), (2.0, 2), (4.0, 1), (60.0, 1)]
)
def test_slow_steps_are_not_handed_over_far_ahead(seconds, ahead):
    """A signal waits for all that were: with steps of a minute not for five of them."""
    pipeline = Pipeline(many_steps=False)
    pipeline.begin_call()
    pipeline.add(Tally.zero(), 1)
    assert pipeline.full()  # it is not known yet how long a step takes
    pipeline.oldest()
    pipeline._step_seconds = seconds
    for _ in range(ahead):
        pipeline.add(Tally.zero(), 1)
        assert not pipeline.full()
    pipeline.add(Tally.zero(), 1)
    assert pipeline.full()
