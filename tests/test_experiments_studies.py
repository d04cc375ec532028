"""The studies: the command, its settings, and whether what is kept is current."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import tiny_training

from experiments import errors, launch, models
from experiments import loop as loops
from experiments.loop import Loop
from experiments.report import page
from experiments.studies import (
    __main__ as command,
)
from experiments.studies import (
    full_scale,
    gallery,
    keeping,
    study,
)
from experiments.studies.catalogue import STUDIES
from experiments.studies.verdicts import NEVER, NO, YES

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A folder of results of its own."""
    folder = tmp_path / "results"
    for module in (keeping, gallery, command):
        monkeypatch.setattr(module, "RESULTS", folder)
    monkeypatch.setattr(gallery, "PAGE", folder / "index.html")
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """Networks that compile fast, in place of those of the studies."""
    tiny_training.install(monkeypatch)
    monkeypatch.setattr(loops, "compile_ahead", tiny_training.compile_once)
    # Runs in processes of their own know it as tiny.
    training = (sys.executable, tiny_training.__file__)
    monkeypatch.setattr(launch, "TRAIN", training)
    for name in ("small_resnet", "convnet"):
        monkeypatch.setitem(models.MODELS, name, tiny_training.TINY)


# Settings.


def test_settings_in_little_and_from_a_file(tmp_path):
    one = STUDIES["large_batch"]
    assert one.settings()["large_batch"] == 4096
    assert one.settings(small=True)["large_batch"] == 1024
    file = tmp_path / "mine.toml"
    file.write_text("seeds = 7\nbox = 1")
    settings = one.settings(file, small=True)
    assert (settings["seeds"], settings["box"], settings["large_batch"]) == (7, 1, 1024)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sedes = 3", "unknown setting 'sedes'; known: seeds,"),
        ("seeds = 'three'", "seeds must be like 3, got 'three'"),
        ("seeds = 0", "seeds must not be 0"),
        ("seeds = ", "Invalid value"),
        (None, "No such file"),
    ],
)
def test_bad_settings_are_one_line(results, tmp_path, capsys, text, told):
    file = tmp_path / "mine.toml"
    if text is not None:
        file.write_text(text)
    args = ["spherical", "--config", str(file), "--runs", str(tmp_path / "runs")]
    assert command.main(args) == errors.EXIT_USAGE
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: --config {file}: ")
    assert told in shown
    assert shown.count("\n") == 1


# Commands in full.


def test_a_full_scale_command_is_begun(tiny, monkeypatch, results, tmp_path, capsys):
    options = "--dataset digits --optimizers sgd,adam --seeds 0..4 --epochs 3"
    monkeypatch.setattr(
        study.Study, "settings", lambda self, *a, **k: {"full_scale": [options]}
    )
    args = ["scale_growth", "--begin", "digits", "--steps", "2"]
    assert command.main(args) == errors.EXIT_FINISHED
    (record,) = full_scale.read_begun(results / "scale_growth")
    assert (record["steps"], record["steps_in_full"]) == (2, 3 * 22)
    assert record["optimizer"] == "sgd"
    assert 1 < record["loss"] < 5
    monkeypatch.setattr(full_scale, "begin", None)  # it is done
    assert command.main(args) == errors.EXIT_FINISHED
    assert command.main([*args[:2], "nowhere"]) == errors.EXIT_USAGE
    text = page.to_markdown(keeping.blocks_of(STUDIES["scale_growth"]))
    assert "2 of 66" in text
    assert "Not run" in text
    (results / "scale_growth" / full_scale.FILE).write_text("[{}]")
    assert command.main([]) == errors.EXIT_USAGE
    assert "begun.json: damaged" in capsys.readouterr().err


def test_a_command_is_begun_again_on_another_data_set(monkeypatch, results):
    begun = []

    def begin(options, dataset, steps, clock):
        begun.append(dataset)
        raise full_scale.jax.errors.JaxRuntimeError("no memory")

    monkeypatch.setattr(
        study.Study, "settings", lambda self, *a, **k: {"full_scale": ["--seeds 0"]}
    )
    monkeypatch.setattr(full_scale, "begin", begin)
    for dataset in ("digits", "cifar10"):
        assert command.main(["scale_growth", "--begin", dataset]) == 0
    assert begun == ["digits", "cifar10"]
    (record,) = full_scale.read_begun(results / "scale_growth")
    assert record["dataset"] == "CIFAR-10"


