"""Numbers at the edges of what a type can hold, and counters at theirs.

What has to come out is in ``docs/extremes.md``.
"""

import functools
import inspect
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, OPTIMIZERS
from hypothesis import given
from hypothesis import strategies as st
from platforms import ACCELERATOR, CPU, traced_as_on

import spherical_optax as so
from spherical_optax._limits import within_reach

DTYPES = ("float16", "bfloat16", "float32")
SHAPES = {
    "scalar": (),
    "vector": (5,),
    "conv": (3, 3, 2, 4),
    "groups_of_one": (1, 1, 1, 4),
    "six_axes": (1, 2, 1, 3, 1, 2),
    "empty": (0, 3),
}
KINDS = ("constant", "signs", "uniform", "every size", "one of them", "zero filter")
LARGEST = float(jnp.finfo(jnp.float32).max)
SMALLEST = float(jnp.finfo(jnp.float32).smallest_subnormal)
POSITIVE = [SMALLEST, 1.2e-38, 1e-8, 1.0, 1e18, LARGEST]
BELOW_ONE = [0.0, SMALLEST, 0.5, 1 - 2.0**-24]
RANGES = {
    **{
        name: [0.0, *POSITIVE]
        for name in (
            *("learning_rate", "weight_decay", "eps", "delta", "wd_ratio"),
            *("threshold", "sgd_scale", "final_learning_rate"),
        )
    },
    **{
        name: POSITIVE
        for name in ("gamma", "max_weight_norm", "radius", "peak_learning_rate")
    },
    **{name: BELOW_ONE for name in ("b1", "b2", "momentum", "norm_decay")},
    "dampening": [*BELOW_ONE, 1.0],
    "every": [1, 2, 2**31 - 1],
}
# Blocks that give a direction: where the step leads is not theirs to know.
STEPS = ("project_to_norm", "rescale_and_transport", "retract_to_sphere")


def shapes_of(case):
    return {n: s for n, s in SHAPES.items() if len(s) > 1 or not case.kernels_only}


