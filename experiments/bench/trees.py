"""Weights and gradients to measure on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.models import MODELS, label_spheres


class Trees(NamedTuple):
    """Weights, gradients and labels: trees of one structure.

    Where a label says ``"filter"``, each filter's gradient is orthogonal to it, as a
    normalization layer makes it: AdamP and SGDP then do what they do in training.
    """

    params: Any
    grads: Any
    labels: Any


def model_shapes(model: str) -> Any:
    """The parameters of a model by its name, as shapes."""

    def init() -> Any:
        module = MODELS[model](channels=3, num_classes=10, rngs=nnx.Rngs(0))
        return nnx.as_pure(nnx.state(module, nnx.Param))

    return nnx.eval_shape(init)


label = label_spheres
"""From shapes to labels."""


def as_dtype(shapes: Any, dtype: str) -> Any:
    """The same shapes with another type."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)


def kernels(weights: int, leaves: int) -> Any:
    """Shapes of so many 3x3 convolution kernels of about so many weights together."""
    width = max(1, round((weights / leaves / 9) ** 0.5))
    if width > 64:  # as wide as in networks
        width = 16 * round(width / 16)
    shape = jax.ShapeDtypeStruct((3, 3, width, width), np.float32)
    return {f"conv{n:04d}": {"kernel": shape} for n in range(leaves)}


def random_trees(shapes: Any, dtype: str = "float32", seed: int = 0) -> Trees:
    """Random weights and gradients, as numpy arrays of a type.

    One vector of random numbers serves all leaves, each from another place of it.
    """
    rng = np.random.default_rng(seed)
    labels = label(shapes)
    leaves, structure = jax.tree.flatten(shapes)
    source = rng.standard_normal(2 * max(leaf.size for leaf in leaves), np.float32)
    params, grads = [], []
    for leaf, kind in zip(leaves, jax.tree.leaves(labels), strict=True):
        x = 0.05 * _take(source, leaf.shape, rng)
        g = 0.01 * _take(source, leaf.shape, rng)
        if kind == "filter":
            axes = tuple(range(g.ndim - 1))
            g -= x * (np.sum(g * x, axes) / np.sum(x * x, axes))
        params.append(x.astype(dtype))
        grads.append(g.astype(dtype))
    return Trees(structure.unflatten(params), structure.unflatten(grads), labels)


def count(shapes: Any) -> dict[str, int]:
    """How many weights and leaves a tree has."""
    leaves = jax.tree.leaves(shapes)
    return {"weights": sum(leaf.size for leaf in leaves), "leaves": len(leaves)}


def size_in_bytes(tree: Any) -> int:
    """What the arrays, or shapes, of a tree take."""
    leaves: Sequence[Any] = jax.tree.leaves(tree)
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def _take(
    source: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    size = int(np.prod(shape))
    start = rng.integers(0, source.size - size + 1)
    return source[start : start + size].reshape(shape).copy()
