"""The pieces of the studies: verdicts, work that goes on, toy problem, judgements."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_training
from hypothesis import given
from hypothesis import strategies as st

from experiments import loop as loops
from experiments import models
from experiments.config import parse
from experiments.data import load_dataset
from experiments.loop import Loop
from experiments.stopping import OUT_OF_TIME, TERMINATED, StoppedRun
from experiments.studies import (
    dinh,
    from_scratch_page,
    grids,
    large_batch,
    large_batch_page,
    lesson,
    local_swats,
    scale_growth,
    toy,
    verdicts,
)
from experiments.studies.catalogue import STUDIES
from experiments.studies.study import Clock, Place
from experiments.studies.verdicts import NEVER, NO, YES, Claim, judge


@pytest.fixture
def tiny(monkeypatch):
    """A network that compiles fast, in place of that of the study."""
    tiny_training.install(monkeypatch)
    monkeypatch.setattr(loops, "compile_ahead", tiny_training.compile_once)
    monkeypatch.setitem(models.MODELS, "convnet", tiny_training.TINY)


def place(tmp_path, clock=None, **settings):
    return Place(tmp_path / "runs", clock or Clock(None), settings)


# Verdicts.


def test_a_difference_within_noise_does_not_hold():
    (verdict,) = judge(
        [Claim("", ("a", [90.0, 91.0, 92.0]), ("b", [89.9, 90.9, 91.9]))]
    )
    assert verdict.verdict == NO
    assert verdict.evidence.startswith("undecided: a 91.000 (1.000), n = 3; b ")


def test_a_clear_difference_holds_one_way_alone():
    low, high = ("low", [1.0, 1.1, 1.2]), ("high", [5.0, 5.1, 5.2])
    holding, opposite = (
        judge([claim])[0] for claim in (Claim("", high, low), Claim("", low, high))
    )
    assert holding.verdict == YES
    assert opposite.verdict == NO
    assert opposite.evidence.startswith("the opposite: ")


def test_many_claims_need_more_than_one():
    """A p of 0.02 alone would do; of one claim in twenty it does not."""
    claim = Claim("", ("a", [10.0, 10.5, 11.0]), ("b", [8.8, 9.1, 9.6]))
    noise = Claim("", ("a", [1.0, 2.0, 3.0]), ("b", [1.1, 2.1, 2.9]))
    assert judge([claim])[0].verdict == YES
    assert judge([claim, *[noise] * 19])[0].verdict == NO


def test_a_claim_with_a_margin():
    near = ("near", [0.98, 0.99, 1.0]), ("other", [1.0, 1.01, 1.02])
    assert judge([Claim("", *near)])[0].verdict == NO
    assert judge([Claim("", *near, margin=0.1)])[0].verdict == YES
    far = ("far", [0.5, 0.51, 0.52]), ("other", [1.0, 1.01, 1.02])
    verdict = judge([Claim("", *far, margin=0.1)])[0]
    assert verdict.verdict == NO
    assert "the opposite" in verdict.evidence


def test_too_few_runs_decide_nothing():
    one, many = ("one", [9.0]), ("many", [1.0, 1.1])
    assert "undecided" in judge([Claim("", one, many)])[0].evidence
    verdict = judge([Claim("", ("none", []), many)])[0]
    assert (verdict.verdict, verdict.evidence) == (NEVER, "no finished run: none")


@given(*[st.lists(st.floats(-100, 100), min_size=2, max_size=5)] * 2)
def test_of_a_claim_and_its_opposite_one_holds_at_most(one, other):
    held = [
        judge([Claim("", ("a", a), ("b", b))])[0].verdict
        for a, b in ((one, other), (other, one))
    ]
    assert held.count(YES) <= 1


def test_verdicts_are_counted():
    told = [
        verdicts.Verdict("", YES, ""),
        verdicts.Verdict("", NO, "undecided: x"),
        verdicts.Verdict("", NO, "the opposite: x"),
        verdicts.Verdict("", NEVER, ""),
    ]
    assert verdicts.count(told) == (
        "4 claims 1 holds, 1 is contradicted, 1 is undecided, 1 was not run"
    )


# Work that is done once.


def test_work_is_done_once_for_its_settings(tmp_path):
    done = []

    def make():
        done.append(1)
        return {"x": (1, 2)}

    where = place(tmp_path)
    assert where.once("a", ["s"], make) == {"x": [1, 2]}
    assert where.once("a", ["s"], make) == {"x": [1, 2]}
    assert len(done) == 1
    where.once("a", ["other"], make)
    assert len(done) == 2


@pytest.mark.parametrize("text", ["", '{"settings": ["s"]', "[]", '{"settings": 3}'])
def test_unfinished_work_is_done_again(tmp_path, text):
    where = place(tmp_path)
    where.runs.mkdir()
    (where.runs / "a.json").write_text(text)
    assert where.once("a", ["s"], lambda: {"x": 1}) == {"x": 1}


def test_no_work_is_begun_when_there_is_no_time(tmp_path):
    where = place(tmp_path, Clock(10.0))
    with pytest.raises(StoppedRun, match=OUT_OF_TIME):
        where.once("a", [], lambda: {})


# The growing norm.


def test_sgd_on_the_toy_problem_grows_by_pythagoras():
    found = toy.descend(optax.sgd(0.1), np.array([0.0, 1.0]), 50)
    steps = np.diff(found["path"], axis=0)
    norms = np.linalg.norm(found["path"], axis=1)
    np.testing.assert_allclose(
        norms[1:] ** 2, norms[:-1] ** 2 + np.sum(steps**2, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(found["norm"], norms[1:], rtol=1e-6)
    unit = found["path"] / norms[:, None]
    angles = np.arccos(np.clip(np.sum(unit[1:] * unit[:-1], axis=1), -1, 1))
    np.testing.assert_allclose(found["effective_step"], angles, atol=2e-3)
    assert unit[-1, 0] > 0.98


def test_every_optimizer_descends_on_the_toy_problem_from_everywhere():
    starts = np.array([[-0.8, 0.5, 0.331], [0.1, -0.9, -0.424]])
    for make in toy.TOYS.values():
        path = toy.descend(make(0.1), starts)["path"]
        assert path.shape == (2, 201, 3)
        assert np.all(path[:, -1, 0] / np.linalg.norm(path[:, -1], axis=1) > 0.9)


def test_several_starts_are_each_as_alone():
    starts = np.array([[-0.8, 0.6], [0.0, 1.0]])
    both = toy.descend(optax.adam(0.1), starts, 20)
    for index, start in enumerate(starts):
        alone = toy.descend(optax.adam(0.1), start, 20)
        for name, values in alone.items():
            np.testing.assert_allclose(both[name][index], values, rtol=1e-4, atol=1e-5)


def test_growth_is_judged():
    def runs(growth, angle):
        return {
            str(seed): {"growth": [1.0, g], "angle": [0.1, angle + seed / 1e4]}
            for seed, g in enumerate(growth)
        }

    network = {
        "sgd": runs([1.01, 1.011, 1.012], 0.02),
        "sgd, momentum": runs([1.3, 1.31, 1.32], 0.01),
        "sgdp": runs([1.02, 1.021, 1.022], 0.03),
        "adam": runs([1.01, 1.02, 1.03], 0.01),
        "adamp": runs([1.009, 1.021, 1.031], 0.01),
    }
    claims = scale_growth._network_claims(network)
    assert [v.verdict for v in judge(claims)] == [YES, YES, NO, YES, NO]
    del network["sgdp"]
    claims = scale_growth._network_claims(network)
    assert [v.verdict for v in judge(claims)] == [YES, NEVER, NO, NEVER, NO]


# Optimizers from scratch.


def test_rmsprop_begins_with_the_first_square():
    optimizer = lesson.scale_by_rms_of_the_first(0.9, 1e-5)
    grads = [jnp.array([3.0, -0.5]), jnp.array([1.0, 2.0])]
    state = optimizer.init(grads[0])
    first, state = optimizer.update(grads[0], state)
    np.testing.assert_allclose(first, grads[0] / (jnp.abs(grads[0]) + 1e-5))
    second, _ = optimizer.update(grads[1], state)
    average = 0.9 * grads[0] ** 2 + 0.1 * grads[1] ** 2
    np.testing.assert_allclose(second, grads[1] / (jnp.sqrt(average) + 1e-5))


def test_gradients_are_recorded_and_left_alone():
    optimizer = lesson.record_gradients()
    grads = {"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
    same, state = optimizer.update(grads, optimizer.init(grads))
    assert same is grads
    assert float(state.mean["w"]) == 3.0
    assert float(state.std["w"]) == pytest.approx(np.std([1, 2, 3, 6]))


@pytest.mark.parametrize("name", list(lesson.RATES))
def test_kinds_of_decay(name):
    """Decoupled decay is known by a weight without a gradient; L2 is none of it."""
    params = {"w": jnp.full((3, 3, 1, 2), 2.0)}
    labels = {"w": "filter"}
    zero = {"w": jnp.zeros_like(params["w"])}
    for kind in lesson.KINDS:
        optimizer = lesson.with_decay(name, kind, 0.01, labels)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        moved = float(updates["w"].max())
        if kind == "none":
            assert moved == 0
        elif kind == "decoupled":
            assert moved == pytest.approx(-lesson.RATES[name] * 0.01 * 2)
        elif name in ("adam", "adams", "adamsrt"):  # divided by what it is itself
            assert moved == pytest.approx(-lesson.RATES[name], rel=1e-3)
        else:
            assert moved == pytest.approx(-lesson.RATES[name] * 0.01 * 2)


def test_accuracies_are_judged_by_the_whole_interval():
    row = lesson.ROWS["sgd"]

    def judged(*apart):
        return from_scratch_page._judge(row, [row.test + a / 100 for a in apart])

    assert judged(1.0, 1.1, 1.2).verdict == YES
    assert judged(-3.0, -3.1, -3.2).evidence.startswith("the opposite")
    within = judged(-0.5, -1.0, -3.0)  # its mean is within two points, by chance
    assert within.verdict == NO
    assert within.evidence.startswith("undecided")
    assert judged(1.0).verdict == NO
    assert judged().verdict == NEVER


def test_the_same_step_is_told_from_another():
    def judged(apart):
        kinds = {kind: {"norm": 1.0, "test": 0.5} for kind in lesson.KINDS}
        return from_scratch_page._judge_same([{**kinds, "first_step": apart}] * 2)

    assert judged(1e-5).verdict == YES
    assert judged(0.5).verdict == NO
    assert from_scratch_page._judge_same([]).verdict == NEVER


# Large batches.


def test_a_rescaled_network_is_sharper_in_the_box_alone():
    rows = dinh.objection((1.0, 100.0))
    assert all(row["output_difference"] < 1e-4 for row in rows)
    assert rows[1]["box"] > 2 * rows[0]["box"] > 0
    assert rows[1]["sphere"] == pytest.approx(rows[0]["sphere"], rel=0.01)
    assert rows[1]["eigenvalue"] > 2 * rows[0]["eigenvalue"]
    assert dinh.judge_objection(rows).verdict == YES
    for change in ({"sphere": 1.1}, {"output_difference": 1e4}):
        wrong = [rows[0], {k: v * change.get(k, 1) for k, v in rows[1].items()}]
        wrong[1]["output_difference"] += change.get("output_difference", 0)
        assert dinh.judge_objection(wrong).verdict == NO


def test_batches_are_judged():
    settings = STUDIES["large_batch"].settings()

    def runs(large, **means):
        return [
            {name: mean * (1 + seed / 500) for name, mean in means.items()}
            for seed in range(3)
        ]

    same = {"train_loss": 0.1, "box": 1.0, "sphere": 40.0, "eigenvalue": 4.0}
    other = {"train_loss": 0.101, "box": 3.0, "sphere": 90.0, "eigenvalue": 1.0}
    found = {
        ("sgd", False): runs(False, test_accuracy=91.0, **same),
        ("sgd", True): runs(True, test_accuracy=88.0, **other),
    }
    told = judge(large_batch_page._claims("sgd", found, settings))
    assert [v.verdict for v in told] == [YES, YES, YES, YES, NO]
    assert told[4].evidence.startswith("the opposite")
    assert "(c)" in told[4].claim
    found["sgd", True] = []
    told = judge(large_batch_page._claims("sgd", found, settings))
    assert {v.verdict for v in told} == {NEVER}


OPTIONS = ["--dataset=digits", "--model=convnet", "--optimizer=adam"]
OPTIONS += ["--batch-size=256", "--epochs=1", "--no-augment"]


def test_flatness_of_a_trained_network_is_measured(tiny, tmp_path):
    settings = {**STUDIES["large_batch"].settings(small=True), "images": 64}
    found = large_batch.train_and_measure(
        parse(OPTIONS), load_dataset("digits"), settings, Clock(None), tmp_path / "c"
    )
    assert 10 < found["test_accuracy"] < 100
    assert found["box"] > 0
    assert found["sphere"] > 0
    assert found["eigenvalue"] > 0


class Alarm(Clock):
    """A clock that stops the work at the given check."""

    def __init__(self, at):
        super().__init__(None)
        self._left = at

    def check(self, needed=0.0):
        self._left -= 1
        if self._left == 0:
            raise StoppedRun(TERMINATED)


def test_training_goes_on_where_it_was_stopped(tiny, tmp_path):
    config, dataset = parse(OPTIONS), load_dataset("digits")

    def loop():
        return Loop(config, dataset, large_batch._builder(config, dataset))

    whole = loop()
    large_batch.train(whole, 8, Clock(None), tmp_path / "whole")
    for at in (4, 1):  # once within an epoch, once before a step
        with pytest.raises(StoppedRun):
            large_batch.train(loop(), 8, Alarm(at), tmp_path / "parts")
    resumed = loop()
    large_batch.train(resumed, 8, Clock(None), tmp_path / "parts")
    assert resumed.done == 8
    for one, other in zip(
        large_batch.jax.tree.leaves(whole.state),
        large_batch.jax.tree.leaves(resumed.state),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


# Local SWATS.


def swats_column(counts):
    """Runs of SWATS with a local switch, and how many leaves switched in them."""
    runs, switched = [], {}
    for threshold, seeds in counts.items():
        for seed, _ in enumerate(seeds):
            args = ["--optimizer=swats", f"--threshold={threshold}", f"--seed={seed}"]
            config = json.loads(json.dumps(loops_config(args)))
            line = {"epoch": 30, "train_loss": 0.1, "test_accuracy": 0.9 + seed / 100}
            runs.append({"config": config, "finished": True, "epochs": [line]})
    column = grids.from_data(runs)
    for setting, label in zip(column.settings, column.labels, strict=True):
        seeds = counts[f"{setting.hyperparameters['threshold']:g}"]
        point = {"path": "w", "step": 3, "sgd_learning_rate": 0.1}
        switched[label] = {str(s): [point] * n for s, n in enumerate(seeds)}
    return column, switched


def loops_config(args):
    from experiments.config import to_json

    return to_json(parse(args))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [([0, 0], [2, 4], YES), ([0, 1], [2, 4], NO), ([0, 0], [0, 4], NO)],
)
def test_thresholds_are_compared(low, high, verdict):
    column, switched = swats_column({"1e-09": low, "1e-05": high})
    told = local_swats._about_threshold(column, switched, 1e-5)
    assert told.verdict == verdict
    assert "n = 2" in told.evidence


def test_thresholds_that_were_not_run():
    column, switched = swats_column({"1e-05": [1]})
    assert local_swats._about_threshold(column, switched, 1e-5).verdict == NEVER


def test_a_grid_is_kept_as_it_was():
    column, _ = swats_column({"1e-09": [0, 0], "1e-05": [1, 2]})
    again = grids.from_data(json.loads(json.dumps(grids.to_data(column))))
    assert again.labels == column.labels
    assert [s.accuracy for s in again.settings] == [s.accuracy for s in column.settings]
    assert again.settings[0].accuracy.mean == pytest.approx(90.5)
