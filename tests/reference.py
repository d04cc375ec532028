"""Every optimizer once more, in float64 NumPy, straight from its equations.

Nothing here is shared with the library: loops over steps, one leaf at a time, the
sums over groups spelled out. Each optimizer is a coroutine: it yields weights,
takes a gradient and yields the next weights. ``t`` counts steps from 1; schedules
are called with ``t - 1``, as Optax does.
"""

import itertools
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Leaf = Generator[Array, Array, None]
Tree = Generator[dict[str, Array], dict[str, Array], None]
# The channel axes of a leaf, or None for weights that lie on no sphere.
Axes = tuple[int, ...] | None


def at(value: Any, t: int) -> float:
    """A hyperparameter, number or schedule, at step ``t`` (from 1)."""
    return float(value(t - 1)) if callable(value) else float(value)


def dot(x: Array, y: Array, axes: tuple[int, ...]) -> Array:
    """<x, y> of each group, with the axes inside a group reduced to length 1."""
    inside = tuple(i for i in range(x.ndim) if i not in {a % x.ndim for a in axes})
    return np.sum(x.real * y.real + x.imag * y.imag, axis=inside, keepdims=True)


def norm(x: Array, axes: tuple[int, ...]) -> Array:
    """|x| of each group."""
    return np.sqrt(dot(x, x, axes))


def size(x: Array, axes: tuple[int, ...]) -> int:
    """d, the number of weights in a group."""
    kept = {a % x.ndim for a in axes}
    return int(np.prod([n for i, n in enumerate(x.shape) if i not in kept]))


def adam(x, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0) -> Leaf:
    """Adam with coupled L2, on leaves that lie on no sphere."""
    m = v = 0.0
    for t in itertools.count(1):
        g = (yield x) + at(weight_decay, t) * x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        step = (m / (1 - b1**t)) / (np.sqrt(v) / np.sqrt(1 - b2**t) + eps)
        x = x - at(learning_rate, t) * step


def adams(
    x,
    axes,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    transport=False,
) -> Leaf:
    """AdamS; with ``transport``, AdamSRT."""
    m = v = 0.0
    d = size(x, axes)
    for t in itertools.count(1):
        g = (yield x) + at(weight_decay, t) * x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * dot(g, g, axes)
        step = (m / (1 - b1**t)) / (np.sqrt(v) / np.sqrt(1 - b2**t) + eps)
        x1, x = x, x - at(learning_rate, t) * np.sqrt(d) * step
        if transport:
            scale = dot(x, x, axes) + eps
            m = (dot(x1, x, axes) * m - dot(m, x, axes) * x1) / scale
            v = v * dot(x1, x1, axes) / scale


def adamg(x, axes, learning_rate, b1=0.9, b2=0.999, eps=1e-8) -> Leaf:
    """AdamG on spheres of radius 1."""
    m = v = 0.0
    for t in itertools.count(1):
        g = yield x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * dot(g, g, axes)
        step = m / (np.sqrt(v) / np.sqrt(1 - b2**t) + eps)
        y = x - at(learning_rate, t) / (1 - b1**t) * step
        turned = dot(x, y, axes) * m - dot(m, y, axes) * x
        m = turned / (norm(x, axes) * norm(y, axes) + eps)
        x = y / (norm(y, axes) + eps)


def sgdmrt(
    x, axes, learning_rate, momentum=0.0, dampening=0.0, weight_decay=0.0
) -> Leaf:
    """SGD-MRT; plain SGD where ``axes`` is None."""
    m = 0.0
    for t in itertools.count(1):
        g = (yield x) + at(weight_decay, t) * x
        m = momentum * m + (1 - dampening) * g
        x1, x = x, x - at(learning_rate, t) * m
        if axes is not None:
            turned = dot(x1, x, axes) * m - dot(m, x, axes) * x1
            m = turned / dot(x, x, axes)


