"""Labels measured by a command, and a record of what runs do to spheres."""

import json

import jax
import numpy as np
import pytest
from tiny_training import TINY, install, results

from experiments import inspect as command
from experiments import models
from experiments.inspect import inspect_model, main
from experiments.spheres import SPHERES
from experiments.train import main as train

RUN = ["--model", "tiny", "--epochs", "2"]
KERNELS = {"stem/kernel", "stage1/block0/conv1/kernel", "stage1/block0/conv2/kernel"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    install(monkeypatch)


@pytest.mark.parametrize("optimizer", ["adamsrt", "swats", "muon", "rotational", "sgd"])
def test_a_monitor_changes_nothing(optimizer, tmp_path):
    """But for rounding, since another program is compiled, and the numbers it adds."""
    lines = {}
    for name, option in (("plain", "--no-monitor"), ("watched", "--monitor")):
        args = [*RUN, "--optimizer", optimizer, option, "--out", str(tmp_path / name)]
        assert train(args) == 0
        lines[name] = results(tmp_path / name)
    for plain, watched in zip(lines["plain"], lines["watched"], strict=True):
        spheres = watched.pop(SPHERES)
        assert watched.keys() == plain.keys()
        for name, value in plain.items():
            np.testing.assert_allclose(watched[name], value, rtol=1e-3, atol=3e-3)
        assert set(spheres) == KERNELS
        for quantities in spheres.values():
            assert 0 < quantities["norm"] < 10
            assert 0 < quantities["angle"] < 1
            assert quantities["effective_learning_rate"] > 0
            assert 0 <= quantities["radial_share"] <= 1
    assert not (tmp_path / "plain/spheres.png").exists()
    assert (tmp_path / "watched/spheres.png").stat().st_size > 10_000
    recorded = json.loads((tmp_path / "watched/config.json").read_text())
    assert recorded["config"]["monitor"] is True


def test_sgd_has_the_effective_rate_of_the_formula(tmp_path):
    """Learning rate over squared norm, of the same step."""
    args = ["--optimizer", "sgd", "--momentum", "0", "--schedule", "constant"]
    assert train([*RUN, *args, "--monitor", "--out", str(tmp_path / "run")]) == 0
    for line in results(tmp_path / "run"):
        for found in line[SPHERES].values():
            expected = line["learning_rate"] / found["norm"] ** 2
            # A mean over groups of 1 / n^2, and 1 / n^2 of a mean over groups.
            np.testing.assert_allclose(
                found["effective_learning_rate"], expected, rtol=0.25
            )


def test_tensorboard_groups_quantities():
    from experiments.trackers import scalars

    line = {"epoch": 1, SPHERES: {"stem/kernel": {"norm": 2.0, "angle": 0.1}}}
    assert scalars(line) == {
        "spheres/norm/stem/kernel": 2.0,
        "spheres/angle/stem/kernel": 0.1,
    }


# ---------------------------------------------------------------- measured labels


def test_command_prints_and_writes_the_table(tmp_path, capsys):
    file = tmp_path / "table.json"
    args = ["--model", "tiny", "--image-shape", "8", "8", "1", "--json", str(file)]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "stage1/block0/conv1/kernel  3 3 4 4" in out
    assert out.splitlines()[-1].startswith(
        "11 leaves: 11 as the rules say, 0 otherwise"
    )
    leaves = json.loads(file.read_text())["leaves"]
    assert {leaf["path"] for leaf in leaves if leaf["measured"] == "filter"} == KERNELS
    assert all(leaf["measured"] == leaf["by_rule"] for leaf in leaves)


@pytest.fixture
def wrong_rules(monkeypatch):
    """The last layer is taken for one on a sphere, and the first for none."""
    rules = {r"head/kernel": "filter", r"stem/kernel": "euclidean", **models.RULES}
    monkeypatch.setattr(models, "RULES", rules)


def test_wrong_rules_are_told(wrong_rules, capsys):
    assert main(["--model", "tiny", "--image-shape", "8", "8", "1"]) == 1
    assert ", 2 otherwise, 0 unknown" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_warns_of_wrong_rules_once(wrong_rules, tmp_path, capsys):
    args = [*RUN, "--check-labels", "--out", str(tmp_path / "run")]
    assert train(args) == 0
    assert capsys.readouterr().err == (
        "warning: --check-labels: head/kernel is 'filter' by rule and 'euclidean' as"
        " measured; stem/kernel is 'euclidean' by rule and 'filter' as measured\n"
    )


def test_a_run_with_right_rules_warns_of_nothing(tmp_path, capsys):
    assert train([*RUN, "--check-labels", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "resnet19"], "--model: unknown name 'resnet19'; known: "),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--classes", "0"], "--classes must be at least 2, got 0"),
        (["--image-shape", "0", "8", "1"], "--image-shape must be at least 1, got 0"),
        (["--tolerance", "-1"], "--tolerance must be positive and finite, got -1"),
        (["--tolerance", "nan"], "--tolerance must be positive and finite, got nan"),
        (["--tolerance", "inf"], "--tolerance must be positive and finite, got inf"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (
            ["--json", "/nowhere/table.json"],
            "--json: /nowhere/table.json: there is no such folder",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(
    args, message, capsys, monkeypatch
):
    monkeypatch.setattr(command, "inspect_model", None)
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_table_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_measure", lambda options: [])
    assert main(["--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --json: {tmp_path}: Is a directory\n"


def test_loss_that_is_not_finite():
    images = np.full((4, 8, 8, 1), np.nan, np.float32)

    def make(rngs):
        return TINY(channels=1, num_classes=10, rngs=rngs)

    with pytest.raises(ValueError, match="finite"):
        inspect_model(make, jax.numpy.asarray(images), jax.numpy.zeros(4, int))
