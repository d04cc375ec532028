"""The report: which runs count, what is compared, what holds."""

import csv
import json

import numpy as np
import pytest
from reports import columns, report, tables
from run_folders import add, config_of, line_of, write_run

from experiments import reproduce
from experiments.config import ADDED_LATER, parse, to_json
from experiments.report import published
from experiments.report.command import main
from experiments.report.text import chosen, settings_line


def test_runs_of_an_earlier_version_belong_to_those_of_today(runs):
    add(runs, "adam", 0, 96.0)  # without an option that came later
    add(runs, "adam", 1, 97.0, **ADDED_LATER)
    (column,) = columns(runs)
    (setting,) = column.settings
    assert len(setting.finished) == 2
    assert settings_line(chosen(column.config)) == "epochs 3, batch_size 64"
    add(runs, "adam", 2, 97.0, **{**ADDED_LATER, "accumulate": 2})
    _, other = columns(runs)
    assert "accumulate 2" in settings_line(chosen(other.config))


def test_mean_and_deviation_over_seeds(runs):
    for seed, accuracy in enumerate((96.0, 97.0, 99.0)):
        add(runs, "adam", seed, accuracy)
    add(runs, "sgd", 0, 95.0)
    text = report(runs)
    # Without a published figure there is no column for one.
    assert "| optimizer | n | test accuracy | options |" in text
    assert "| adam | 3 | 97.33 (1.53) | learning" in text
    assert "| sgd | 1 | 95.00 (-) | learning" in text
    adam, sgd = tables(runs)[0]["rows"]
    assert adam["test_accuracy"] == pytest.approx(
        {"n": 3, "mean": 97 + 1 / 3, "std": np.std([96, 97, 99], ddof=1)}
    )
    assert sgd["test_accuracy"] == {"n": 1, "mean": pytest.approx(95), "std": None}
    assert "4 runs: 4 finished" in text
    assert "None: every run that was found is finished and counts." in text


def test_only_finished_runs_count(runs, capsys):
    add(runs, "adam", 0, 90.0)
    add(runs, "adam", 1, 10.0, status=None)
    add(runs, "adam", 2, 10.0, status="interrupted")
    add(runs, "adam", 3, 10.0, status="not finite")
    short = add(runs, "adam", 4, 10.0, status="out of time")
    lines = (short / "metrics.jsonl").read_text().splitlines(keepends=True)
    (short / "metrics.jsonl").write_text("".join(lines[:-1]))
    last = {**line_of(3, 0.1), "test_accuracy": None}
    write_run(runs / "nan", config_of(seed=5), [line_of(1, 0.1), line_of(2, 0.1), last])
    text = report(runs)
    assert "| adam | 1 of 6 | 90.00 (-) |" in text
    left_out = text.split("## Runs that do not count")[1]
    assert left_out.count("| incomplete |") == 3
    assert left_out.count("| not finite |") == 2
    assert "2 of 3 epochs" in left_out
    assert "6 runs: 1 finished, 3 incomplete, 2 not finite" in capsys.readouterr().out
    rows = csv.DictReader((runs / "report/runs.csv").read_text().splitlines())
    assert sum(bool(row["test_accuracy"]) for row in rows) == 1


def test_runs_of_one_name_are_told_apart(runs):
    for rate in ("0.1", "0.01"):
        config = config_of("sgd", hyperparameters={"learning_rate": float(rate)})
        write_run(runs / rate / "seed0", config, [line_of(e, 0.5) for e in (1, 2, 3)])
    report(runs)
    for file, lines in (("runs.csv", 1), ("curves.csv", 3)):
        rows = csv.DictReader((runs / "report" / file).read_text().splitlines())
        names = [row["run"] for row in rows]
        assert names == [*["0.01/seed0"] * lines, *["0.1/seed0"] * lines]