def test_a_machine_that_is_too_small_is_on_record(monkeypatch, results):
    def begin(*args):
        raise full_scale.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 30 GB\nmore")

    monkeypatch.setattr(full_scale, "begin", begin)
    args = ["large_batch", "--begin", "digits"]
    assert command.main(args) == errors.EXIT_FINISHED
    text = page.to_markdown(keeping.blocks_of(STUDIES["large_batch"]))
    assert "batch 4096: RESOURCE\\_EXHAUSTED: 30 GB | 0 | - | - |" in text


@pytest.mark.parametrize("one", STUDIES.values(), ids=list(STUDIES))
def test_full_scale_commands_are_right(one, monkeypatch):
    """They are read as the command reads them: every option, every name."""
    for options in one.settings()["full_scale"]:
        config = full_scale.first_run(options, "digits")
        assert config.epochs >= 100
        assert config.model.startswith(("resnet", "densenet"))


def test_commands_on_jpeg_have_the_published_hyperparameters():
    published, _, jpeg = STUDIES["spherical"].settings()["full_scale"]

    def all_runs(options, dataset):
        words = options.split()
        words[words.index("--dataset") + 1] = dataset
        at = words.index("--optimizers") + 1
        names = words[at].split(",")
        if names == ["all"]:
            names = full_scale.reproduce.published_optimizers(dataset, "resnet20")
        for name in names:
            words[at] = name
            config = full_scale.first_run(" ".join(words), dataset)
            yield config.optimizer, config.hyperparameters, config.milestones

    assert sorted(map(str, all_runs(published, "cifar10"))) == sorted(
        map(str, all_runs(jpeg, "digits"))
    )


# The command, on runs in little.


def only(monkeypatch, **settings):
    """Studies with other settings."""
    read = study.Study.settings

    def changed(self, *args, **options):
        found = read(self, *args, **options)
        return {**found, **{k: v for k, v in settings.items() if k in found}}

    monkeypatch.setattr(study.Study, "settings", changed)


@pytest.mark.parametrize("name", ["spherical", "local_swats"])
def test_a_study_in_little(tiny, monkeypatch, results, tmp_path, capsys, name):
    only(monkeypatch, optimizers=["adam", "adamsrt"], switches=["local"], model="tiny")
    only(monkeypatch, thresholds=[1e-5])
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
    only(monkeypatch, decay_optimizers=["sgd"])
    args = ["from_scratch", "--small", "--seeds", "1", "--runs", str(tmp_path)]
    assert command.main(args) == errors.EXIT_FINISHED
    shown = capsys.readouterr().out
    assert f"{YES}: SGD without momentum: L2 and decoupled" in shown
    figures = tmp_path / "from_scratch-small" / "figures"
    assert {f.stem for f in figures.glob("*.png")} == {
        *("gradient-mean", "gradient-std", "finder")
    }


def test_a_study_is_kept_and_stands_on_the_page(tiny, monkeypatch, results, tmp_path):
    only(monkeypatch, optimizers=["sgd:momentum=0.9", "adam"], toy_starts=2)
    only(monkeypatch, model="tiny")
    monkeypatch.chdir(tmp_path)
    assert command.main(["scale_growth", "--seeds", "1"]) == errors.EXIT_FINISHED
    record = json.loads((results / "scale_growth" / "results.json").read_text())
    assert record["command"] == "python -m experiments.studies scale_growth --seeds 1"
    assert record["machine"]["cores"] > 0
    assert record["settings"]["seeds"] == 1
    text = (results / "scale_growth" / "README.md").read_text()
    assert "Hardware: " in text
    assert "What follows" in text
    assert "figures/circle" in text
    whole = (results / "index.html").read_text()
    assert "SGDP stops most of what momentum adds" in whole
    assert "src=figures" not in whole  # all within the file
    assert "python -m experiments.studies local_swats" in whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_study_that_goes_on(
    tiny, monkeypatch, results, tmp_path, capsys, number
):
    only(monkeypatch, learning_rates={"sgd": [0.05, 0.4]}, images=64, lanczos_steps=2)
    args = ["large_batch", "--small", "--seeds", "1", "--runs", str(tmp_path)]
    step, done = Loop.step, []

    def interrupted(self):
        done.append(1)
        if len(done) == 5:
            os.kill(os.getpid(), number)
        return step(self)

    monkeypatch.setattr(Loop, "step", interrupted)
    codes = {
        signal.SIGTERM: errors.EXIT_TERMINATED,
        signal.SIGINT: errors.EXIT_INTERRUPTED,
    }
    assert command.main(args) == codes[number]
    assert "the same command goes on" in capsys.readouterr().err
    if number == signal.SIGINT:
        return  # from here on it is the same
    assert command.main(args) == errors.EXIT_FINISHED
    assert "goes on after 5 of" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*-checkpoints"))


