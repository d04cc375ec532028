"""What every exported optimizer and block promises, whatever it computes."""

import functools
import inspect
import warnings

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import spherical_optax as so

pytestmark = pytest.mark.usefixtures("strict_ranks")
each_case = pytest.mark.parametrize("case", cases.CASES, ids=cases.case_id)


@functools.cache
def compiled_step(case_id):
    """One compiled step a case, shared by the tests of this file."""
    (case,) = (case for case in cases.CASES if case.id == case_id)
    return jax.jit(cases.make_step(case.make()))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def signature_of(tree):
    """Shape, type and weakness of the type of every leaf."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def precision(dtype):
    """64-bit mode where the type needs it."""
    return jax.enable_x64(jnp.dtype(dtype).name in ("float64", "complex128"))


def small_tree(seed=0, dtype="float32"):
    """A kernel and a vector, where the number of leaves costs time."""
    rng = np.random.default_rng(seed)
    shapes = {"bias": (3,), "conv": (3, 2, 2, 4)}
    return {name: cases.random_leaf(rng, shapes[name], dtype) for name in shapes}


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))


# ---------------------------------------------------------------- the registry


def test_every_export_is_registered():
    functions = {name for name in so.__all__ if callable(getattr(so, name))}
    registered = {case.name for case in cases.CASES}
    assert functions - registered == cases.OTHER_EXPORTS
    assert registered <= functions
    assert len({case.id for case in cases.CASES}) == len(cases.CASES)


def test_exports_are_what_they_seem():
    assert len(set(so.__all__)) == len(so.__all__)
    for name in cases.OTHER_EXPORTS:
        returned = inspect.signature(getattr(so, name)).return_annotation
        assert "GradientTransformation" not in str(returned)


@each_case
def test_is_a_transformation_with_extra_arguments(case):
    assert isinstance(case.make(), optax.GradientTransformationExtraArgs)


@each_case
def test_schedules_are_registered(case):
    parameters = inspect.signature(getattr(so, case.name)).parameters.values()
    annotated = {p.name for p in parameters if p.annotation == optax.ScalarOrSchedule}
    assert annotated == set(case.schedules)


# ---------------------------------------------------------------- shapes and types


@each_case
def test_init_on_abstract_shapes(case):
    optimizer, params = case.make(), cases.make_tree(case)
    state = optimizer.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(optimizer.init, abstract(params)), state
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(
        optimizer.init(abstract(params)), state
    )


@pytest.mark.parametrize("dtype", cases.DTYPES)
@each_case
def test_state_and_updates_keep_shape_and_type(case, dtype):
    with precision(dtype):
        optimizer, params = case.make(), cases.make_tree(case, dtype=dtype)
        state = optimizer.init(params)
        before = signature_of(state)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
        for _ in range(2):
            updates, state = jax.eval_shape(optimizer.update, params, state, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
            assert signature_of(state) == before


@each_case
def test_mixed_types_in_one_tree(case, x64):
    """Each leaf in its own type, and as exact as that type allows."""
    optimizer = case.make()
    params, grads = (
        {
            d: {"conv": small_tree(s, d)["conv"]}
            for s, d in enumerate(cases.DTYPES, start)
        }
        for start in (0, 50)
    )
    wide = {
        dtype: jnp.complex128 if dtype.startswith("complex") else jnp.float64
        for dtype in cases.DTYPES
    }

    def widen(tree):
        return {d: jax.tree.map(lambda x: x.astype(wide[d]), tree[d]) for d in tree}  # noqa: B023

    def two_updates(params, grads):
        start = optimizer.init(params)
        first, state = optimizer.update(grads, start, params)
        second, state = optimizer.update(params, state, params)
        assert signature_of(state) == signature_of(start)
        return first, second

    updates = cases.compiled_fast(two_updates, params, grads)
    exact = cases.compiled_fast(two_updates, widen(params), widen(grads))
    tolerance = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5, "complex64": 1e-5}
    for got, want in zip(updates, exact, strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(got, params)
        for dtype in cases.DTYPES:
            reference = np.asarray(want[dtype]["conv"])
            off = np.asarray(got[dtype]["conv"]).astype(reference.dtype) - reference
            largest = 1.0 if case.cancels else np.max(np.abs(reference))
            assert np.max(np.abs(off)) <= tolerance.get(dtype, 1e-12) * largest, dtype


needing_params = pytest.mark.parametrize(
    "case", [case for case in cases.CASES if case.needs_params], ids=cases.case_id
)


@needing_params
def test_gradients_of_a_narrower_type(case):
    """As after a sum over devices in 16 bits: steps are those of the weights' type."""
    optimizer, params = case.make(), cases.make_tree(case)
    narrow = optax.tree.cast(cases.make_tree(case, 1), "bfloat16")
    results = [
        optimizer.update(grads, optimizer.init(params), params)
        for grads in (narrow, optax.tree.cast(narrow, "float32"))
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(results[0][0], params)
    chex.assert_trees_all_equal(*results)


@pytest.mark.parametrize(
    "case",
    [c for c in cases.OPTIMIZERS if c.needs_params and "labels" not in c.kwargs],
    ids=cases.case_id,
)
def test_numbers_of_python(case):
    optimizer, numbers = case.make(), {"a": 1.5, "b": -2.0}
    arrays = jax.tree.map(jnp.float32, numbers)
    results = [
        optimizer.update(tree, optimizer.init(tree), tree) for tree in (numbers, arrays)
    ]
    chex.assert_trees_all_equal(*results)
    chex.assert_trees_all_equal_shapes_and_dtypes(*results)


@needing_params
def test_weights_that_are_no_floating_point_numbers(case):
    params = {"net": {"steps": jnp.arange(3), "conv": jnp.ones((3, 3, 2, 4))}}
    with pytest.raises(ValueError, match=rf"^{case.name}: .*'net/steps'.*int32"):
        case.make().init(params)


@pytest.mark.parametrize(
    ("weight", "slope"), [(50, 300), (1, 1e-3)], ids=["large", "small"]
)
@each_case
def test_half_precision_far_from_one(case, weight, slope):
    """Squares of 300 overflow float16, and sums of them; those of 1e-3 vanish."""
    rng = np.random.default_rng(0)
    start, gradient = (
        {"conv": jnp.asarray(rng.choice([-1, 1], (8, 8, 8, 4)) * size, jnp.float16)}
        for size in (weight, slope)
    )
    optimizer = case.make()
    steps = {}
    for dtype in ("float16", "float32"):
        params, grads = optax.tree.cast((start, gradient), dtype)
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        updates, state = optimizer.update(grads, state, params)
        assert finite((updates, state))
        steps[dtype] = updates["conv"].astype(jnp.float32)
    off = jnp.max(jnp.abs(steps["float16"] - steps["float32"]))
    largest = float(jnp.max(jnp.abs(steps["float32"])))
    assert float(off) <= 4e-3 * largest + 6e-8  # the smallest float16


# ---------------------------------------------------------------- compilation


@each_case
def test_compiles_once_and_accepts_extra_arguments(case):
    optimizer = case.make()
    params = cases.make_tree(case)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(cases.make_step(optimizer), n=1))
    for state in (optimizer.init(params), jax.jit(optimizer.init)(params)):
        x = params
        for seed in range(3):
            grads = cases.make_tree(case, seed)
            x, state = step(x, state, grads, unexpected_extra_argument=1.0)


