"""The studies: their pieces, the command, and whether what is kept is current."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_training

from experiments import errors, loop, models
from experiments.errors import UsageError
from experiments.report.page import to_html
from experiments.studies import (
    __main__ as command,
)
from experiments.studies import (
    from_scratch,
    gallery,
    large_batch,
    local_swats,
    scale_growth,
    spherical,
    study,
)
from experiments.studies.catalogue import STUDIES
from experiments.studies.study import NEVER, NO, YES, Clock, OutOfTimeError, Place

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A folder of results of its own."""
    folder = tmp_path / "results"
    for module in (study, gallery, command):
        monkeypatch.setattr(module, "RESULTS", folder)
    monkeypatch.setattr(gallery, "PAGE", folder / "index.html")
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """Networks that compile fast, in place of those of the studies."""
    tiny_training.install(monkeypatch)
    monkeypatch.setattr(loop, "compile_ahead", tiny_training.compile_once)
    for name in ("small_resnet", "convnet"):
        monkeypatch.setitem(models.MODELS, name, tiny_training.TINY)


def place(tmp_path, **options):
    given = {"clock": Clock(None), "seeds": 1, "small": True, **options}
    return Place(runs=tmp_path / "runs", figures=tmp_path / "figures", **given)


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
    where = place(tmp_path, clock=Clock(10.0), small=False)
    with pytest.raises(OutOfTimeError):
        where.once("a", [], lambda: {})


# The growing norm.


def test_sgd_on_the_toy_problem_grows_by_pythagoras():
    found = scale_growth.descend(optax.sgd(0.1), np.array([0.0, 1.0]), 50)
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


def test_every_optimizer_descends_on_the_toy_problem():
    for make in scale_growth.TOYS.values():
        path = scale_growth.descend(make(), np.array([-0.8, 0.5, 0.331]))["path"]
        assert path[-1, 0] / np.linalg.norm(path[-1]) > 0.9


def test_growth_is_judged():
    def judge(more, less):
        growth = {"adam": more, "adamp": less}
        return scale_growth._judge(growth, "adam", "adamp", "").verdict

    assert judge([1.5, 1.51, 1.52], [1.1, 1.11, 1.12]) == YES
    assert judge([1.1, 1.11, 1.12], [1.5, 1.51, 1.52]) == NO
    assert judge([1.5], [1.1]) == NO  # one seed decides nothing
    assert judge([], [1.1]) == NEVER


# Optimizers from scratch.


def test_rmsprop_begins_with_the_first_square():
    optimizer = from_scratch.scale_by_rms_of_the_first(0.9, 1e-5)
    grads = [jnp.array([3.0, -0.5]), jnp.array([1.0, 2.0])]
    state = optimizer.init(grads[0])
    first, state = optimizer.update(grads[0], state)
    np.testing.assert_allclose(first, grads[0] / (jnp.abs(grads[0]) + 1e-5))
    second, _ = optimizer.update(grads[1], state)
    average = 0.9 * grads[0] ** 2 + 0.1 * grads[1] ** 2
    np.testing.assert_allclose(second, grads[1] / (jnp.sqrt(average) + 1e-5))