@pytest.mark.parametrize("name", ["spherical", "large_batch"])
def test_time_is_up(results, tmp_path, capsys, name):
    args = [name, "--small", "--runs", str(tmp_path / "runs"), "--time-limit", "1s"]
    assert command.main(args) == errors.EXIT_OUT_OF_TIME
    assert "--time-limit is too short" in capsys.readouterr().err
    assert not (results / name).exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["sperical"], "known: spherical, local_swats"),
        (["spherical", "--seeds", "0"], "--seeds"),
        (["spherical", "--steps", "0"], "--steps"),
        (["spherical", "--time-limit", "soon"], "--time-limit"),
        (["spherical", "--begin", "nowhere"], "--begin"),
        (["page", "--begin", "digits"], "name a study"),
        (["all", "--config", "x.toml"], "--config"),
        (["spherical", "--runs", "/dev/null/x"], "--runs"),
        (["page", "--readme", "/nowhere/README.md"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line(results, capsys, args, told):
    assert command.main(args) == errors.EXIT_USAGE
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_missing_results_name_the_command(results):
    assert command.main([]) == errors.EXIT_FINISHED
    whole = (results / "index.html").read_text()
    assert "Not run yet" in whole
    for one in STUDIES.values():
        assert one.command in whole


@pytest.mark.parametrize("text", ['{"verdicts": 3', "[]", '{"data": {}}'])
def test_damaged_results_name_the_file(results, capsys, text):
    (results / "spherical").mkdir(parents=True)
    (results / "spherical" / "results.json").write_text(text)
    assert command.main([]) == errors.EXIT_USAGE
    shown = capsys.readouterr().err
    assert "spherical/results.json: damaged" in shown
    assert "python -m experiments.studies spherical" in shown


# What is kept.


AGAIN = "run python -m experiments.studies page --readme README.md"


def kept():
    folder = keeping.RESULTS
    return [one for one in STUDIES.values() if (folder / one.name).exists()]


def test_the_page_is_current():
    assert gallery.PAGE.read_text() == gallery.page(), AGAIN


def test_the_page_needs_no_other_file():
    whole = gallery.PAGE.read_text()
    assert "http" not in whole.replace("http://www.w3.org", "")
    assert whole.count("<img") == whole.count('src="data:image/svg+xml;base64,')
    assert "<script" not in whole
    assert "<link" not in whole


def test_the_summary_in_the_readme_is_current():
    text = README.read_text()
    assert gallery.BEGIN in text
    inside = text.split(gallery.BEGIN)[1].split(gallery.END)[0]
    assert inside.strip() == gallery.summary().strip(), AGAIN


@pytest.mark.parametrize("one", kept(), ids=lambda one: one.name)
def test_what_is_kept_is_complete(one):
    """Verdicts and text follow from the numbers; all figures are there, no other."""
    told = keeping.tell(one)
    assert told is not None
    record, outcome = told
    assert outcome.verdicts
    for verdict in outcome.verdicts:
        assert verdict.verdict in (YES, NO, NEVER)
        assert verdict.claim
        assert "n = " in verdict.evidence or verdict.verdict == NEVER
    known = one.settings()
    for name, value in record["settings"].items():
        assert type(value) is type(known[name])
    folder = keeping.RESULTS / one.name
    pictures = [b for b in outcome.blocks if isinstance(b, page.Picture)]
    assert pictures
    named = {f"{p.file}{ending}" for p in pictures for ending in (".png", ".svg")}
    there = {f"figures/{file.name}" for file in (folder / "figures").iterdir()}
    assert named == there
    assert all((folder / file).stat().st_size > 1000 for file in named)
    text = page.to_markdown(keeping.blocks_of(one))
    assert (folder / "README.md").read_text() == text, AGAIN
