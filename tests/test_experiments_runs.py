"""The run folder, and what a run shows while it goes."""

import io
import json

import pytest
from rich.console import Console

from experiments.errors import UsageError
from experiments.progress import ProgressDisplay
from experiments.runs import RunFolder
from experiments.steps import Means


@pytest.fixture
def run(tmp_path):
    """A folder with a run and a stranger's file in it."""
    path = tmp_path / "runs" / "a"
    folder = RunFolder(path, overwrite=False)
    folder.begin({"seed": 0})
    folder.add_metrics({"epoch": 1})
    folder.write_summary({"status": "finished"})
    (path / "notes.txt").write_text("mine")
    (path / "sub").mkdir()
    (path / "sub" / "metrics.jsonl").write_text("mine too")
    return path


def contents(path):
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*.*")}


def test_run_is_not_overwritten_unasked(run):
    before = contents(run)
    with pytest.raises(UsageError, match=f"--out {run}: .*--overwrite"):
        RunFolder(run, overwrite=False)
    assert contents(run) == before


def test_overwrite_deletes_the_files_of_the_run_alone(run):
    before = contents(run)
    folder = RunFolder(run, overwrite=True)
    assert contents(run) == before  # nothing is lost before the new run begins
    folder.begin({"seed": 1})
    after = contents(run)
    assert json.loads(after.pop("config.json"))["config"] == {"seed": 1}
    assert after == {"notes.txt": "mine", "sub/metrics.jsonl": "mine too"}


def test_overwrite_empties_the_folder_behind_a_link_and_keeps_the_link(run, tmp_path):
    """Checkpoints may lie on another disk."""
    for name in ("checkpoints", "tensorboard"):
        (scratch := tmp_path / "scratch" / name).mkdir(parents=True)
        (scratch / "44").mkdir()
        (scratch / "44" / "arrays").write_text("old")
        (scratch / "link").symlink_to(run / "sub")
        (run / name).symlink_to(scratch)
    RunFolder(run, overwrite=True).begin({"seed": 1})
    for name in ("checkpoints", "tensorboard"):
        assert (run / name).is_symlink()
        assert list((run / name).iterdir()) == []
    assert (run / "sub/metrics.jsonl").read_text() == "mine too"


def test_error_without_a_reason_of_the_system_is_told(run, monkeypatch):
    def break_(path):
        raise OSError("a reason")

    (run / "checkpoints").mkdir()
    monkeypatch.setattr("shutil.rmtree", break_)
    with pytest.raises(UsageError, match=f"--out {run}: a reason"):
        RunFolder(run, overwrite=True).begin({})


@pytest.mark.parametrize("config", [None, "", "{}", '{"config": {}}', "[1]", "3"])
def test_folder_that_is_no_run_is_refused(tmp_path, config):
    (tmp_path / "metrics.jsonl").write_text("data")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not a run folder"):
            RunFolder(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("data")
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder(path, overwrite=True)
    with pytest.raises(UsageError, match="Not a directory"):
        RunFolder(path / "below", overwrite=True).begin({})


def test_empty_folder_is_taken(tmp_path):
    RunFolder(tmp_path, overwrite=False).begin({})
    assert set(contents(tmp_path)) == {"config.json"}


def test_of_two_runs_in_one_folder_the_second_is_refused(tmp_path):
    first, second = (RunFolder(tmp_path / "a", overwrite=False) for _ in range(2))
    first.begin({"seed": 0})
    with pytest.raises(UsageError, match="taken by another run"):
        second.begin({"seed": 1})
    assert json.loads((tmp_path / "a/config.json").read_text())["config"]["seed"] == 0


def test_json_has_no_nan(tmp_path):
    folder = RunFolder(tmp_path, overwrite=False)
    folder.add_metrics({"loss": float("nan"), "timing": {"speed": float("inf")}})
    assert folder.read_metrics() == [{"loss": None, "timing": {"speed": None}}]


def show(terminal):
    """What a run of two epochs of two batches prints."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with ProgressDisplay(2, 2, console) as display:
        for epoch in (1, 2):
            display.batches(epoch, Means(0.25, 0.5, 1), 1234.5)
            display.batches(epoch, Means(0.125, 0.75, 2), 1234.5)
            display.epoch(
                {
                    "epoch": epoch,
                    "train_loss": 0.125,
                    "train_accuracy": 0.75,
                    "test_loss": 0.5,
                    "test_accuracy": 0.625,
                    "timing": {"images_per_second": 1234.5},
                }
            )
    return out.getvalue()


def test_log_has_a_line_for_each_epoch_and_no_escape_codes():
    lines = show(terminal=False).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  train loss 0.1250")
    for part in ("accuracy 75.00%", "test loss 0.5000", "62.50%", "1,234 images/s"):
        assert part in lines[0]
    assert "\x1b" not in "".join(lines)


def test_terminal_has_a_bar_with_loss_accuracy_and_speed():
    shown = show(terminal=True)
    assert "\x1b" in shown
    for part in ("epoch 2/2", "loss 0.1250", "accuracy 75.00%", "1,234 images/s"):
        assert part in shown


@pytest.mark.parametrize("text", ["", '{"status": ', "[]", "\ufffd"])
def test_damaged_summary_is_named(run, text):
    (run / "summary.json").write_text(text)
    folder = RunFolder(run, overwrite=False, resume=True)
    with pytest.raises(UsageError, match=r"summary\.json: damaged"):
        folder.read_summary()


def test_folder_with_a_damaged_config_is_refused(run):
    (run / "config.json").write_text('{"config": ')
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder(run, overwrite=False, resume=True)
