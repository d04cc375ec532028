"""Runs that released versions left unfinished are resumed by this one.

``old_runs/VERSION.tar.gz`` is the folder of ``--model tiny --epochs 2 --optimizer
adamsrt --checkpoint-every 1`` (seed 0) with its checkpoint after the first epoch. A
release adds its own.
"""

import tarfile
from pathlib import Path

import pytest
from tiny_training import install, results, summary_of

import spherical_optax as so
from experiments.train import main

FOLDER = Path(__file__).parent / "old_runs"
RUNS = sorted(FOLDER.glob("*.tar.gz"))
ARGS = ["--model", "tiny", "--epochs", "2", "--optimizer", "adamsrt"]
LOSS_AT_THE_END = {"0.1.0": 2.2944}


def version_of(path):
    return path.name.removesuffix(".tar.gz")


def test_every_release_is_here():
    kept = {version_of(path) for path in RUNS}
    assert kept == set(LOSS_AT_THE_END)
    assert so.__version__ in kept, "a release keeps one of its runs: see above"
    assert all(path.stat().st_size < 200 * 1024 for path in RUNS)


@pytest.mark.parametrize("path", RUNS, ids=version_of)
def test_an_old_run_is_resumed(path, tmp_path, monkeypatch):
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "run"
    (before,) = results(folder)
    install(monkeypatch)
    args = [*ARGS, "--checkpoint-every", "1", "--out", str(folder), "--resume"]
    assert main(args) == 0
    assert summary_of(folder)["resumed_at_steps"] == [22]
    first, second = results(folder)
    assert first == before
    assert second["test_loss"] == pytest.approx(
        LOSS_AT_THE_END[version_of(path)], abs=1e-3
    )