def test_a_run_that_does_not_say_how_fast_it_was(runs):
    folder = add(runs, "adam", 0, 90.0)
    summary = {"status": "finished", "timing": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    report(runs)
    (row,) = csv.DictReader((runs / "report/runs.csv").read_text().splitlines())
    assert row["images_per_second"] == ""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: (p / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda p: (p / "config.json").unlink(), "config.json is missing"),
        (lambda p: (p / "config.json").write_text("[]"), "is not a JSON object"),
        (lambda p: (p / "config.json").write_text("{}"), "is not that of a run"),
        (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), "is not JSON"),
        (
            lambda p: (p / "summary.json").write_text('{"sta'),
            "summary.json is not",
        ),
        (
            lambda p: (p / "summary.json").write_text('{"timing": [1]}'),
            "summary.json: timing cannot be [1]",
        ),
        (
            lambda p: (p / "metrics.jsonl").write_text(
                json.dumps({**line_of(1, 0.5), "test_accuracy": True}) + "\n"
            ),
            "line 1 is not that epoch's",
        ),
        (
            lambda p: (p / "metrics.jsonl").unlink(),
            "metrics.jsonl has 0 of 3 epochs, and summary.json says that the run is",
        ),
        (
            lambda p: (p / "metrics.jsonl").write_text("x\n"),
            "line 1 is not that epoch's",
        ),
        (
            lambda p: (p / "metrics.jsonl").write_text(
                json.dumps({**line_of(1, 0.5), "test_accuracy": "0.9"}) + "\n"
            ),
            "line 1 is not that epoch's",
        ),
        (
            lambda p: (p / "metrics.jsonl").write_text(
                json.dumps(line_of(2, 0.5)) + "\n"
            ),
            "line 1 is not that epoch's",
        ),
    ],
)
def test_damaged_runs_are_named(runs, damage, reason):
    add(runs, "adam", 0, 90.0)
    damaged = add(runs, "adam", 1, 10.0)
    damage(damaged)
    text = report(runs)
    assert "| adam | 1 | 90.00 (-) |" in text
    (line,) = [line for line in text.splitlines() if "| unreadable |" in line]
    assert damaged.name in line
    assert reason in line.replace("\\", "")


def test_line_that_a_kill_cut_short_is_left_out(runs):
    cut = add(runs, "adam", 0, 90.0, status=None)
    text = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(text[:-20])
    text = report(runs)
    assert "| incomplete | 2 of 3 epochs |" in text
    assert "| adam | 0 of 1 | - | learning" in text


def test_missing_metrics_and_provenance_do_not_stop_the_report(runs):
    add(runs, "adam", 0, 90.0)
    bare = add(runs, "adam", 1, 90.0, status=None)
    (bare / "metrics.jsonl").unlink()
    record = json.loads((bare / "config.json").read_text())
    record = {**record, "versions": None, "machine": None, "command": None}
    (bare / "config.json").write_text(json.dumps(record))
    text = report(runs)
    assert "| incomplete | 0 of 3 epochs |" in text


def test_nothing_but_unreadable_runs_is_reported(runs):
    (runs / "a").mkdir(parents=True)
    (runs / "a/config.json").write_text("")
    text = report(runs)
    assert "1 run: 1 unreadable" in text


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()])
def test_no_runs_is_a_usage_error(runs, capsys, make):
    make(runs)
    assert main([str(runs)]) == 2
    assert f"error: RUNS {runs}: " in capsys.readouterr().err
    assert not (runs / "report").exists()


def test_folder_that_cannot_be_is_a_usage_error(runs, capsys):
    add(runs, "adam", 0, 90)
    assert main([str(runs), "--out", "/proc/nowhere"]) == 2
    error = capsys.readouterr().err
    assert error == "error: --out /proc/nowhere: No such file or directory\n"


def test_runs_with_different_settings_are_never_mixed(runs):
    fast = {"learning_rate": 0.1, "weight_decay": 0.0}
    for seed in (0, 1):
        add(runs, "adam", seed, 90.0 + seed)
        add(runs, "adam", seed, 80.0 + seed, hyperparameters=fast)
        add(runs, "adam", seed, 70.0 + seed, batch_size=128)
    text = report(runs)
    means = {
        (table["config"]["batch_size"], row["label"]): row["test_accuracy"]["mean"]
        for table in tables(runs)
        for row in table["rows"]
    }
    assert means == pytest.approx(
        {
            (64, "adam learning_rate=0.001"): 90.5,
            (64, "adam learning_rate=0.1"): 80.5,
            (128, "adam"): 70.5,
        }
    )
    assert "batch\\_size 128" in text
    assert {table["title"].split(", ")[2] for table in tables(runs)} == {
        "batch_size 64",
        "batch_size 128",
    }


def test_repeated_seed_counts_once(runs):
    add(runs, "adam", 0, 90.0)
    add(runs, "adam", 0, 90.0)
    add(runs, "adam", 1, 92.0)
    text = report(runs)
    assert "| adam | 2 | 91.00 (1.41) |" in text
    assert "| repeat | seed 0 is in already |" in text


