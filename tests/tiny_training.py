"""The training command with a model that compiles fast, here or in a process."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import models, steps, trainer
from experiments.models.resnet import ResNet
from experiments.train import main

TINY = partial(ResNet, widths=(4,), blocks=(1,))
STEPS = 22  # of an epoch of the digits in batches of 64
_compiled = {}  # what a program says, to the program


def compile_once(function, *args, donate=(), options=None):
    """As ``compile_ahead``: fast, and a second time not at all.

    Most of a short run is its compilation, and many tests run the same program.
    """
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    said = (lowered.as_text(), str(lowered.in_tree), str(lowered.out_tree))
    if said not in _compiled:
        _compiled[said] = lowered.compile({"xla_backend_optimization_level": 0})
    return _compiled[said]


def install(monkeypatch):
    """Makes ``--model tiny`` known, for the length of a test."""
    monkeypatch.setitem(models.MODELS, "tiny", TINY)
    for module in (trainer, steps):
        monkeypatch.setattr(module, "compile_ahead", compile_once)


def start(*args, flags="", environment=None, **options):
    """Starts the command in a process of its own, with the tiny model.

    ``flags`` are those of XLA; ``environment`` comes beside what is there.
    """
    file = Path(__file__)
    return subprocess.Popen(
        [sys.executable, str(file), "--model", "tiny", *args],
        cwd=file.parent.parent,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags or os.environ.get("XLA_FLAGS", ""),
            "PYTHONPATH": str(file.parent.parent),
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_here(folder, *args):
    """Runs the command here, on one device; returns :func:`numbers`."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        code = main(["--model", "tiny", *args, "--out", str(folder)])
    assert code == 0
    return numbers(folder)


def numbers(folder):
    """Losses and accuracies of all epochs."""
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return np.array([[line[name] for name in names] for line in results(folder)])


def results(folder):
    """The lines of ``metrics.jsonl`` without what a clock measured."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    for line in lines:
        del line["timing"]
    return lines


def summary_of(folder):
    """What is in ``summary.json``."""
    return json.loads((folder / "summary.json").read_text())


if __name__ == "__main__":
    models.MODELS["tiny"] = TINY
    trainer.compile_ahead = steps.compile_ahead = compile_once
    sys.exit(main())