def array(rng, kind, size, shape, dtype):
    """Numbers up to ``size``, a share from 0 to 1 of the type's exponents."""
    info = jnp.finfo(dtype)
    low, high = math.log2(float(info.smallest_subnormal)), math.log2(float(info.max))
    largest = np.exp2(low + size * (high - low)) if size else 0.0
    x = rng.choice([-1.0, 1.0], size=shape) * largest
    if kind == "constant":
        x = np.full(shape, largest)
    elif kind == "uniform":
        x = x * rng.uniform(size=shape)
    elif kind == "every size":
        x = np.sign(x) * np.exp2(rng.uniform(low, high, size=shape))
    elif kind == "one of them":
        x = np.where(np.arange(x.size).reshape(shape) == x.size // 2, x, 0.0)
    elif kind == "zero filter" and len(shape):
        x = x * (np.arange(shape[-1]) > 0)
    return np.clip(x, -float(info.max), float(info.max)).astype(jnp.dtype(dtype))


def tree(case, seed, kind, size):
    """A leaf of each shape in each type."""
    rng = np.random.default_rng(seed)
    return {
        dtype: {
            name: array(rng, kind, size, shape, dtype)
            for name, shape in shapes_of(case).items()
        }
        for dtype in DTYPES
    }


def hyperparameters(case):
    """The numbers among the arguments of a case, defaults too."""
    signature = inspect.signature(getattr(so, case.name)).parameters
    values = {n: p.default for n, p in signature.items()} | dict(case.kwargs)
    values.pop("channel_axis", None)
    return {
        name: jnp.asarray(value, jnp.int32 if name == "every" else jnp.float32)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def where_not_finite(tree):
    """Paths of leaves with something that is infinite or not a number."""
    return [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if not np.isfinite(np.asarray(x, np.float64)).all()
    ]


@functools.cache
def compiled(case_id, platform):
    """A step that takes hyperparameters, compiled fast, for a platform that is set."""
    (case,) = (case for case in CASES if case.id == case_id)
    params = tree(case, 0, "uniform", 0.5)
    options = {"xla_backend_optimization_level": 0}

    def step(numbers, params, state, grads):
        updates, state = case.make(**numbers).update(grads, state, params)
        return updates, state, optax.apply_updates(params, updates)

    state = case.make().init(params)
    lowered = jax.jit(step).lower(hyperparameters(case), params, state, params)
    return lowered.compile(options)


NUMBERS = st.tuples(
    st.integers(0, 1000),
    st.sampled_from(KINDS),
    st.one_of(st.sampled_from([0.0, 0.02, 0.5, 0.75, 1.0]), st.floats(0, 1)),
)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
@pytest.mark.parametrize("step", [np.inf, LARGEST, 2.0**102])
def test_no_step_leads_out_of_the_range(dtype, step):
    with jax.enable_x64(dtype == "float64"):
        largest = jnp.asarray(jnp.finfo(dtype).max)
        x = jnp.stack([largest, -largest, largest / 2, 0 * largest])
        for steps in (step * jnp.ones(4), -step * jnp.ones(4)):
            moved = optax.apply_updates(x, within_reach(steps, x))
            assert moved.dtype == x.dtype
            assert jnp.isfinite(moved).all()


@pytest.mark.parametrize(
    ("dtype", "counts"),
    [("bfloat16", 2.0**102), ("float32", 2.0**102), ("float64", 2.0**969)],
)
def test_a_step_counts_up_to_its_bound(dtype, counts):
    with jax.enable_x64(dtype == "float64"):
        steps = jnp.asarray([counts / 2, -counts, 2 * counts, 1e-3])
        kept = within_reach(steps, jnp.ones(4, dtype))
        assert kept.tolist() == [counts / 2, -counts, counts, float(steps[3])]


@pytest.mark.parametrize(
    ("case", "platform"),
    [(case, CPU) for case in CASES]
    + [(case, ACCELERATOR) for case in CASES if case.name in ("adamsrt", "sgdmrt")],
    ids=lambda it: getattr(it, "id", it),
)
def test_any_finite_numbers_give_finite_ones(case, platform):
    usual = hyperparameters(case)
    assert set(usual) <= set(RANGES), "a hyperparameter without a range"
    choices = {
        name: st.one_of(st.just(value), st.sampled_from(RANGES[name]))
        for name, value in usual.items()
    }
    whole_step = not case.is_block and case.name != "add_corrected_weight_decay"

    @given(st.fixed_dictionaries(choices), NUMBERS, st.tuples(*[NUMBERS] * 3))
    def check(numbers, weights, gradients):
        numbers = {n: jnp.asarray(x, usual[n].dtype) for n, x in numbers.items()}
        params = tree(case, *weights)
        state = case.make().init(params)
        for steps, drawn in enumerate(gradients):
            updates, state, moved = compiled(case.id, platform)(
                numbers, params, state, tree(case, *drawn)
            )
            if case.name == "monitor_sphere":  # its updates are those of optax.sgd
                updates, moved, state = (), params, state._replace(inner_state=())
            assert not where_not_finite((updates, state)), steps
            if whole_step or case.name in STEPS:
                assert not where_not_finite(moved), steps
                params = moved
            if case.name == "monitor_sphere":
                break

    with traced_as_on(platform):
        check()


def usual(case, seed, size=1.0):
    """Numbers of one size."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(np.clip(rng.normal(size=shape), -3, 3) * size, "float32")
        for name, shape in shapes_of(case).items()
    }


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.id)
def test_a_spike_is_over_once_it_is_past(case):
    optimizer = case.make()
    update = jax.jit(optimizer.update)
    params, calm, spike = usual(case, 0), usual(case, 1), usual(case, 1, 1e38)
    state = optimizer.init(params)
    for grads in (calm, spike, calm, calm):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert not where_not_finite((params, updates, state))


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.id)
def test_the_counter_stops_at_its_largest(case):
    optimizer = case.make()
    params, grads = usual(case, 0), usual(case, 1)
    last = jnp.iinfo(jnp.int32).max
    state = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, last - 1) if is_counter(path) else x,
        optimizer.init(params),
    )
    update = jax.jit(optimizer.update)
    for _ in range(3):
        updates, state = update(grads, state, params)
        assert not where_not_finite(updates)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        assert not is_counter(path) or int(x) == last


def is_counter(path):
    return isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "count"


ONE_OF_EACH = list({case.name: case for case in OPTIMIZERS}.values())


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_more_leaves_than_calls_may_be_nested(case):
    optimizer, leaves = case.make(), sys.getrecursionlimit() + 100
    params = {f"layer{i}": jnp.ones((1, 2, 2)) for i in range(leaves)}
    state = jax.eval_shape(optimizer.init, params)
    updates, _ = jax.eval_shape(optimizer.update, params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("dtype", "b2", "left"),
    [("float32", 0.999, 0.057), ("bfloat16", 0.999, 1.23), ("bfloat16", 0.99, 0.01)],
)
def test_a_second_moment_of_bfloat16_hardly_falls(dtype, b2, left):
    """As documented: after 3,000 gradients of size 1, and 3,000 of size 0.1."""
    optimizer, x = so.adamp(1e-3, b2=b2), jnp.ones(64, dtype)

    def step(state, i):
        size = jnp.where(i < 3000, 1.0, 0.1)
        g = size * jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (64,))
        return optimizer.update(g.astype(dtype), state, x)[1], None

    state, _ = jax.lax.scan(step, optimizer.init(x), jnp.arange(6000))
    nu = optax.tree.get(state, "nu").astype("float32")
    assert float(jnp.mean(nu)) == pytest.approx(left, rel=0.02)


def test_lamb_where_its_direction_overflows_and_its_trust_ratio_vanishes():
    """Infinity times 0, were the direction not bounded before it is scaled."""
    x = jnp.full((3, 2), 1e38)
    optimizer = so.lamb(1e-2, weight_decay=1e18, max_weight_norm=1.2e-38)
    step, state = optimizer.update(x, optimizer.init(x), x)
    assert where_not_finite((step, state)) == []
