"""ImageNet, as training sees it: prepared images, worker processes, resumption."""

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_files import encoded
from prepared_sets import prepare_fake
from tiny_training import install, results, summary_of

from experiments.data import streaming
from experiments.stopping import TERMINATED, StoppedRun, StopRequest
from experiments.train import main

ARGS = [
    *("--dataset", "imagenet2012", "--model", "tiny", "--optimizer", "sgd"),
    *("--epochs", "2", "--batch-size", "5", "--eval-batch-size", "4"),
]
TRAIN, TEST = 16, 6  # images: three steps an epoch, two batches of the test


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command on a few images in the guise of ImageNet: code and folder."""
    pytest.importorskip("array_record")
    pytest.importorskip("grain")
    tfds = pytest.importorskip("tensorflow_datasets")
    labels = [37 * index % 1000 for index in range(TRAIN)]
    splits = {"train": labels, "validation": labels[:TEST]}
    jpeg = lambda pixels: encoded(pixels, "JPEG")  # noqa: E731
    prepare_fake(tfds, tmp_path, "imagenet2012", splits, (40, 50, 3), 1000, jpeg)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    # Workers for all of the training, the two steps that are resumed too.
    monkeypatch.setattr(streaming, "_FEW_IMAGES", 9)
    install(monkeypatch)

    def train(name, *options):
        folder = tmp_path / name
        return main([*ARGS, "--out", str(folder), *options]), folder

    return train


def test_training_streams_and_resumes_within_an_epoch(train, monkeypatch):
    code, whole = train("whole")
    assert code == 0
    record = json.loads((whole / "config.json").read_text())
    assert record["images"] == {"train": TRAIN, "test": TEST}
    assert [line["step"] for line in results(whole)] == [3, 6]
    assert all(0 < line["train_loss"] < 20 for line in results(whole))

    looks = 0

    def check(self, seconds=0.0, due=False):
        nonlocal looks
        looks += 1
        if looks == 7:  # after three steps, the test, and a step
            raise StoppedRun(TERMINATED)
        return due

    monkeypatch.setattr(StopRequest, "check", check)
    assert train("stopped")[0] == 4
    code, stopped = train("stopped", "--resume")
    assert code == 0
    assert summary_of(stopped)["resumed_at_steps"] == [4]
    assert results(stopped) == results(whole)
    assert summary_of(stopped)["state_sha256"] == summary_of(whole)["state_sha256"]
    gc.collect()  # the workers of a run end with it, at the latest with the program
    assert not multiprocessing.active_children()


SCRIPT = """
import numpy as np
from test_experiments_data_stream import stream
if __name__ == "__main__":
    import multiprocessing
    batches = stream().train_batches(4, seed=0, start=0, stop=1000, workers=2)
    next(batches)
    print(*(p.pid for p in multiprocessing.active_children()), flush=True)
    input()
"""


def test_workers_end_with_a_reader_that_is_killed(tmp_path):
    pytest.importorskip("grain")
    script = tmp_path / "reader.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parent
    path = f"{tests}{os.pathsep}{tests.parent}"
    reader = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with reader:
        workers = [int(pid) for pid in reader.stdout.readline().split()]
        assert len(workers) == 2
        reader.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.05)


def _runs(pid):
    try:
        # One that has ended may wait to be noticed.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