def test_gradients_are_recorded_and_left_alone():
    optimizer = from_scratch.record_gradients()
    grads = {"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
    same, state = optimizer.update(grads, optimizer.init(grads))
    assert same is grads
    assert float(state.mean["w"]) == 3.0
    assert float(state.std["w"]) == pytest.approx(np.std([1, 2, 3, 6]))


def test_accuracies_are_judged_by_two_points():
    row = from_scratch.ROWS["sgd"]
    runs = [{"test": row.test + 0.01}, {"test": row.test + 0.02}]
    assert from_scratch._judge(row, runs).verdict == YES
    assert from_scratch._judge(row, [{"test": row.test - 0.03}]).verdict == NO
    assert from_scratch._judge(row, []).verdict == NEVER


# Large batches.


def test_a_rescaled_network_is_sharper_in_the_box_alone():
    rows = large_batch.objection((1.0, 100.0))
    assert all(row["output_difference"] < 1e-4 for row in rows)
    assert rows[1]["box"] > 2 * rows[0]["box"] > 0
    assert rows[1]["sphere"] == pytest.approx(rows[0]["sphere"], rel=0.01)
    assert rows[1]["eigenvalue"] > 2 * rows[0]["eigenvalue"]
    assert large_batch._judge_objection(rows).verdict == YES
    rows[1]["sphere"] *= 1.1
    assert large_batch._judge_objection(rows).verdict == NO


def test_batches_are_judged():
    def judge(small, large):
        small, large = ([{"x": x} for x in xs] for xs in (small, large))
        return large_batch._judge("", small, large, "x", -1.0)

    assert judge([90, 90.1, 90.2], [85, 85.1, 85.2]).verdict == YES
    assert judge([85, 85.1, 85.2], [90, 90.1, 90.2]).verdict == NO
    assert "undecided" in judge([85], [90]).evidence
    assert judge([], [90]).verdict == NEVER


def test_flatness_of_a_trained_network_is_measured(tiny):
    options = ["--dataset=digits", "--model=convnet", "--optimizer=adam"]
    options += ["--batch-size=256", "--epochs=1", "--no-augment"]
    config = large_batch.parse(options)
    found = large_batch.train_and_measure(config, large_batch.load_dataset("digits"))
    assert 10 < found["test_accuracy"] < 100
    assert found["box"] > 0
    assert found["sphere"] > 0
    assert found["eigenvalue"] > 0


# The command, on runs in little.


@pytest.mark.parametrize("name", ["spherical", "local_swats"])
def test_a_study_in_little(tiny, monkeypatch, results, tmp_path, capsys, name):
    monkeypatch.setattr(spherical, "_OPTIMIZERS", ("adam", "adamsrt"))
    monkeypatch.setattr(local_swats, "_OPTIMIZERS", local_swats._OPTIMIZERS[:1])
    args = [name, "--small", "--seeds", "1", "--runs", str(tmp_path / "runs")]
    assert command.main(args) == errors.EXIT_FINISHED
    shown = capsys.readouterr().out
    assert any(word in shown for word in (YES, NO, NEVER))
    figures = list((tmp_path / "runs" / f"{name}-small" / "figures").glob("*.svg"))
    assert figures
    assert not (results / name).exists()  # in little is only shown
    assert command.main(args) == errors.EXIT_FINISHED  # reads what it did
    assert "begins" not in capsys.readouterr().out


def test_the_lesson_in_little(tiny, monkeypatch, results, tmp_path, capsys):
    kinds = from_scratch._DECAYS
    monkeypatch.setattr(from_scratch, "_DECAYS", {"sgd": kinds["sgd"]})
    args = ["from_scratch", "--small", "--seeds", "1", "--runs", str(tmp_path)]
    assert command.main(args) == errors.EXIT_FINISHED
    shown = capsys.readouterr().out
    assert f"{YES}: SGD without momentum: L2 and decoupled" in shown


def test_a_study_is_kept_and_stands_on_the_page(tiny, monkeypatch, results, tmp_path):
    monkeypatch.setattr(scale_growth, "_NETWORK", ("sgd:momentum=0.9", "adam"))
    monkeypatch.chdir(tmp_path)
    assert command.main(["scale_growth", "--seeds", "1"]) == errors.EXIT_FINISHED
    record = json.loads((results / "scale_growth" / "results.json").read_text())
    assert record["command"] == "python -m experiments.studies scale_growth --seeds 1"
    assert record["machine"]["cores"] > 0
    text = (results / "scale_growth" / "README.md").read_text()
    assert "Hardware: " in text
    assert "figures/circle" in text
    page = (results / "index.html").read_text()
    assert "SGDP stops what momentum adds" in page
    assert "src=figures" not in page  # all within the file
    assert "python -m experiments.studies local_swats" in page


def test_time_is_up(results, tmp_path):
    args = ["spherical", "--runs", str(tmp_path / "runs"), "--time-limit", "1s"]
    assert command.main(args) == errors.EXIT_OUT_OF_TIME
    assert not (results / "spherical").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["sperical"], "known: spherical, local_swats"),
        (["spherical", "--seeds", "0"], "--seeds"),
        (["spherical", "--time-limit", "soon"], "--time-limit"),
        (["page", "--readme", "/nowhere/README.md"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line(results, capsys, args, told):
    assert command.main(args) != errors.EXIT_FINISHED
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown


def test_missing_results_name_the_command(results):
    assert command.main([]) == errors.EXIT_FINISHED
    page = (results / "index.html").read_text()
    assert "Not run yet" in page
    for one in STUDIES.values():
        assert one.command in page


def test_damaged_results_name_the_file(results, capsys):
    (results / "spherical").mkdir(parents=True)
    (results / "spherical" / "results.json").write_text('{"verdicts": 3')
    assert command.main([]) == errors.EXIT_USAGE
    shown = capsys.readouterr().err
    assert "spherical/results.json: damaged" in shown
    assert "python -m experiments.studies spherical" in shown


def test_thresholds_are_compared(tmp_path):
    assert local_swats._about_threshold(local_swats.Column({}, [], [])).verdict == NEVER


# What is kept.


def kept():
    return [one for one in STUDIES.values() if study.read(one) is not None]


def test_the_page_is_current():
    current = to_html(gallery.page_blocks(), study.RESULTS)
    again = "run python -m experiments.studies page --readme README.md"
    assert gallery.PAGE.read_text() == current, again


def test_the_summary_in_the_readme_is_current():
    text = README.read_text()
    assert gallery.BEGIN in text
    inside = text.split(gallery.BEGIN)[1].split(gallery.END)[0]
    again = "run python -m experiments.studies page --readme README.md"
    assert inside.strip() == gallery.summary().strip(), again


@pytest.mark.parametrize("one", kept(), ids=lambda one: one.name)
def test_what_is_kept_is_complete(one):
    record = study.read(one)
    assert record["verdicts"]
    for verdict in record["verdicts"]:
        assert verdict.verdict in (YES, NO, NEVER)
        assert verdict.claim
        assert verdict.evidence
    folder = study.RESULTS / one.name
    pictures = [b for b in record["blocks"] if isinstance(b, study.page.Picture)]
    assert pictures
    for picture in pictures:
        for ending in ("png", "svg"):
            assert (folder / f"{picture.file}.{ending}").stat().st_size > 1000
    text = study.page.to_markdown(study.blocks_of(one, record))
    assert (folder / "README.md").read_text() == text


def test_damage_is_told_apart_from_absence(results):
    one = STUDIES["spherical"]
    assert study.read(one) is None
    (results / one.name).mkdir(parents=True)
    (results / one.name / "results.json").write_text("[]")
    with pytest.raises(UsageError, match="damaged"):
        study.read(one)
