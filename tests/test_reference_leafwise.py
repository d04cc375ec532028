"""The other optimizers and the blocks against the NumPy implementations.

The recordings in ``golden/`` fix the usual settings; here are the others: schedules,
Nesterov, AMSGrad, other channel axes, a large eps, complex leaves.
"""

import math

import numpy as np
import optax
import pytest
import reference
from trajectories import (
    SHAPES,
    compare,
    falling,
    follow_slowly,
    gradients_of,
    random_tree,
    wavy,
)

import spherical_optax as so

# ---------------------------------------------------------------- projection

PROJECTION_SETTINGS = {
    "adamp": {
        "plain": {"learning_rate": 0.02},
        "decay": {"learning_rate": 0.05, "weight_decay": 0.3, "wd_ratio": 0.2},
        "nesterov": {"learning_rate": 0.02, "nesterov": True, "weight_decay": 0.1},
        "eps": {"learning_rate": 0.02, "eps": 1e-2, "delta": 0.05},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
        },
    },
    "sgdp": {
        "plain": {"learning_rate": 0.02},
        "momentum": {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.1},
        "nesterov": {
            "learning_rate": 0.02,
            "momentum": 0.9,
            "dampening": 0.2,
            "weight_decay": 0.2,
            "nesterov": True,
            "wd_ratio": 0.4,
        },
        "eps": {"learning_rate": 0.02, "momentum": 0.5, "eps": 1e-2, "delta": 0.05},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
            "momentum": 0.7,
        },
    },
}
# Orthogonal filter by filter, and as a whole but not filter by filter.
TANGENT = {"conv": (-1,), "attention": ()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{key}")
        for name, table in PROJECTION_SETTINGS.items()
        for key, options in table.items()
    ],
)
def test_projection(name, options, x64):
    coroutine = reference.leafwise(getattr(reference, name), random_tree(4), **options)
    compare(getattr(so, name)(**options), coroutine, gradients_of(5, TANGENT))


@pytest.mark.parametrize("channel_axis", [0, 1, -2])
@pytest.mark.parametrize("name", PROJECTION_SETTINGS)
def test_projection_along_other_axes(name, channel_axis, x64):
    options = {"learning_rate": 0.05, "weight_decay": 0.1, "channel_axis": channel_axis}
    tangent = {"conv": (channel_axis,), "conv1d": (), "attention": (channel_axis,)}
    coroutine = reference.leafwise(getattr(reference, name), random_tree(6), **options)
    compare(getattr(so, name)(**options), coroutine, gradients_of(7, tangent))


@pytest.mark.parametrize("name", PROJECTION_SETTINGS)
def test_projection_of_complex_leaves(name, x64):
    options = {"learning_rate": 0.02, "weight_decay": 0.1}
    start = random_tree(8, dtype=np.complex128)
    coroutine = reference.leafwise(getattr(reference, name), start, **options)
    gradient = gradients_of(9, TANGENT, dtype=np.complex128)
    compare(getattr(so, name)(**options), coroutine, gradient)


def test_the_projections_above_remove_what_they_should():
    """By filter, by layer, and not at all: each happens."""
    x = random_tree(4)
    g = gradients_of(5, TANGENT)(0, x)
    removed = {
        name: reference.without_radial_part(g[name], g[name], x[name], 0.1, 1e-8, -1)[1]
        for name in SHAPES
    }
    assert removed == {
        "attention": True,
        "bias": False,
        "conv": True,
        "conv1d": False,
        "scale": False,
    }
    cosines = np.abs(reference.dot(g["attention"], x["attention"], (-1,))) / (
        reference.norm(g["attention"], (-1,)) * reference.norm(x["attention"], (-1,))
    )
    assert np.max(cosines) > 0.1 / np.sqrt(6)


# ---------------------------------------------------------------- leaf by leaf

LEAFWISE_SETTINGS = {
    "adabound": {
        "plain": {"learning_rate": 0.01},
        "bounds": {"learning_rate": 0.05, "gamma": 0.2, "final_learning_rate": 0.02},
        "ams": {"learning_rate": 0.02, "b2": 0.7, "amsbound": True, "gamma": 0.05},
        "decay": {"learning_rate": 0.02, "weight_decay": 0.2, "eps": 1e-2},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
            "gamma": 0.3,
            "amsbound": True,
        },
    },
    "lamb": {
        "plain": {"learning_rate": 0.02},
        "decay": {"learning_rate": 0.02, "weight_decay": 0.2, "eps": 1e-2},
        "corrected": {"learning_rate": 0.02, "bias_correction": True, "eps": 1e-2},
        "clipped": {"learning_rate": 0.02, "max_weight_norm": 1.5},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
            "bias_correction": True,
        },
    },
    "adam_abs": {
        "plain": {"learning_rate": 0.02},
        "eps": {"learning_rate": 0.02, "eps": 1e-2, "b1": 0.5, "b2": 0.8},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
        },
    },
}


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{key}")
        for name, table in LEAFWISE_SETTINGS.items()
        for key, options in table.items()
    ],
)
def test_leaf_by_leaf(name, options, dtype, x64):
    start = random_tree(10, dtype=dtype)
    coroutine = reference.leafwise(getattr(reference, name), start, **options)
    compare(getattr(so, name)(**options), coroutine, gradients_of(11, dtype=dtype))


