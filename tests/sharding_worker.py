"""Runs optimizers over eight virtual devices; prints what went wrong, as JSON.

``test_sharding.py`` starts it in a process of its own, because the number of
devices is fixed once JAX has started.
"""

import json
import sys
import traceback

import cases
import chex
import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# Along the channel axis, and along axes that are summed over.
LAYOUT = {
    "bias": PartitionSpec("x"),
    "conv": PartitionSpec(None, None, None, "x"),
    "conv1d": PartitionSpec(None, "x", None),
    "dense": PartitionSpec("x", None),
}
SHAPES = {"bias": (8,), "conv": (3, 2, 8, 16), "conv1d": (3, 8, 4), "dense": (16, 8)}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=SHAPES[name]).astype(np.float32) for name in SHAPES}


def place(params, mesh):
    return {
        name: jax.device_put(x, NamedSharding(mesh, LAYOUT[name]))
        for name, x in params.items()
    }


def check_same_layout(state, params):
    """Every leaf of the state of a parameter's shape lies where that one lies."""
    layouts = {x.shape: x.sharding for x in params.values()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.shape in layouts:
            expected = layouts[leaf.shape]
            where = jax.tree_util.keystr(path)
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (
                f"{where} lies as {leaf.sharding}, its parameter as {expected}"
            )


def run_automatic(optimizer):
    """Shardings given by the arguments; the compiler fills in the rest."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    step = cases.make_step(optimizer)
    start, grads = tree(0), tree(1)
    params = place(start, mesh)
    state = optimizer.init(params)
    check_same_layout(state, params)
    moved, new_state = jax.jit(step)(params, state, place(grads, mesh))
    check_same_layout(moved, params)
    check_same_layout(new_state, params)
    chex.assert_trees_all_close(
        jax.device_get((moved, new_state)),
        jax.device_get(step(start, optimizer.init(start), grads)),
        rtol=1e-5,
        atol=1e-6,
    )


def run_explicit(optimizer):
    """Shardings as parts of types: they stay the same from step to step."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, grads = (place(tree(seed), mesh) for seed in (0, 1))

        def types(x):
            return jax.tree.map(jax.typeof, x)

        first = optimizer.init(params)
        compiled_first = jax.jit(optimizer.init)(params)
        assert types(first) == types(compiled_first), "init under jit"
        check_same_layout(first, params)
        updates, second = jax.jit(optimizer.update)(grads, first, params)
        assert types(second) == types(first), "state after update"
        assert types(updates) == types(params), "updates"
        moved = optax.apply_updates(params, updates)
        chex.assert_tree_all_finite(jax.device_get(moved))


def main() -> None:
    assert jax.device_count() == 8
    problems, checked = {}, []
    for case in cases.DISTINCT:
        for run in (run_automatic, run_explicit):
            name = f"{case.id} {run.__name__}"
            checked.append(name)
            try:
                run(case.make())
            except Exception:
                problems[name] = traceback.format_exc(limit=-3)
    json.dump({"checked": checked, "problems": problems}, sys.stdout)


if __name__ == "__main__":
    main()
