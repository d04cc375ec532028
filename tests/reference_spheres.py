"""Optimizers on spheres of fixed radius once more, in float64 NumPy.

As in ``reference.py``, and with its inner products: nothing here is shared with the
library. A direction is a coroutine that takes gradients and yields directions.
"""

import itertools
import math
from collections.abc import Callable, Generator

import numpy as np
from reference import Array, Leaf, at, dot, norm, size

Direction = Generator[Array, Array, None]


def adam(b1=0.9, b2=0.999, eps=1e-8) -> Direction:
    """Adam's direction."""
    m = v = u = np.zeros(())
    for t in itertools.count(1):
        g = yield u
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def momentum(decay=0.9) -> Direction:
    """The direction of SGD with momentum."""
    m = np.zeros(())
    while True:
        g = yield m
        m = decay * m + g


def muon(axes, decay=0.95, eps=1e-8, nesterov=True) -> Direction:
    """Muon's direction: momentum through five Newton-Schulz steps."""
    m = u = np.zeros(())
    for t in itertools.count(1):
        g = yield u
        m = decay * m + (1 - decay) * g
        if nesterov:
            ahead = decay * m / (1 - decay ** (t + 1))
            u = ahead + (1 - decay) * g / (1 - decay**t)
        else:
            u = m / (1 - decay**t)
        u = orthogonal(u, axes, eps)


def orthogonal(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """Five Newton-Schulz steps on the matrix whose columns are the channels."""
    columns = [axis % x.ndim for axis in axes] or [x.ndim - 1]
    rows = [axis for axis in range(x.ndim) if axis not in columns]
    moved = np.transpose(x, rows + columns)
    matrix = moved.reshape(math.prod(x.shape[axis] for axis in rows), -1)
    matrix = matrix / (np.sqrt(np.sum(np.abs(matrix) ** 2)) + eps)
    for _ in range(5):
        square = matrix @ matrix.conj().T
        matrix = (
            3.4445 * matrix + (-4.7750 * square + 2.0315 * square @ square) @ matrix
        )
    return np.transpose(matrix.reshape(moved.shape), np.argsort(rows + columns))


def hyperball(x, axes, direction: Direction, learning_rate, radius="initial") -> Leaf:
    """Steps x <- R N(x - lr R N(u)); a plain one where ``axes`` is None."""
    next(direction)
    initial = None if axes is None else norm(x, axes)
    for t in itertools.count(1):
        u = direction.send((yield x))
        if axes is None:
            x = x - at(learning_rate, t) * u
            continue
        r = {"initial": initial, "current": norm(x, axes)}.get(radius, radius)
        y = x - at(learning_rate, t) * r * u / norm(u, axes)
        x = r * y / norm(y, axes)


def rotational(
    x,
    axes,
    direction: Direction,
    learning_rate,
    weight_decay,
    b1=0.9,
    norm_decay=0.9,
    eps=1e-8,
) -> Leaf:
    """Turns of one length for all; decoupled decay where ``axes`` is None."""
    next(direction)
    n = None if axes is None else norm(x, axes)
    s = 0.0
    for t in itertools.count(1):
        u = direction.send((yield x))
        lr, wd = at(learning_rate, t), at(weight_decay, t)
        if axes is None:
            x = x - lr * (u + wd * x)
            continue
        u = u - dot(u, x, axes) / n**2 * x
        inside = tuple(i for i in range(x.ndim) if i not in {a % x.ndim for a in axes})
        u = u - np.sum(u, axis=inside, keepdims=True) / size(x, axes)
        s = norm_decay * s + (1 - norm_decay) * dot(u, u, axes)
        angle = math.sqrt(2 * lr * wd * (1 - b1) / (1 + b1))
        y = x - angle * n * u / (np.sqrt(s / (1 - norm_decay**t)) + eps)
        x = n * y / norm(y, axes)


def projected(x, axes, learning_rate, every=1, radius="initial") -> Leaf:
    """SGD, put back on its sphere every so many steps."""
    initial = None if axes is None else norm(x, axes)
    for t in itertools.count(1):
        g = yield x
        y = x - at(learning_rate, t) * g
        if axes is not None and t % every == 0:
            r = {"initial": initial, "current": norm(x, axes)}.get(radius, radius)
            y = r * y / norm(y, axes)
        x = y


def corrected_decay(x, axes, learning_rate, weight_decay, peak) -> Leaf:
    """SGD whose weight decay falls with the learning rate on spheres."""
    for t in itertools.count(1):
        g = yield x
        lr, wd = at(learning_rate, t), at(weight_decay, t)
        x = x - lr * (g + wd * (1 if axes is None else lr / peak) * x)


def tree(leaf: Callable[..., Leaf], params, axes):
    """``leaf(x, axes)`` on every leaf of a tree, as one coroutine."""
    leaves = {name: leaf(x, axes[name]) for name, x in params.items()}
    x = {name: next(coroutine) for name, coroutine in leaves.items()}
    while True:
        g = yield x
        x = {name: coroutine.send(g[name]) for name, coroutine in leaves.items()}
