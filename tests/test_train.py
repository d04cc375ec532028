"""The training command, from the command line to the run folder."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import install, start

from experiments import data, trainer
from experiments.train import main

FILES = {"config.json", "metrics.jsonl", "summary.json", "learning_curves.png"}
BATCH, STEPS = 64, 22  # of an epoch of the digits


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command on a model that compiles fast: its exit code and its folder."""
    install(monkeypatch)
    out = tmp_path / "run"

    def train(*options, folder=out):
        args = ["--model", "tiny", "--epochs", "2", "--out", str(folder), *options]
        return main(args), folder

    return train


def read_metrics(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def results(folder):
    """The metrics without what a clock measured."""
    lines = read_metrics(folder)
    for line in lines:
        assert line.pop("timing").keys() >= {"train_seconds", "images_per_second"}
    return lines


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def command(*args, **options):
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *args],
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
        **{"stdout": subprocess.PIPE, **options},
    )


def test_default_command_reaches_its_accuracy(tmp_path):
    with command("--out", str(tmp_path / "run")) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("adamsrt on digits (1,442 images) with small_resnet")
    assert lines[1].startswith("epoch  1/30  train loss")
    assert lines[-1].startswith("finished after 30 of 30 epochs: test accuracy 9")
    assert "\x1b" not in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    metrics = read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in metrics] == list(range(1, 31))
    assert metrics[-1]["step"] == 30 * STEPS
    assert metrics[-1]["test_accuracy"] >= 0.97
    assert metrics[-1]["learning_rate"] < 1e-3 * metrics[0]["learning_rate"]
    picture = (tmp_path / "run/learning_curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "finished"
    assert summary["test_accuracy"] == metrics[-1]["test_accuracy"]
    assert summary["timing"]["images_per_second"] > 0


def test_config_repeats_the_run_to_the_last_bit(train, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    args = ["--optimizer", "swats", "--threshold", "0.05"]
    assert train(*args, folder=first)[0] == 0
    repeat = ["--config", str(first / "config.json"), "--out", str(second)]
    assert main(repeat) == 0
    assert results(first) == results(second)
    configs = [json.loads((run / "config.json").read_text()) for run in (first, second)]
    assert configs[0]["config"] == configs[1]["config"]
    assert "began" in configs[0]
    assert configs[0]["versions"].keys() >= {
        "python",
        "jax",
        "optax",
        "spherical_optax",
    }
    table = (first / "switch_points.csv").read_text()
    assert table == (second / "switch_points.csv").read_text()
    header, *rows = [line.split(",") for line in table.splitlines()]
    assert header == ["path", "step", "sgd_learning_rate"]
    steps = [int(step) for _, step, _ in rows]
    assert steps
    assert steps == sorted(steps)
    assert all(1 <= step <= 2 * STEPS for step in steps)
    assert all(float(rate) > 0 for _, _, rate in rows)


def test_what_changes_the_numbers_and_what_does_not(train, tmp_path):
    def numbers(name, *options):
        assert train("--epochs", "1", *options, folder=tmp_path / name)[0] == 0
        return results(tmp_path / name)[0]

    base = numbers("base")
    assert numbers("seed", "--seed", "1")["test_loss"] != base["test_loss"]
    assert numbers("plain", "--no-augment")["train_loss"] != base["train_loss"]
    steps = ("--optimizer", "swats", "--threshold", "1e9", "--schedule", "step")
    falls = numbers("falls", *steps, "--milestones", "0.1")
    never = numbers("never", *steps, "--milestones", "0.1", "--sgd-milestones")
    assert never["train_loss"] != falls["train_loss"]
    batches = numbers("batches", "--eval-batch-size", "100")
    assert batches.pop("test_loss") == pytest.approx(base.pop("test_loss"), rel=1e-5)
    assert batches == base


def test_run_is_not_overwritten_unasked(train, capsys):
    _, folder = train("--epochs", "1")
    before = results(folder)
    assert train("--seed", "1")[0] == 2
    assert "--overwrite" in capsys.readouterr().err
    assert results(folder) == before
    assert train("--seed", "1", "--overwrite")[0] == 0
    assert len(results(folder)) == 2


def test_option_that_cannot_be_leaves_the_older_run_alone(train, capsys):
    _, folder = train("--epochs", "1")
    before = results(folder)
    assert train("--overwrite", "--batch-size", "1443")[0] == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --batch-size must be at most 1442")
    assert error.count("\n") == 1
    assert results(folder) == before


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--optimizer", "adamx"], ["'adamx'", "known: adams, adamsrt"]),
        (["--model", "vit"], ["'vit'", "known: small_resnet"]),
        (["--dataset", "mars"], ["'mars'", "known: digits"]),
        (["--momentum", "0.9"], ["--momentum", "--b1"]),
        (["--learning-rate", "-1"], ["--learning-rate"]),
        (["--accumulate", "0"], ["--accumulate", "at least 1"]),
        (["--accumulate", "7"], ["--accumulate", "--batch-size 64"]),
        (["--skip-nonfinite", "-1"], ["--skip-nonfinite"]),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(args, parts, tmp_path, capsys):
    assert main([*args, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts)
    assert not (tmp_path / "run").exists()


def test_batch_as_large_as_the_data(train):
    code, folder = train("--batch-size", "1442", "--epochs", "1")
    assert code == 0
    assert results(folder)[0]["step"] == 1


def test_learning_rate_that_explodes_stops_the_run(train, capsys):
    code, folder = train("--learning-rate", "1e30")
    error = capsys.readouterr().err
    assert code == 3
    assert error.startswith("stopped: not finite at epoch 1, step ")
    summary = summary_of(folder)
    assert summary["status"] == "not finite"
    assert summary["message"] in error
    unfinished = summary["unfinished_epoch"]
    assert unfinished["epoch"] == 1
    assert f"batch {unfinished['batches'] + 1} of {STEPS}" in error
    assert math.isfinite(unfinished["train_loss"])


def test_last_step_that_explodes_stops_the_run(train, capsys):
    """No later gradient can tell: the weights do."""
    code, folder = train(
        "--optimizer",
        "sgd",
        "--learning-rate",
        "1e38",
        "--weight-decay",
        "1e38",
        "--epochs",
        "1",
        "--batch-size",
        "1442",
    )
    assert code == 3
    error = capsys.readouterr().err
    assert (
        "after epoch 1, step 1: first leaf whose weights are not finite: head/" in error
    )
    assert results(folder) == []


def poisoned_digits(seed):
    """Digits of which one training image turns to NaN; the step that meets it.

    The first epoch leaves the image out, and the second has it in the middle.
    """
    dataset = data.load_dataset("digits")
    orders = [
        np.random.default_rng((seed, epoch)).permutation(1442) for epoch in (1, 2)
    ]
    left_out = set(orders[0][STEPS * BATCH :].tolist())
    image, place = next(
        (image, place)
        for place, image in enumerate(orders[1][: 15 * BATCH].tolist())
        if image in left_out and place > 5 * BATCH
    )
    images = dataset.train.images.copy()
    images[image] = 255

    def augment(key, images):
        return jnp.where(images == 255, jnp.nan, images.astype(jnp.float32))

    split = data.Split(images, dataset.train.labels)
    dataset = dataclasses.replace(dataset, train=split, augment=augment)
    return dataset, STEPS + place // BATCH + 1


def test_image_that_is_not_finite_stops_the_run_at_its_step(train, monkeypatch, capsys):
    dataset, step = poisoned_digits(seed=0)
    monkeypatch.setitem(data.DATASETS, "digits", lambda: dataset)
    code, folder = train("--epochs", "3")
    assert code == 3
    message = capsys.readouterr().err
    assert f"not finite at epoch 2, step {step} (batch {step - STEPS} of 22)" in message
    # XLA's fast maximum takes NaN for 0: the loss may seem finite, the gradient not.
    leaf = message.split("first leaf whose gradient is not finite: ")[1].strip()
    assert leaf in {"head/bias", "stage1/block0/conv1/kernel"}
    assert [line["epoch"] for line in results(folder)] == [1]
    assert (folder / "learning_curves.png").exists()
    summary = summary_of(folder)
    assert summary["epochs"] == 1
    assert summary["unfinished_epoch"]["batches"] == step - STEPS - 1


def test_image_that_is_not_finite_is_left_out_if_asked(train, monkeypatch):
    dataset, _ = poisoned_digits(seed=0)
    monkeypatch.setitem(data.DATASETS, "digits", lambda: dataset)
    options = ("--skip-nonfinite", "1", "--accumulate", "2", "--optimizer", "swats")
    code, folder = train("--epochs", "2", *options)
    assert code == 0
    lines = results(folder)
    assert [line["skipped_steps"] for line in lines] == [0, 1]
    # The schedule counts the steps that were taken: 22, then 43 of 44.
    config = json.loads((folder / "config.json").read_text())["config"]
    cosine = optax.cosine_decay_schedule(config["hyperparameters"]["learning_rate"], 44)
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([float(cosine(21)), float(cosine(42))], rel=1e-5)
    assert all(math.isfinite(line["train_loss"]) for line in results(folder))
    assert (folder / "switch_points.csv").exists()


def test_test_loss_that_is_not_finite_stops_the_run(train, monkeypatch, capsys):
    dataset = data.load_dataset("digits")
    dataset = dataclasses.replace(dataset, augment=lambda key, images: images * 0.0)
    monkeypatch.setitem(data.DATASETS, "digits", lambda: dataset)
    monkeypatch.setattr(trainer, "make_evaluate", broken_evaluation)
    code, folder = train()
    assert code == 3
    assert "after epoch 1, step 22: test loss inf" in capsys.readouterr().err
    assert results(folder)[0]["test_loss"] is None


def broken_evaluation(graph, dataset):
    return lambda params, stats, images, labels, weights: (
        jnp.inf * jnp.sum(weights),
        jnp.sum(weights),
    )


def test_ctrl_c_ends_cleanly_and_keeps_the_metrics(tmp_path):
    folder = tmp_path / "run"
    with start("--epochs", "5000", "--out", str(folder)) as process:
        path = folder / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not path.exists() or len(path.read_text().splitlines()) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    epochs = [line["epoch"] for line in read_metrics(folder)]
    assert epochs == list(range(1, len(epochs) + 1))
    last = out.splitlines()[-1]
    assert last.startswith(f"interrupted after {len(epochs)} of 5000 epochs: test")
    assert summary_of(folder)["status"] == "interrupted"
    assert {path.name for path in folder.iterdir()} == FILES | {"checkpoints"}


def test_ctrl_c_before_the_first_step(train, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(data.DATASETS, "digits", interrupted)
    code, folder = train()
    assert code == 130
    assert capsys.readouterr().err == "interrupted before the first step\n"
    assert not folder.exists()


def test_second_ctrl_c_says_that_nothing_was_saved(train, monkeypatch, capsys):
    def interrupted(config, stop, began):
        stop.begun_at = began
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.train.train", interrupted)
    assert train()[0] == 130
    assert capsys.readouterr().err.startswith("interrupted twice, and not saved; ")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("pipe", ""),
        (
            "/dev/full",
            "warning: the output cannot be written: No space left on device\n",
        ),
    ],
)
def test_output_that_cannot_be_written_does_not_end_the_run(output, said, tmp_path):
    if output == "pipe":
        reads, writes = os.pipe()
        os.close(reads)
    elif Path(output).exists():
        writes = os.open(output, os.O_WRONLY)
    else:
        pytest.skip(f"there is no {output}")
    folder = tmp_path / "run"
    args = ("--epochs", "2", "--checkpoint-every", "1", "--out", str(folder))
    with command(*args, stdout=writes) as process:
        os.close(writes)
        _, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, said)
    assert [line["epoch"] for line in read_metrics(folder)] == [1, 2]
    assert summary_of(folder)["status"] == "finished"
    assert {path.name for path in folder.iterdir()} == FILES | {"checkpoints"}


def test_full_disk_is_one_line(train, monkeypatch, capsys):
    from experiments.runs import RunFolder

    def full(self, metrics):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "add_metrics", full)
    assert train()[0] == 1
    assert "No space left on device" in capsys.readouterr().err


FORMULA = "a$_$b\udcff"  # a name that is no formula, though it looks like one


def test_any_name_of_a_data_set_can_be_drawn(train, monkeypatch):
    monkeypatch.setitem(data.DATASETS, FORMULA, data.DATASETS["digits"])
    code, folder = train("--dataset", FORMULA, "--epochs", "1", "--monitor")
    assert code == 0
    assert {path.name for path in folder.iterdir()} == {*FILES, "spheres.png"}


def test_figures_that_were_not_drawn_are_drawn_by_resuming(train, monkeypatch, capsys):
    """A run has ended when its training has, whatever becomes of its figures."""

    def break_(figure, *args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("matplotlib.figure.Figure.savefig", break_)
        code, folder = train("--epochs", "1", "--monitor")
    assert code == 1
    assert "No space left on device" in capsys.readouterr().err
    assert summary_of(folder)["status"] == "finished"
    assert {path.name for path in folder.iterdir()} == FILES - {"learning_curves.png"}
    assert train("--epochs", "1", "--monitor", "--resume")[0] == 0
    assert {path.name for path in folder.iterdir()} == {*FILES, "spheres.png"}
    assert "nothing left to do" in capsys.readouterr().out
