"""The spherical family against the NumPy implementations, over options and shapes.

The recordings in ``golden/`` fix the usual settings; here are the others: layer and
custom labels, schedules, dampening, a large eps, complex leaves.
"""

import functools

import jax
import numpy as np
import optax
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import TRACES, load
from trajectories import (
    SHAPES,
    assert_same_trajectory,
    compare,
    falling,
    gradients_of,
    random_tree,
    stack,
)

import spherical_optax as so

LABELS = {
    "attention": "layer",
    "bias": "layer",
    "conv": "filter",
    "conv1d": "depthwise",
    "scale": "euclidean",
}
CHANNEL_AXES = {**so.CHANNEL_AXES, "depthwise": (-2, -1)}
DEFAULT_AXES = {
    name: (-1,) if len(shape) >= 3 else None for name, shape in SHAPES.items()
}


def labelled_axes(labels):
    return {name: CHANNEL_AXES[label] for name, label in labels.items()}


# ---------------------------------------------------------------- the recordings


@pytest.mark.parametrize("name", TRACES)
def test_the_reference_reproduces_the_recordings(name):
    start, grads, recorded, meta = load(name)
    kwargs = dict(meta["kwargs"])
    optimizer = meta["optimizer"]
    if optimizer == "swats":
        switches = {}
        coroutine = reference.swats(start, **kwargs, switches=switches)
    elif meta["labels"] is not None:
        axes = {k: so.CHANNEL_AXES[label] for k, label in meta["labels"].items()}
        coroutine = SPHERICAL[optimizer](start, axes, **kwargs)
    else:
        coroutine = reference.leafwise(getattr(reference, optimizer), start, **kwargs)
    _, trajectory = reference.walk(
        coroutine,
        next(coroutine),
        lambda step, _: {k: g[step] for k, g in grads.items()},
        meta["steps"],
    )
    assert_same_trajectory(stack(trajectory), recorded)
    if "step" in meta.get("final", {}):
        assert {step for step, _ in switches.values()} == {meta["final"]["step"]}


# ---------------------------------------------------------------- spherical family


def _adam_family(algorithm):
    return functools.partial(reference.spherical, algorithm, reference.adam)


def _adamg(params, axes, weight_decay=0.0, **kwargs):
    """Weight decay acts on the euclidean leaves alone."""
    return reference.spherical(
        reference.adamg,
        functools.partial(reference.adam, weight_decay=weight_decay),
        params,
        axes,
        **kwargs,
    )


SPHERICAL = {
    "adams": _adam_family(reference.adams),
    "adamsrt": _adam_family(functools.partial(reference.adams, transport=True)),
    "adamg": _adamg,
    "sgdmrt": functools.partial(
        reference.spherical,
        reference.sgdmrt,
        functools.partial(reference.sgdmrt, axes=None),
    ),
}
ADAM_OPTIONS = {
    "plain": {"learning_rate": 0.02},
    "eps": {"learning_rate": 0.02, "eps": 1e-2, "b1": 0.8, "b2": 0.95},
    "decay": {"learning_rate": 0.05, "weight_decay": 0.1, "b2": 0.9},
    "b1=0": {"learning_rate": 0.01, "b1": 0.0, "b2": 0.5},
    "schedules": {
        "learning_rate": falling(0.05),
        "weight_decay": falling(0.3, 0.1),
        "eps": 1e-3,
    },
}
SGD_OPTIONS = {
    "plain": {"learning_rate": 0.02},
    "momentum": {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.1},
    "dampening": {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.3},
    "schedules": {
        "learning_rate": falling(0.05),
        "weight_decay": falling(0.3, 0.1),
        "momentum": 0.8,
    },
}
SPHERICAL_SETTINGS = [
    pytest.param(name, options, id=f"{name}-{key}")
    for name in SPHERICAL
    for key, options in (SGD_OPTIONS if name == "sgdmrt" else ADAM_OPTIONS).items()
]


@pytest.mark.parametrize("labels", [None, LABELS], ids=["default", "labels"])
@pytest.mark.parametrize(("name", "options"), SPHERICAL_SETTINGS)
def test_spherical_family(name, options, labels, x64):
    axes = DEFAULT_AXES if labels is None else labelled_axes(labels)
    optimizer = getattr(so, name)(**options, labels=labels, channel_axes=CHANNEL_AXES)
    coroutine = SPHERICAL[name](random_tree(0), axes, **options)
    compare(optimizer, coroutine, gradients_of(1))


@pytest.mark.parametrize("name", SPHERICAL)
def test_spherical_family_on_complex_leaves(name, x64):
    options = {"learning_rate": 0.02, "weight_decay": 0.1}
    options |= {"momentum": 0.9} if name == "sgdmrt" else {"eps": 1e-2}
    optimizer = getattr(so, name)(**options, labels=LABELS, channel_axes=CHANNEL_AXES)
    start = random_tree(2, dtype=np.complex128)
    coroutine = SPHERICAL[name](start, labelled_axes(LABELS), **options)
    compare(optimizer, coroutine, gradients_of(3, dtype=np.complex128))


@st.composite
def one_leaf(draw):
    """A shape of one to four axes, and some of the axes as channel axes."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    kept = draw(st.sets(st.integers(0, len(shape) - 1)))
    signs = draw(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept)))
    axes = tuple(
        axis - len(shape) if negative else axis
        for axis, negative in zip(sorted(kept), signs, strict=True)
    )
    return shape, axes


@settings(max_examples=12)
@given(
    leaf=one_leaf(),
    name=st.sampled_from(sorted(SPHERICAL)),
    seed=st.integers(0, 2**16),
    decays=st.tuples(st.floats(0.0, 0.95), st.floats(0.1, 0.999)),
    weight_decay=st.floats(0.0, 0.5),
)
def test_spherical_family_on_any_shape_and_axes(leaf, name, seed, decays, weight_decay):
    shape, axes = leaf
    options = {"learning_rate": 0.03, "weight_decay": weight_decay}
    if name == "sgdmrt":
        options |= {"momentum": decays[0], "dampening": 0.2}
    else:
        options |= {"b1": decays[0], "b2": decays[1], "eps": 1e-3}
    with jax.enable_x64(True):
        optimizer = getattr(so, name)(
            **options, labels={"w": "own"}, channel_axes={"own": axes}
        )
        start = random_tree(seed, {"w": shape})
        coroutine = SPHERICAL[name](start, {"w": axes}, **options)
        compare(optimizer, coroutine, gradients_of(seed, shapes={"w": shape}))


def test_standardized_adam_block_is_the_direction_of_adams(x64):
    shapes = {"conv": (3, 2, 4), "dense": (4, 3)}
    start = random_tree(17, shapes)
    options = {"b1": 0.8, "b2": 0.9, "eps": 1e-2}
    optimizer = optax.chain(
        so.scale_by_standardized_adam(**options, channel_axes=(-1,)),
        optax.scale_by_learning_rate(0.1),
    )
    axes = dict.fromkeys(shapes, (-1,))
    coroutine = SPHERICAL["adams"](start, axes, learning_rate=0.1, **options)
    compare(optimizer, coroutine, gradients_of(18, shapes=shapes))