def without_radial_part(p, g, x, delta, eps, axis) -> tuple[Array, bool]:
    """The projection of AdamP and SGDP, and whether it removed anything."""
    if x.ndim < 2:
        return p, False
    for axes in ((axis,), ()):
        cosine = np.abs(dot(g, x, axes)) / (norm(g, axes) * norm(x, axes))
        if np.max(cosine) < delta / np.sqrt(size(x, axes)):
            unit = x / (norm(x, axes) + eps)
            return p - dot(p, unit, axes) * unit, True
    return p, False


def adamp(
    x,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    delta=0.1,
    wd_ratio=0.1,
    nesterov=False,
    channel_axis=-1,
) -> Leaf:
    """AdamP."""
    m = v = 0.0
    for t in itertools.count(1):
        g = yield x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        ahead = b1 * m + (1 - b1) * g if nesterov else m
        p = ahead / (np.sqrt(v) / np.sqrt(1 - b2**t) + eps)
        p, removed = without_radial_part(p, g, x, delta, eps, channel_axis)
        ratio = wd_ratio if removed else 1.0
        lr = at(learning_rate, t)
        x = x * (1 - lr * at(weight_decay, t) * ratio) - lr / (1 - b1**t) * p


def sgdp(
    x,
    learning_rate,
    momentum=0.0,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    delta=0.1,
    wd_ratio=0.1,
    eps=1e-8,
    channel_axis=-1,
) -> Leaf:
    """SGDP."""
    m = 0.0
    for t in itertools.count(1):
        g = yield x
        m = momentum * m + (1 - dampening) * g
        p = g + momentum * m if nesterov else m
        p, removed = without_radial_part(p, g, x, delta, eps, channel_axis)
        ratio = wd_ratio if removed else 1.0
        lr = at(learning_rate, t)
        shrink = lr * at(weight_decay, t) * ratio / (1 - momentum)
        x = x * (1 - shrink) - lr * p


def adabound(
    x,
    learning_rate,
    b1=0.9,
    b2=0.999,
    final_learning_rate=0.1,
    gamma=1e-3,
    eps=1e-8,
    weight_decay=0.0,
    amsbound=False,
) -> Leaf:
    """AdaBound and AMSBound."""
    m = v = v_max = 0.0
    for t in itertools.count(1):
        g = (yield x) + at(weight_decay, t) * x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        v_max = np.maximum(v_max, v)
        lr = at(learning_rate, t)
        final = final_learning_rate * lr / at(learning_rate, 1)
        rate = lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        rates = rate / (np.sqrt(v_max if amsbound else v) + eps)
        lower = final * (1 - 1 / (gamma * t + 1))
        upper = final * (1 + 1 / (gamma * t))
        x = x - np.minimum(np.maximum(rates, lower), upper) * m


def lamb(
    x,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    weight_decay=0.0,
    bias_correction=False,
    max_weight_norm=10.0,
) -> Leaf:
    """LAMB."""
    m = v = 0.0
    for t in itertools.count(1):
        g = yield x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat = m / (1 - b1**t) if bias_correction else m
        v_hat = v / (1 - b2**t) if bias_correction else v
        r = m_hat / (np.sqrt(v_hat) + eps) + at(weight_decay, t) * x
        x_norm, r_norm = (np.sqrt(np.sum(np.abs(a) ** 2)) for a in (x, r))
        trust = 1.0
        if x_norm > 0 and r_norm > 0:
            trust = min(x_norm, max_weight_norm) / r_norm
        x = x - at(learning_rate, t) * trust * r


def adam_abs(x, learning_rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0) -> Leaf:
    """Adam with a mean of |g|."""
    m = v = 0.0
    for t in itertools.count(1):
        g = (yield x) + at(weight_decay, t) * x
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g)
        step = (m / (1 - b1**t)) / (v / (1 - b2**t) + eps)
        x = x - at(learning_rate, t) * step


