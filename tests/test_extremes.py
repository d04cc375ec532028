"""Numbers at the edges of what a type can hold, and counters at theirs.

Everything stays finite as long as the square of each number, summed over a group, can
be represented in float32: weights and gradients up to 1e17 in float32 and bfloat16,
and all that float16 has room to add up. Beyond, the result is what overflow makes of
it, as with Optax's own optimizers: see ``optax.apply_if_finite``.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, OPTIMIZERS

import spherical_optax as so

SHAPES = {
    "scalar": (),
    "vector": (5,),
    "matrix": (4, 3),
    "conv": (3, 3, 2, 4),
    "groups_of_one": (1, 1, 1, 4),
    "six_axes": (1, 2, 1, 3, 1, 2),
    "empty": (0, 3),
}
LARGEST = {"float16": 1e3, "bfloat16": 1e17, "float32": 1e17}


def sizes(dtype):
    """From nothing over the smallest number there is to the largest that is allowed."""
    info = jnp.finfo(dtype)
    smallest = float(info.smallest_subnormal)
    return (0.0, 3 * smallest, 2 * float(info.tiny), 1.0, LARGEST[dtype])


def tree(case, dtype, size, seed):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(np.clip(rng.normal(size=shape), -3, 3) * size / 3, dtype)
        for name, shape in SHAPES.items()
        if len(shape) > 1 or not case.kernels_only
    }


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_finite_from_the_smallest_to_the_largest(case, dtype):
    optimizer = case.make()
    update = jax.jit(optimizer.update)
    for weights, slopes in itertools.product(sizes(dtype), repeat=2):
        params, grads = tree(case, dtype, weights, 0), tree(case, dtype, slopes, 1)
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        where = f"weights of {weights:g}, gradients of {slopes:g}"
        assert finite((params, state)), where


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.id)
def test_a_spike_is_over_once_it_is_past(case):
    optimizer = case.make()
    update = jax.jit(optimizer.update)
    params, spike = tree(case, "float32", 1.0, 0), tree(case, "float32", 1e17, 1)
    calm = tree(case, "float32", 1.0, 1)
    state = optimizer.init(params)
    for grads in (calm, spike, calm, calm):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert finite((params, updates, state))


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.id)
def test_the_counter_stops_at_its_largest(case):
    optimizer = case.make()
    params, grads = tree(case, "float32", 1.0, 0), tree(case, "float32", 1.0, 1)
    last = jnp.iinfo(jnp.int32).max
    state = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, last - 1) if is_counter(path) else x,
        optimizer.init(params),
    )
    update = jax.jit(optimizer.update)
    for _ in range(3):
        updates, state = update(grads, state, params)
        assert finite(updates)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        assert not is_counter(path) or int(x) == last


def is_counter(path):
    return isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "count"


@pytest.mark.parametrize("name", ["adamsrt", "swats"])
def test_thousands_of_leaves(name):
    optimizer = getattr(so, name)(1e-3)
    params = {f"layer{i}": jnp.ones((1, 2, 2)) for i in range(5000)}
    state = jax.eval_shape(optimizer.init, params)
    updates, _ = jax.eval_shape(optimizer.update, params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