def test_validation_chooses_the_epoch_and_the_test_never_does(runs):
    lines = [
        line_of(1, 0.50, validation=0.6),
        line_of(2, 0.70, validation=0.9),
        line_of(3, 0.80, validation=0.8),
    ]
    write_run(runs / "a", config_of(seed=0), lines)
    (column,) = columns(runs)
    assert column.settings[0].accuracy.mean == pytest.approx(70)
    without = [line_of(1, 0.9), line_of(2, 0.7), line_of(3, 0.8)]
    write_run(runs / "b", config_of("sgd"), without)
    (column,) = columns(runs)
    assert column.settings[1].accuracy.mean == pytest.approx(80)


def published_config(protocol, model, optimizer, *options):
    """The configuration of a published run."""
    args = ["--dataset=cifar10", f"--model={model}", f"--optimizer={optimizer}"]
    config = to_json(parse([*args, f"--protocol={protocol}", *options]))
    return json.loads(json.dumps(config))


def test_published_figure_is_compared_under_its_settings_alone(runs):
    lines = [line_of(e, 0.92, validation=0.9) for e in range(1, 406)]
    full = published_config("spherical", "resnet20", "adam")
    short = published_config("spherical", "resnet20", "adam", "--epochs=3")
    write_run(runs / "a", full, lines)
    write_run(runs / "b", short, lines[:3])
    text = report(runs)
    rows = [line for line in text.splitlines() if line.startswith("| adam |")]
    assert [row.split(" | ")[1:5] for row in sorted(rows)] == [
        ["1", "92.00 (-)", "90.98 (0.06)", "+1.02"],
        ["1", "92.00 (-)", "90.98 (0.06)", "-"],
    ]
    assert "Departures here: epochs 3, published 405." in text
    assert "These runs have its settings." in text


def test_other_hyperparameters_are_a_departure(runs):
    config = published_config("spherical", "resnet20", "adam", "--weight-decay=0")
    write_run(runs / "a", config, [line_of(1, 0.9)], None)
    (column,) = columns(runs)
    figure = published.published_figure(column.settings[0])
    assert figure.mean == 90.98
    assert figure.departures == ("weight_decay 0, published 0.0005",)


def test_options_tell_published_rows_apart(runs):
    for switch in ("local", "global"):
        config = published_config("swats", "densenet121", "swats", f"--switch={switch}")
        write_run(runs / switch, config, [line_of(1, 0.9)], None)
    (column,) = columns(runs)
    assert [label.split(" sgd_milestones")[0] for label in column.labels] == [
        "swats switch=global milestones=[0.75]",
        "swats switch=local milestones=[0.5]",
    ]
    figures = [published.published_figure(setting) for setting in column.settings]
    assert [figure.mean for figure in figures] == [93.30, 94.62]
    assert [figure.departures for figure in figures] == [(), ()]


def test_jpeg_is_not_compared_with_published_figures(runs):
    config = published_config("spherical", "resnet20", "adam")
    config["dataset"] = "folder:/data/cifar10-jpeg.tar.xz"
    write_run(runs / "a", config, [line_of(1, 0.9)], None)
    text = report(runs)
    assert "## CIFAR-10 (JPEG), resnet20" in text
    assert "not with published CIFAR-10 figures" in text
    assert tables(runs)[0]["rows"][0]["published"] is None
    assert "90.98" not in text
    assert "/data" not in text


def test_small_real_grid_from_training_to_report(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    out = tmp_path / "grid"
    grid = ["--optimizers", "adam,sgd", "--seeds", "0..1", "--out", str(out)]
    assert reproduce.main([*grid, "--model", "convnet", "--epochs=1"]) == 0
    first, second = (
        json.loads((out / f"adam-seed{seed}/summary.json").read_text())
        for seed in (0, 1)
    )
    seconds = [run["timing"]["compile_seconds"] for run in (first, second)]
    assert seconds[1] < seconds[0]  # the program was kept
    text = report(out)
    (table,) = tables(out)
    assert [row["label"] for row in table["rows"]] == ["adam", "sgd"]
    assert [row["test_accuracy"]["n"] for row in table["rows"]] == [2, 2]
    mean = (first["test_accuracy"] + second["test_accuracy"]) / 2
    assert table["rows"][0]["test_accuracy"]["mean"] == pytest.approx(100 * mean)
    assert "python -m experiments.reproduce --dataset digits --model convnet" in text