def swats(
    params,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    threshold=1e-9,
    weight_decay=0.0,
    switch="local",
    sgd_scale=1.0,
    nesterov=False,
    amsgrad=False,
    switches=None,
) -> Tree:
    """SWATS on a whole tree; fills ``switches`` with {leaf: (step, L)}."""
    switches = {} if switches is None else switches
    names = sorted(params)
    x = {name: np.array(params[name]) for name in names}
    m, v, v_max, s = ({name: np.zeros_like(x[name]) for name in names} for _ in "mvVs")
    lam = dict.fromkeys(names, 0.0)
    for t in itertools.count(1):
        raw = yield dict(x)
        g = {k: raw[k] + at(weight_decay, t) * x[k] for k in names}
        done, p = dict(switches), {}
        for k in names:
            if k in done:
                s[k] = b1 * s[k] + g[k]
                ahead = g[k] + b1 * s[k] if nesterov else s[k]
                x[k] = x[k] - (1 - b1) * done[k][1] * at(sgd_scale, t) * ahead
                continue
            m[k] = b1 * m[k] + (1 - b1) * g[k]
            v[k] = b2 * v[k] + (1 - b2) * np.abs(g[k]) ** 2
            v_max[k] = np.maximum(v_max[k], v[k])
            rate = at(learning_rate, t) * np.sqrt(1 - b2**t) / (1 - b1**t)
            p[k] = -rate * m[k] / (np.sqrt(v_max[k] if amsgrad else v[k]) + eps)
            x[k] = x[k] + p[k]
        # What one estimate is made of: a leaf, or every leaf.
        estimated = [tuple(p)] if switch == "vector" else [(k,) for k in p]
        for together in filter(None, estimated):
            pp = sum(float(np.vdot(p[k], p[k]).real) for k in together)
            pg = sum(float(np.vdot(p[k], g[k]).real) for k in together)
            if pg == 0:
                continue
            gamma = pp / -pg
            for k in together:
                lam[k] = b2 * lam[k] + (1 - b2) * gamma
            estimate = lam[together[0]] / (1 - b2**t)
            if t > 1 and estimate > 0 and abs(estimate - gamma) < threshold:
                leaving = together if switch == "local" else names
                switches.update({k: (t, estimate) for k in leaving})
                if switch == "global":
                    break


def leafwise(
    algorithm: Callable[..., Leaf],
    params: Mapping[str, Array],
    **kwargs: Any,
) -> Tree:
    """The same algorithm on each leaf of a tree."""
    leaves = {name: algorithm(x, **kwargs) for name, x in params.items()}
    return together(leaves)


def spherical(
    algorithm: Callable[..., Leaf],
    euclidean: Callable[..., Leaf],
    params: Mapping[str, Array],
    axes: Mapping[str, Axes],
    **kwargs: Any,
) -> Tree:
    """One algorithm on leaves with channel axes, another on the rest."""
    return together(
        {
            name: euclidean(x, **kwargs)
            if axes[name] is None
            else algorithm(x, axes[name], **kwargs)
            for name, x in params.items()
        }
    )


def together(leaves: Mapping[str, Leaf]) -> Tree:
    """Coroutines of leaves as one coroutine of a tree."""
    x = {name: next(leaf) for name, leaf in leaves.items()}
    while True:
        g = yield x
        x = {name: leaf.send(g[name]) for name, leaf in leaves.items()}


def walk(
    tree: Tree,
    start: dict[str, Array],
    gradient: Callable[[int, dict[str, Array]], dict[str, Array]],
    steps: int,
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Drives a coroutine that has yielded its start.

    Returns the gradients it was fed and where they led.
    """
    x, gradients, trajectory = start, [], []
    for step in range(steps):
        gradients.append(gradient(step, x))
        x = tree.send(gradients[-1])
        trajectory.append({name: np.array(leaf) for name, leaf in x.items()})
    return gradients, trajectory