@each_case
def test_compiled_and_not_compiled_agree(case):
    optimizer = case.make()
    params = small_tree()
    state = optimizer.init(params)
    eager, jitted = (params, state), (params, state)
    for seed in range(2):
        grads = small_tree(seed + 1)
        eager = cases.make_step(optimizer)(*eager, grads)
        jitted = compiled_step(case.id)(*jitted, grads)
    chex.assert_trees_all_close(eager, jitted, rtol=2e-5, atol=1e-6)


@each_case
def test_buffers_can_be_donated(case):
    optimizer, params = case.make(), cases.make_tree(case)
    state = optimizer.init(params)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))]
    assert len(set(buffers)) == len(buffers), "two leaves share a buffer"

    step = jax.jit(cases.make_step(optimizer), donate_argnums=(0, 1))
    expected = cases.make_step(optimizer)(params, state, cases.make_tree(case, 1))
    expected = jax.tree.map(jnp.copy, expected)  # some state is handed on as it is
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a buffer that could not be reused
        moved, new_state = step(params, state, cases.make_tree(case, 1))
        assert all(x.is_deleted() for x in params.values())
        chex.assert_trees_all_close((moved, new_state), expected, rtol=2e-5, atol=1e-6)
        step(moved, new_state, cases.make_tree(case, 2))


# ---------------------------------------------------------------- hard inputs

KEEPS_WEIGHTS = [
    case
    for case in cases.CASES
    if case.name != "adamg"
    and case.variant != "2.0"
    and "weight_decay" not in case.kwargs
]


