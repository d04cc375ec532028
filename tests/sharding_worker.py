"""Runs optimizers over eight virtual devices; prints what went wrong, as JSON.

``test_sharding.py`` starts it in a process of its own, because the number of
devices is fixed once JAX has started.
"""

import json
import sys
import traceback
from functools import partial

import cases
import chex
import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.programs import collectives, split

LAYOUTS = ("replicated", "input channels", "output channels", "both")
SHAPES = {"bias": (8,), "conv": (3, 2, 8, 16), "dense": (16, 8)}
CHANNELS = 16  # of the largest leaf: the most numbers that a collective may have

# Explicit shardings: along the channel axis, and along axes that are summed over.
EXPLICIT = {
    "bias": PartitionSpec("x"),
    "conv": PartitionSpec(None, None, None, "x"),
    "dense": PartitionSpec("x", None),
}
# Newton-Schulz multiplies whole matrices by themselves: their parts have to travel.
GATHERS = {"muonh"}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=SHAPES[name]).astype(np.float32) for name in SHAPES}


def place(params, where):
    return {name: jax.device_put(x, where[name]) for name, x in params.items()}


def check_layout(state, params):
    """State lies as the parameters; numbers of groups along the axes they have left."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        param = params.get(names[-1]) if names else None
        if param is None or leaf.ndim != param.ndim:
            continue  # a count, or one number for all of a leaf
        split_along = (*param.sharding.spec, *[None] * leaf.ndim)
        axes = zip(leaf.shape, param.shape, split_along, strict=False)
        spec = PartitionSpec(*(axis if n == m else None for n, m, axis in axes))
        expected = NamedSharding(param.sharding.mesh, spec)
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (
            f"{jax.tree_util.keystr(path)} lies as {leaf.sharding}, not as {expected}"
        )


def check_collectives(case, layout, text):
    """No weight travels: numbers of groups are added up, if anything is said."""
    found = collectives(text)
    if layout == "replicated":
        assert not found, found
    elif case.name not in GATHERS:
        assert {c.kind for c in found} <= {"all-reduce"}, found
        assert all(c.largest <= CHANNELS for c in found), found
    return len(found)


def run_automatic(case, layout, expected):
    """Shardings given by the arguments; the compiler fills in the rest."""
    mesh = jax.make_mesh((4, 2), ("in", "out"), axis_types=(AxisType.Auto,) * 2)
    where = {name: split(shape, layout, mesh) for name, shape in SHAPES.items()}
    optimizer = case.make()
    params, grads = (place(tree(seed), where) for seed in (0, 1))
    state = optimizer.init(params)
    check_layout(state, params)
    step = jax.jit(cases.make_step(optimizer)).lower(params, state, grads)
    step = step.compile({"xla_backend_optimization_level": 0})  # fast
    moved, new_state = step(params, state, grads)
    check_layout(moved, params)
    check_layout(new_state, params)
    chex.assert_trees_all_close(
        jax.device_get((moved, new_state)), expected, rtol=1e-5, atol=1e-6
    )
    return check_collectives(case, layout, step.as_text())


def run_explicit(case):
    """Shardings as parts of types: they stay the same from step to step."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    where = {name: NamedSharding(mesh, spec) for name, spec in EXPLICIT.items()}
    optimizer = case.make()
    with jax.set_mesh(mesh):
        params, grads = (place(tree(seed), where) for seed in (0, 1))

        def types(x):
            return jax.tree.map(jax.typeof, x)

        first = optimizer.init(params)
        compiled_first = jax.jit(optimizer.init)(params)
        assert types(first) == types(compiled_first), "init under jit"
        check_layout(first, params)
        updates, second = jax.jit(optimizer.update)(grads, first, params)
        assert types(second) == types(first), "state after update"
        assert types(updates) == types(params), "updates"
        moved = optax.apply_updates(params, updates)
        chex.assert_tree_all_finite(jax.device_get(moved))
    return 0


def run_in_host_memory(case):
    """What is kept of a group lies in the memory of its weights, too."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    where = {
        name: NamedSharding(mesh, spec, memory_kind="pinned_host")
        for name, spec in EXPLICIT.items()
    }
    state = case.make().init(place(tree(0), where))
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state) if x.ndim}
    assert kinds == {"pinned_host"}, kinds
    return 0


def alone(case):
    """What a step makes on one device: weights and state."""
    optimizer, params = case.make(), tree(0)
    step = jax.jit(cases.make_step(optimizer))
    return jax.device_get(step(params, optimizer.init(params), tree(1)))


def main() -> None:
    assert jax.device_count() == 8
    problems, counts = {}, {}
    for case in cases.DISTINCT:
        expected = alone(case)
        runs = {x: partial(run_automatic, case, x, expected) for x in LAYOUTS}
        runs["explicit"] = partial(run_explicit, case)
        if case.name in ("adams", "adamsrt", "adamg", "monitor_sphere"):
            runs["host memory"] = partial(run_in_host_memory, case)
        for name, run in runs.items():
            try:
                counts[f"{case.id}: {name}"] = run()
            except Exception:
                problems[f"{case.id}: {name}"] = traceback.format_exc(limit=-3)
    names = [case.id for case in cases.DISTINCT]
    json.dump({"cases": names, "counts": counts, "problems": problems}, sys.stdout)


if __name__ == "__main__":
    main()
