"""The recorded trajectories of other implementations, step by step."""

import json
import pathlib

import numpy as np
import pytest
from trajectories import assert_same_trajectory, follow

import spherical_optax as so

FOLDER = pathlib.Path(__file__).parent / "golden"
TRACES = sorted(path.stem for path in FOLDER.glob("*.npz"))


def load(name):
    """Start, gradients, recorded parameters and what is known about the run."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        meta = json.loads(str(archive["meta"]))
        parts = {"p0": {}, "grads": {}, "params": {}}
        for key in archive.files:
            part, _, leaf = key.partition("/")
            if part in parts:
                parts[part][leaf] = archive[key]
    return parts["p0"], parts["grads"], parts["params"], meta


def replay(name):
    """Runs the library over a trace; returns trajectory, state and the trace."""
    start, grads, recorded, meta = load(name)
    kwargs = dict(meta["kwargs"])
    if meta["labels"] is not None:
        kwargs["labels"] = meta["labels"]
    optimizer = getattr(so, meta["optimizer"])(**kwargs)
    trajectory, state = follow(optimizer, start, grads)
    return trajectory, state, recorded, meta


def test_traces_are_there_for_every_optimizer():
    assert len(TRACES) >= 12
    recorded = {load(name)[3]["optimizer"] for name in TRACES}
    assert recorded == {
        "adabound",
        "adam_abs",
        "adamg",
        "adamp",
        "adams",
        "adamsrt",
        "lamb",
        "sgdmrt",
        "sgdp",
        "swats",
    }


@pytest.mark.parametrize("name", TRACES)
def test_trace_is_reproduced(name, x64):
    trajectory, _, recorded, meta = replay(name)
    assert all(len(leaf) == meta["steps"] for leaf in recorded.values())
    assert_same_trajectory(trajectory, recorded, tolerance=1e-9)


def test_swats_local_switches_where_the_recording_did(x64):
    trajectory, state, _, meta = replay("swats_local")
    points = so.swats_switch_points(state, {k: v[-1] for k, v in trajectory.items()})
    found = {point.path: point.sgd_learning_rate for point in points}
    expected = {
        leaf: rate for leaf, (switched, rate) in meta["final"].items() if switched
    }
    assert found.keys() == expected.keys()
    for leaf, rate in expected.items():
        np.testing.assert_allclose(found[leaf], rate, rtol=1e-9)


@pytest.mark.parametrize("name", ["swats_global", "swats_vector"])
def test_swats_switches_all_leaves_at_the_recorded_step(name, x64):
    trajectory, state, _, meta = replay(name)
    points = so.swats_switch_points(state, {k: v[-1] for k, v in trajectory.items()})
    assert {point.path for point in points} == set(trajectory)
    for point in points:
        assert point.step == meta["final"]["step"]
        np.testing.assert_allclose(
            point.sgd_learning_rate, meta["final"]["sgd_learning_rate"], rtol=1e-9
        )
