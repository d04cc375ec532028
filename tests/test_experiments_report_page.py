"""The report's pages and figures: what they show, and that nothing is lost."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from reports import columns, report, tables
from run_folders import add, config_of, line_of, write_run

from experiments import drawing
from experiments.report import text
from experiments.report.command import main
from experiments.report.figures import TEST_ERROR, draw_accuracies, draw_curves
from experiments.report.page import Code, Heading, Table, to_html, to_markdown
from experiments.report.text import dataset_title


def test_list_of_commands_that_is_no_text_is_shown_as_far_as_it_is(runs):
    add(runs, "adam", 0, 90)
    (runs / "commands.txt").write_bytes(b"python \xff\xfe\n")
    assert "python \N{REPLACEMENT CHARACTER}" in report(runs)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("cifar10", "CIFAR-10"),
        ("folder:/data/cifar10-jpeg.tar.xz", "CIFAR-10 (JPEG)"),
        ("folder:CIFAR-10_jpeg", "CIFAR-10 (JPEG)"),
        ("folder:/data/flowers", "Folder flowers"),
        ("other", "other"),
    ],
)
def test_data_sets_have_titles(name, title):
    assert dataset_title(name) == title


def test_data_sets_of_one_title_have_figures_of_their_own(runs):
    for place, accuracy in (("/a/cats", 50.0), ("/b/cats", 90.0), ("/c/кошки", 70.0)):
        add(runs, "adam", 0, accuracy, dataset=f"folder:{place}")
    add(runs, "adam", 0, 60.0, dataset="folder:/c/собаки")
    report(runs)
    titles = [table["title"].split(", ")[0] for table in tables(runs)]
    assert set(titles) == {"folder:/a/cats", "folder:/b/cats"} | {
        f"Folder {name}" for name in ("кошки", "собаки")
    }
    page = (runs / "report/report.md").read_text()
    drawn = re.findall(r"\(figures/([^)]+)\)", page)
    assert len(drawn) == len(set(drawn)) >= 4


def test_html_needs_no_other_file(runs):
    for seed in (0, 1):
        add(runs, "adam", seed, 90.0 + seed)
        add(runs, "sgd", seed, 100.0)  # no error to draw on a logarithmic axis
    report(runs, "--title", "<Tests> & |trials|")
    page = (runs / "report/report.html").read_text()
    assert "<h1>&lt;Tests&gt; &amp; |trials|</h1>" in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,22})', page)) == {
        "data:image/svg+xml;bas"
    }
    assert page.count("<img") == 3
    figures = {path.name for path in (runs / "report/figures").iterdir()}
    stem = "digits-scikit-learn-small-resnet"
    assert figures == {
        f"{stem}-{kind}.{ending}"
        for kind in ("accuracy", "error", "loss")
        for ending in ("png", "svg")
    }
    text = (runs / "report/report.md").read_text()
    assert text.startswith("# \\<Tests\\> & \\|trials\\|\n")
    for link in re.findall(r"\]\((\S+)\)", text):
        assert (runs / "report" / link).exists()


def test_figures_of_an_earlier_report_are_replaced(runs):
    add(runs, "adam", 0, 90.0)
    report(runs)
    figures = runs / "report/figures"
    (figures / "notes.txt").write_text("mine")
    shutil.copy(next(figures.glob("*-loss.png")), figures / "gone-loss.png")
    report(runs)
    assert not (figures / "gone-loss.png").exists()
    assert (figures / "notes.txt").exists()


def test_captions_carry_seeds_hardware_date_and_command(runs):
    for seed in (0, 1, 2):
        add(runs, "adam", seed, 90.0 + seed)
    (runs / "commands.txt").write_text("python -m experiments.reproduce --seeds 0..2\n")
    text = report(runs)
    captions = [line for line in text.splitlines() if line.startswith("*Test")]
    assert len(captions) == 2
    for caption in captions:
        assert "n = 3" in caption
        assert "cpu, 2 CPU cores" in caption
        assert re.search(r"\d{4}-\d\d-\d\d", caption)
        assert "python -m experiments.reproduce --seeds 0..2" in caption


def test_the_date_is_that_of_the_run_and_not_of_its_files(runs):
    config, lines = config_of(epochs=1), [line_of(1, 0.9)]
    write_run(runs / "a", config, lines, began="2020-02-03T04:05:06+00:00")
    assert "Date of the runs: 2020-02-03\n" in report(runs)


def test_a_run_beside_a_grid_is_told_with_its_command(runs):
    for seed in (0, 1):
        add(runs / "grid", "adam", seed, 90.0 + seed)
    (runs / "grid/commands.txt").write_text("python -m experiments.reproduce\n")
    (single := runs / "single").mkdir()
    config = json.loads((add(single, "lamb", 0, 80.0) / "config.json").read_text())
    lines = report(runs).splitlines()
    assert "python -m experiments.reproduce" in lines
    assert shlex.join(config["command"]) in lines


def test_page_escapes_what_it_shows():
    blocks = [Heading(1, "a_b"), Table(["x"], [["1 | 2"]], ["x"]), Code(["a < b"])]
    assert "| 1 \\| 2 |" in to_markdown(blocks)
    page = to_html(blocks, Path())
    assert '<td class="n" data-name="x">1 | 2</td>' in page
    assert "a &lt; b" in page


@pytest.mark.parametrize("devices", [None, 3, [None], [{}]], ids=str)
def test_odd_devices_are_told_as_they_are(devices):
    assert "4 CPU cores" in text._machine({"devices": devices, "cpus": 4})


def test_any_name_can_be_drawn(runs):
    """Labels have values of options, which may look like a formula."""
    for seed, switch in enumerate(("a$_$b", "$_$", "\\$")):
        options = {"learning_rate": 0.001, "switch": switch}
        add(runs, "swats$_$", seed, 90, hyperparameters=options)
    assert "switch a$" in report(runs)
    assert len(list((runs / "report/figures").glob("*.svg"))) == 3


def drawn_at_random(runs, count):
    """Settings as a sweep tries them; one column."""
    random = np.random.default_rng(0)
    for seed in range(count):
        options = {
            "learning_rate": float(np.exp(random.uniform(-12, 0))),
            "weight_decay": float(np.exp(random.uniform(-14, -4))),
            "b1": float(random.uniform(0.0001, 0.001)),
        }
        add(runs, "adamsrt", seed, random.uniform(50, 95), hyperparameters=options)
    (column,) = columns(runs)
    return column


def test_numbers_in_labels_have_the_digits_that_tell_them_apart(runs):
    for seed, (rate, b1) in enumerate(((0.123456789, 0.9), (0.123456111, 0.75))):
        options = {"learning_rate": rate, "b1": b1, "milestones": [1 / 3, seed]}
        add(runs, "adam", seed, 90, hyperparameters=options)
    (column,) = columns(runs)
    assert sorted(column.labels) == [
        "adam learning_rate=0.123456 b1=0.75 milestones=[0.3333, 1]",
        "adam learning_rate=0.123457 b1=0.9 milestones=[0.3333, 0]",
    ]
    assert all(len(x) < 70 for x in drawn_at_random(runs / "more", 8).labels)


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_no_labels_of_a_figure_overlap_or_are_cut(runs, width, monkeypatch):
    def check(figure, stem):
        figure.canvas.draw()
        texts = [text for text in figure.findobj(Text) if text.get_visible()]
        labels = [text for text in texts if "weight_decay=" in text.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) == len(column.labels)
        for index, box in enumerate(boxes):
            assert box.min.min() >= 0
            assert (box.max <= figure.bbox.max).all()
            assert not any(box.overlaps(other) for other in boxes[:index])
        checked.append(stem)

    monkeypatch.setattr(drawing, "_save", check)
    column, checked = drawn_at_random(runs, 16), []
    draw_accuracies(column, [None] * 16, runs / "accuracy", width)
    draw_curves(column, TEST_ERROR, runs / "error")
    assert len(checked) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 elsewhere")
def test_names_that_are_not_utf8(tmp_path, capfdbinary):
    """In paths of runs, data sets and commands; told as they can be."""
    name = os.fsdecode(b"caf\xe9")
    runs = tmp_path / name
    for seed, part in enumerate(("b", "a", "b")):
        config = config_of("adam", seed, dataset=f"folder:/{part}/{name}")
        folder = runs / f"{name}-{seed}"
        command = ["python", "-m", "experiments.train", f"--dataset=folder:/{name}"]
        write_run(folder, config, [line_of(e, 0.9) for e in (1, 2, 3)], command=command)
    add(runs, f"adam{name}", 0, 90, status=None)
    shutil.copytree(runs / f"{name}-1", runs / f"{name}-9")
    (runs / f"{name}-2" / "summary.json").write_text("no JSON")
    assert main([str(runs), "--title", name]) == 0
    assert rb"caf\udce9/report/report.md" in capfdbinary.readouterr().out
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for path in (runs / "report").iterdir()
        if path.is_file()
    }
    assert texts.keys() == {
        *("report.md", "report.html", "results.json", "runs.csv", "curves.csv")
    }
    for content in texts.values():
        assert r"caf\udce9" in content.replace(r"\\", "\\")
    found = {table["config"]["dataset"] for table in tables(runs)}
    assert found == {"digits", *(rf"folder:/{p}/caf\udce9" for p in "ba")}