def test_lamb_takes_a_trust_ratio_of_one_where_a_norm_is_zero(x64):
    start = random_tree(12) | {"bias": np.zeros(5), "conv": np.zeros((3, 2, 2, 4))}
    options = {"learning_rate": 0.02, "weight_decay": 0.1}
    coroutine = reference.leafwise(reference.lamb, start, **options)
    actual, _ = compare(so.lamb(**options), coroutine, gradients_of(13))
    assert np.all(np.abs(actual["bias"][0]) > 0)


def test_lamb_keeps_its_norms_in_the_state(x64):
    params = {"w": np.array([3.0, 4.0])}
    optimizer = so.lamb(0.1, eps=1.0, max_weight_norm=4.5)
    _, state = follow_slowly(optimizer, params, [{"w": np.array([10.0, 0.0])}])
    # r = (1, 0) / (sqrt(0.1) + 1), with m = 0.1 g and v = 0.001 g^2.
    adam_norm = 1.0 / (math.sqrt(0.1) + 1.0)
    found = {
        key: float(optax.tree.get(state, key)["w"])
        for key in ("weight_norm", "adam_norm", "trust_ratio")
    }
    assert found == pytest.approx(
        {
            "weight_norm": 4.5,
            "adam_norm": adam_norm,
            "trust_ratio": 4.5 / adam_norm,
        },
        rel=1e-9,
    )


# ---------------------------------------------------------------- SWATS

# Wide enough that leaves switch within the run, at different steps.
THRESHOLDS = {np.float64: 5e-4, np.complex128: 1e-4}
SWATS_SETTINGS = {
    "plain": {"learning_rate": 0.02, "b2": 0.95},
    "never": {"learning_rate": 0.02, "threshold": 0.0},
    "nesterov": {"learning_rate": 0.02, "b2": 0.9, "nesterov": True},
    "amsgrad": {
        "learning_rate": 0.02,
        "b2": 0.8,
        "amsgrad": True,
        "weight_decay": 0.1,
    },
    "eps": {"learning_rate": 0.02, "b2": 0.9, "eps": 1e-2},
    "schedules": {
        "learning_rate": falling(0.02, 0.015),
        "b2": 0.9,
        "weight_decay": falling(0.3, 0.1),
        "sgd_scale": wavy,
    },
}


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("switch", ["local", "global", "vector"])
@pytest.mark.parametrize("options", SWATS_SETTINGS.values(), ids=SWATS_SETTINGS)
def test_swats(options, switch, dtype, x64):
    options = {"threshold": THRESHOLDS[dtype], **options}
    switches = {}
    start = random_tree(14, dtype=dtype)
    coroutine = reference.swats(start, **options, switch=switch, switches=switches)
    optimizer = so.swats(**options, switch=switch)
    _, state = compare(optimizer, coroutine, gradients_of(15, dtype=dtype))

    points = so.swats_switch_points(state, start)
    assert [point.step for point in points] == sorted(p.step for p in points)
    assert {p.path: p.step for p in points} == {k: t for k, (t, _) in switches.items()}
    for point in points:
        expected = switches[point.path][1]
        assert point.sgd_learning_rate == pytest.approx(expected, rel=1e-9)
    if options["threshold"] == 0.0:
        assert not points
    elif switch != "local":
        assert len(points) == len(SHAPES)
    else:
        assert len({point.step for point in points}) > 1, "leaves switch on their own"


def test_swats_waits_where_the_step_is_orthogonal_to_the_gradient(x64):
    """<p, g> = 0 (a zero gradient, or an exactly orthogonal step) tells nothing."""
    start = {"w": np.array([1.0, -2.0]), "z": np.array([3.0])}
    gradient = gradients_of(16, shapes={"w": (2,), "z": (1,)})

    def silent_first(step, x):
        grads = gradient(step, x)
        return {name: g * (step >= 4) for name, g in grads.items()}

    options = {"learning_rate": 0.02, "threshold": 1e-2, "b2": 0.9}
    switches = {}
    coroutine = reference.swats(start, **options, switches=switches)
    _, state = compare(so.swats(**options), coroutine, silent_first)
    points = so.swats_switch_points(state, start)
    assert {p.path: p.step for p in points} == {k: t for k, (t, _) in switches.items()}


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("block", "algorithm", "options"),
    [
        (
            lambda lr, **o: optax.chain(so.scale_by_adabound(lr, **o), optax.scale(-1)),
            "adabound",
            {"gamma": 0.1, "amsbound": True, "eps": 1e-2},
        ),
        (
            lambda lr, **o: optax.chain(
                so.scale_by_lamb(**o), optax.scale_by_learning_rate(lr)
            ),
            "lamb",
            {"eps": 1e-2, "max_weight_norm": 2.0, "weight_decay": 0.1},
        ),
        (
            lambda lr, **o: optax.chain(
                so.scale_by_adam_abs(**o), optax.scale_by_learning_rate(lr)
            ),
            "adam_abs",
            {"eps": 1e-2, "b2": 0.8},
        ),
    ],
    ids=["adabound", "lamb", "adam_abs"],
)
def test_blocks_are_the_optimizers_without_their_frame(block, algorithm, options, x64):
    start = random_tree(19)
    coroutine = reference.leafwise(
        getattr(reference, algorithm), start, learning_rate=0.05, **options
    )
    compare(block(0.05, **options), coroutine, gradients_of(20))


def test_swats_block_is_swats_without_weight_decay(x64):
    start = random_tree(21)
    options = {"learning_rate": 0.02, "threshold": 5e-4, "b2": 0.95, "switch": "global"}
    optimizer = optax.chain(so.scale_by_swats(**options), optax.scale(-1.0))
    compare(optimizer, reference.swats(start, **options), gradients_of(22))