def with_odd_leaves(case, seed, dtype):
    """A filter of zeros, a number, and leaves with no weight at all."""
    tree = small_tree(seed, dtype)
    tree["conv"] = tree["conv"].at[..., 0].set(0)
    tree["empty"] = {"conv": jnp.zeros((3, 2, 2, 0), dtype)}
    tree["hollow"] = {"conv": jnp.zeros((3, 2, 0, 4), dtype)}
    return tree if case.kernels_only else {**tree, "scale": jnp.ones((), dtype)}


@each_case
def test_zero_weights_and_zero_gradients_stay_finite(case):
    weights, gradients = (
        {dtype: with_odd_leaves(case, seed, dtype) for dtype in ("float16", "float32")}
        for seed in (0, 1)
    )
    zeros = jax.tree.map(jnp.zeros_like, weights)
    step = compiled_step(case.id)
    for params, grads in (
        (zeros, zeros),
        (zeros, gradients),
        (weights, zeros),
        (weights, gradients),
    ):
        state = case.make().init(params)
        x = params
        for _ in range(3):
            x, state = step(x, state, grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(x, params)
        assert finite((x, state))
        if grads is zeros and case in KEEPS_WEIGHTS:
            chex.assert_trees_all_close(x, params, rtol=1e-6)


@each_case
def test_zero_weights_take_no_step_along_nan(case):
    """A direction that is not defined is left out, in float16 too."""
    params = {"conv": jnp.zeros((3, 2, 2, 4), jnp.float16)}
    grads = {"conv": jnp.full((3, 2, 2, 4), 1e-7, jnp.float16)}
    updates, state = case.make().update(grads, case.make().init(params), params)
    assert finite((updates, state))


@pytest.mark.parametrize("empty", [{}, (), {"a": {}, "b": ()}], ids=str)
@each_case
def test_empty_trees(case, empty):
    optimizer = case.make()
    state = optimizer.init(empty)
    updates, new_state = optimizer.update(empty, state, empty)
    assert jax.tree.leaves(updates) == []
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@each_case
def test_without_params(case):
    optimizer, params = case.make(), cases.make_tree(case)
    state = optimizer.init(params)
    if not case.needs_params:
        without = optimizer.update(params, state)
        chex.assert_trees_all_close(without, optimizer.update(params, state, params))
        return
    with pytest.raises(ValueError, match=rf"^{case.name}\b.*param") as caught:
        optimizer.update(params, state)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"^{case.name}\b.*param"):
        jax.eval_shape(optimizer.update, params, state)


@pytest.mark.parametrize(
    ("argument", "case"),
    [
        pytest.param(argument, case, id=f"{case.id}-{argument}")
        for argument in ("mu_dtype", "accumulator_dtype")
        for case in cases.CASES
        if argument in inspect.signature(getattr(so, case.name)).parameters
    ],
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, "float32"], ids=["bf16", "f32"])
def test_type_of_the_first_moment(case, argument, dtype):
    momentum = {"momentum": 0.9} if argument == "accumulator_dtype" else {}
    optimizer = case.make(**{argument: dtype}, **momentum)
    params = cases.make_tree(case, dtype="bfloat16")
    state = optimizer.init(params)
    moments = [
        leaf
        for name in ("mu", "trace")
        for _, tree in optax.tree.get_all_with_path(state, name)
        for leaf in jax.tree.leaves(tree)
    ]
    assert len(moments) == len(params)
    assert {m.dtype for m in moments} == {jnp.dtype(dtype)}
    updates, new_state = jax.eval_shape(optimizer.update, params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@each_case
def test_arrays_of_numpy(case):
    """In double precision, as NumPy makes them: as JAX has them, and no warning."""
    arrays = cases.make_tree(case), cases.make_tree(case, 1)
    doubles = jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)
    optimizer = case.make()
    results = [
        optimizer.update(grads, optimizer.init(params), params)
        for params, grads in (arrays, doubles)
    ]
    chex.assert_trees_all_equal(*results)
    chex.assert_trees_all_equal_shapes_and_dtypes(*results)


@pytest.mark.parametrize("case", cases.OPTIMIZERS, ids=cases.case_id)
def test_derivatives_through_a_step_where_biases_are_zero(case):
    """As meta-learning takes them, at an initialization."""
    optimizer, grads = case.make(), cases.make_tree(case, 1)
    params = {**cases.make_tree(case), "bias": jnp.zeros(3)}

    def loss(params):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        moved = optax.apply_updates(params, updates)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(moved))

    slopes = cases.compiled_fast(jax.grad(loss), params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slopes))
