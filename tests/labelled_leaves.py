"""Leaves of every label, and optimizers on them held against loops in NumPy."""

import jax
import numpy as np
import optax
import pytest
import reference_spheres as reference
from trajectories import compare, gradients_of, random_tree

import spherical_optax as so

LABELS = {
    "attention": "layer",
    "bias": "euclidean",
    "conv": "filter",
    "conv1d": "depthwise",
    "scale": "euclidean",
}
TABLE = {**so.CHANNEL_AXES, "depthwise": (-2, -1)}
AXES = {name: TABLE[label] for name, label in LABELS.items()}
LABELLED = {"labels": LABELS, "channel_axes": TABLE}

BASES = {
    "adam": (optax.scale_by_adam(b2=0.9), lambda: reference.adam(b2=0.9)),
    "momentum": (optax.trace(0.8), lambda: reference.momentum(0.8)),
}
by_base = pytest.mark.parametrize("base", BASES)
by_type = pytest.mark.parametrize("dtype", [np.float64, np.complex128])


def follows(optimizer, leaf, dtype=np.float64):
    """The optimizer does what the loop does, on leaves of every label."""
    coroutine = reference.tree(leaf, random_tree(0, dtype=dtype), AXES)
    compiled = optax.GradientTransformation(optimizer.init, jax.jit(optimizer.update))
    compare(compiled, coroutine, gradients_of(1, dtype=dtype))
