"""Run folders made up for tests, and a training command that only pretends to train.

As a script it takes the options of the training command and behaves as the file
behaviour.json in ``$PRETENCE`` says of the optimizer. It imports neither JAX nor the
project, so that starting it costs next to nothing.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def line_of(epoch, accuracy, *, loss=0.5, validation=None):
    """A line of metrics.jsonl."""
    line = {
        "epoch": epoch,
        "step": 10 * epoch,
        "learning_rate": 0.1,
        "train_loss": loss / epoch if loss is not None else None,
        "train_accuracy": accuracy,
        "test_loss": loss,
        "test_accuracy": accuracy,
        "timing": {"train_seconds": 1.0, "images_per_second": 100.0},
    }
    if validation is not None:
        line["validation_accuracy"] = validation
    return line


def write_run(folder, config, lines, status="finished", message=None, **record):
    """Writes a run folder; with ``status`` None the run never ended."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "config": config,
        "command": ["python", "-m", "experiments.train", "--seed", str(config["seed"])],
        "versions": {"python": "3.11.7", "spherical_optax": "0.1.0", "jax": "0.10.2"},
        "commit": "0123456789abcdef",
        "machine": {"system": "Linux", "cpus": 2, "devices": ["cpu"]},
        **record,
    }
    _write(folder / "config.json", json.dumps(record))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    _write(folder / "metrics.jsonl", text)
    if status:
        summary = {"status": status, "message": message, "epochs": len(lines)}
        _write(folder / "summary.json", json.dumps(summary))


def _write(path, text):
    """All of a file or nothing: a signal may come at any time."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def config_of(optimizer="adam", seed=0, *, epochs=3, **options):
    """A configuration with what every run has, and more."""
    return {
        "dataset": "digits",
        "model": "small_resnet",
        "optimizer": optimizer,
        "epochs": epochs,
        "batch_size": 64,
        "seed": seed,
        "hyperparameters": {"learning_rate": 0.001, "weight_decay": 0.0},
        **options,
    }


def add(runs, optimizer, seed, accuracy, *, epochs=3, status="finished", **options):
    """A run whose last accuracy is ``accuracy`` percent."""
    config = config_of(optimizer, seed, epochs=epochs, **options)
    lines = [line_of(e, accuracy / 100 * e / epochs) for e in range(1, epochs + 1)]
    name = f"{optimizer}-{seed}-{len(list(runs.glob('*')))}"
    write_run(runs / name, config, lines, status)
    return runs / name


def _pretend():
    pairs = [argument.removeprefix("--").partition("=") for argument in sys.argv[1:]]
    options = {name.replace("-", "_"): value for name, _, value in pairs}
    place = Path(os.environ["PRETENCE"])
    with open(place / "calls.txt", "a") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\n")
    known = json.loads((place / "behaviour.json").read_text())[options["optimizer"]]
    config, behaviour = known["config"], known["behaviour"]
    config["seed"] = int(options.get("seed", 0))
    hyperparameters = config["hyperparameters"]
    for name in hyperparameters.keys() & options.keys():
        hyperparameters[name] = float(options[name])
    folder = Path(options["out"])
    accuracy = 0.9 - hyperparameters["weight_decay"]
    lines = [line_of(e, accuracy) for e in range(1, config["epochs"] + 1)]
    if behaviour == "break":
        print("first words\nno space left", file=sys.stderr)
        sys.exit(1)
    if behaviour == "not finite":
        write_run(folder, config, lines[:1], "not finite", "loss nan")
        sys.exit(3)
    if behaviour == "out of time":
        write_run(folder, config, lines[:2], behaviour)
        sys.exit(5)
    if behaviour == "break first" and not folder.exists():
        write_run(folder, config, lines[:2], None)
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "slow" or (behaviour == "slow if bad" and accuracy < 0.5):
        _slowly(folder, config, lines)
    write_run(folder, config, lines)


def _slowly(folder, config, lines):
    """An epoch a tenth of a second, until SIGTERM or Ctrl-C."""

    def stop(number, frame):
        (folder / "signal.txt").write_text(signal.Signals(number).name)
        sys.exit(130 if number == signal.SIGINT else 4)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for count in range(1, len(lines)):
        write_run(folder, config, lines[:count], None)
        time.sleep(0.1)
    time.sleep(60)


if __name__ == "__main__":
    _pretend()
