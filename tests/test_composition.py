"""Every optimizer inside what Optax builds around optimizers, and with schedules."""

import functools
import inspect
import numbers

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import spherical_optax as so

pytestmark = pytest.mark.usefixtures("strict_ranks")
each_case = pytest.mark.parametrize("case", cases.DISTINCT, ids=cases.case_id)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def problem(seed=0):
    """A kernel and a vector, and gradients for two steps."""
    shapes = {"bias": (3,), "conv": (3, 2, 2, 4)}

    def tree(seed):
        rng = np.random.default_rng(seed)
        return {k: cases.random_leaf(rng, shapes[k], "float32") for k in shapes}

    return tree(seed), [tree(seed + 1), tree(seed + 2)]


def run(optimizer, params, gradients, jit=lambda function: function):
    """The updates of every step, and the last state.

    Not compiled unless asked for: compiling takes longer than all the steps.
    """
    update, state = jit(optimizer.update), jit(optimizer.init)(params)
    all_updates = []
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    return all_updates, state


@functools.cache
def plain_run(case_id):
    """What the optimizer does alone."""
    (case,) = (case for case in cases.CASES if case.id == case_id)
    return run(case.make(), *problem())


# ---------------------------------------------------------------- hyperparameters


def numeric_arguments(case):
    bound = inspect.signature(getattr(so, case.name)).bind(**case.kwargs)
    bound.apply_defaults()
    return {
        name
        for name, value in bound.arguments.items()
        if isinstance(value, numbers.Number) and not isinstance(value, bool)
    }


@pytest.mark.parametrize("case", cases.CASES, ids=cases.case_id)
def test_inject_hyperparams(case):
    """Every number is injected, and nothing changes."""
    updates, state = run(case.inject(), *problem(), jit=jax.jit)
    assert set(state.hyperparams) == numeric_arguments(case)
    expected_updates, expected_state = plain_run(case.id)
    close(updates, expected_updates)
    close(state.inner_state, expected_state, rtol=1e-4)


ADJUSTABLE = {"learning_rate", "weight_decay", "eps"}


@pytest.mark.parametrize(
    "case",
    [case for case in cases.DISTINCT if numeric_arguments(case) & ADJUSTABLE],
    ids=cases.case_id,
)
def test_injected_hyperparameters_can_be_changed(case):
    """A number set in the state acts as one that was there from the beginning."""
    changes = dict.fromkeys(sorted(numeric_arguments(case) & ADJUSTABLE), 0.05)
    params, gradients = problem()
    optimizer = case.inject()
    state = optimizer.init(params)
    for name, value in changes.items():
        state.hyperparams[name] = jnp.asarray(value)
    update = jax.jit(optimizer.update)
    updates, _ = update(gradients[0], state, params)
    expected, _ = run(case.make(**changes), params, gradients[:1])
    close(updates, expected[0])


@pytest.mark.parametrize("falling", [True, False])
def test_a_schedule_scales_the_final_learning_rate_of_adabound(falling):
    """Injected as well; where that starts at 0, there is nothing to scale it by."""
    schedule = optax.linear_schedule(*((0.01, 0.001) if falling else (0.0, 0.01)), 5)
    options = {"final_learning_rate": 0.01, "gamma": 1.0}
    params, gradients = problem()
    injected = optax.inject_hyperparams(so.adabound)(learning_rate=schedule, **options)
    updates, _ = run(injected, params, 3 * gradients)
    if falling:
        expected, _ = run(so.adabound(schedule, **options), params, 3 * gradients)
        close(updates, expected)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(updates[1:]))


@pytest.mark.parametrize("wrap", [lambda make: make, optax.inject_hyperparams])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_learning_rate_of_zero_moves_nothing(wrap, steps):
    """From the start, or from some step on: AdaBound's lower bound is 0 then, too."""
    params, grads = {"w": jnp.ones(4)}, {"w": jnp.full(4, 2.0)}
    rate = 0.0
    if steps:
        rate = optax.join_schedules(
            [optax.constant_schedule(0.1), optax.constant_schedule(0.0)], [steps]
        )
    optimizer = wrap(so.adabound)(learning_rate=rate, gamma=0.1)
    state = optimizer.init(params)
    for step in range(steps + 4):
        updates, state = optimizer.update(grads, state, params)
        assert np.all(updates["w"] != 0) == (step < steps)


@pytest.mark.parametrize(
    "label", [so.label_conv_filters, so.label_by_path({"conv": "filter"})]
)
def test_a_labelling_function_taken_for_a_schedule(label):
    """An error that says how to inject, and not a tree of one label."""
    params = {"conv": jnp.ones((3, 3, 2, 2))}
    injected = optax.inject_hyperparams(so.adamsrt)(1e-3, labels=label)
    with pytest.raises(ValueError, match=r'^labels: .* static_args=\("labels",\)'):
        injected.init(params)
    make = optax.inject_hyperparams(so.adamsrt, static_args=("labels",))
    make(1e-3, labels=label).init(params)


def test_hyperparameters_that_are_rounded_to_one():
    params = {"k": jnp.ones((2, 3), jnp.bfloat16)}
    make = functools.partial(optax.inject_hyperparams, so.adamp)
    with pytest.raises(ValueError, match=r"^b2 must be .* hyperparam_dtype"):
        make()(learning_rate=0.01).init(params)
    optimizer = make(hyperparam_dtype=jnp.float32)(learning_rate=0.01)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert np.all(np.asarray(updates["k"], float) < 0)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (so.adamp, {"learning_rate": 0.1, "eps": 1e-4}),
        (so.adams, {"learning_rate": 0.1, "eps": 1e-4}),
        (
            functools.partial(so.rotational, optax.identity()),
            {"learning_rate": 1e-3, "weight_decay": 1e-4},
        ),
    ],
)
def test_hyperparameters_in_half_precision_have_products(make, options):
    """Injected for weights of float16, in which ``eps`` squared is 0."""
    numbers = jnp.arange(72.0).reshape(3, 3, 2, 4)
    params, grads = {"conv": 1 + jnp.sin(numbers)}, {"conv": 1e-5 * jnp.cos(numbers)}
    params, grads = optax.tree.cast((params, grads), jnp.float16)
    injected = optax.inject_hyperparams(make)(**options)
    ((step,), _), ((expected,), _) = (
        run(optimizer, params, [grads]) for optimizer in (injected, make(**options))
    )
    assert np.any(step["conv"])
    close(step, expected, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    [case for case in cases.DISTINCT if "muon" not in case.id],  # Optax's compiles
    ids=cases.case_id,
)
def test_injected_steps_outside_of_programs_compile_nothing_anew(case):
    """Though the optimizer is made again at each of them."""
    params, gradients = problem()
    optimizer = case.inject()
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(gradients[0], state, params)
    compiled = []

    def note(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        optimizer.update(gradients[1], state, params)
        assert compiled == []
        jax.jit(lambda x: x + 1)(1.0)
        assert len(compiled) == 1  # it would be noted
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@each_case
def test_a_loop_within_shard_map(case):
    """What is kept varies over devices as the weights do, from the start."""
    mesh = jax.make_mesh((1,), ("devices",), (jax.sharding.AxisType.Auto,))
    optimizer = case.make()

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("devices"), out_specs=P("devices")
    )
    def steps(params, grads):
        def body(carry, _):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(body, start, None, length=2)[0][0]

    params, gradients = problem()
    jax.eval_shape(steps, params, gradients[0])


@pytest.mark.parametrize(
    "case", [case for case in cases.DISTINCT if case.schedules], ids=cases.case_id
)
def test_schedules(case):
    """A constant schedule is the number; any schedule is what injection makes of it."""
    numbers = {name: case.kwargs.get(name, 0.1) for name in case.schedules}
    if "threshold" in case.kwargs:
        numbers |= {"threshold": 1e9}  # on to SGD after the second step
    if case.name.endswith("sgdp") or case.name.endswith("adamp"):
        numbers |= {"weight_decay": 0.1}
    params, gradients = problem()
    gradients = [*gradients, *gradients]
    expected, _ = run(case.make(**numbers), params, gradients)
    constant = {name: optax.constant_schedule(numbers[name]) for name in case.schedules}
    updates, _ = run(case.make(**{**numbers, **constant}), params, gradients)
    close(updates, expected, rtol=1e-6)

    for name in case.schedules:
        falling = optax.exponential_decay(numbers[name], 1, decay_rate=0.25)
        updates, _ = run(case.make(**{**numbers, name: falling}), params, gradients)
        with pytest.raises(AssertionError):
            close(updates[-1], expected[-1], rtol=1e-3)
        if case.name.endswith("adabound") and name == "learning_rate":
            continue  # its own schedule scales the final learning rate too
        injected, _ = run(case.inject(**{**numbers, name: falling}), params, gradients)
        close(updates, injected)


# ---------------------------------------------------------------- Optax's wrappers


@each_case
def test_in_a_chain(case):
    optimizer = optax.chain(optax.scale(2.0), case.make(), optax.scale(0.5))
    params, gradients = problem()
    updates, state = run(optimizer, params, gradients[:1])
    doubled = jax.tree.map(lambda g: 2 * g, gradients[0])
    expected, expected_state = run(case.make(), params, [doubled])
    close(updates[0], jax.tree.map(lambda u: u / 2, expected[0]))
    close(state[1], expected_state)


@each_case
def test_in_a_partition_and_masked(case):
    """Others' leaves are none of its business."""
    params, gradients = problem()
    alone = {"conv": params["conv"]}
    expected, _ = run(case.make(), alone, [{"conv": g["conv"]} for g in gradients])
    partition = optax.partition(
        {"this": case.make(), "none": optax.set_to_zero()},
        {"bias": "none", "conv": "this"},
    )
    masked = optax.masked(case.make(), {"bias": False, "conv": True})
    updates, _ = run(partition, params, gradients)
    for got, want in zip(updates, expected, strict=True):
        close(got, {"bias": jnp.zeros(3), **want})
    updates, _ = run(masked, params, gradients)
    for got, want, grads in zip(updates, expected, gradients, strict=True):
        close(got, {"bias": grads["bias"], **want})


@each_case
def test_multi_steps(case):
    """Accumulates over two steps, then acts on the mean."""
    params, gradients = problem()
    optimizer = optax.MultiSteps(case.make(), every_k_schedule=2)
    updates, _ = run(optimizer, params, gradients, jit=jax.jit)
    mean = jax.tree.map(lambda *g: sum(g) / 2, *gradients)
    expected, _ = run(case.make(), params, [mean])
    chex.assert_trees_all_equal(updates[0], jax.tree.map(jnp.zeros_like, params))
    close(updates[1], expected[0])


@each_case
def test_apply_if_finite(case):
    """A step that is not finite leaves no trace."""
    params, gradients = problem()
    broken = [
        {**gradients[0], "bias": gradients[0]["bias"].at[0].set(wrong)}
        for wrong in (jnp.nan, jnp.inf)
    ]
    optimizer = optax.apply_if_finite(case.make(), max_consecutive_errors=3)
    updates, state = run(optimizer, params, [*broken, *gradients], jit=jax.jit)
    expected_updates, expected_state = plain_run(case.id)
    for left_out in updates[:2]:
        chex.assert_trees_all_equal(left_out, jax.tree.map(jnp.zeros_like, params))
    close(updates[2:], expected_updates)
    close(state.inner_state, expected_state)


@each_case
def test_map_params(case):
    """Moments are told from counters."""
    optimizer, (params, _) = case.make(), problem()
    state = optimizer.init(params)
    chex.assert_trees_all_equal(
        optax.tree.map_params(optimizer, lambda leaf: leaf, state), state
    )
    marked = optax.tree.map_params(
        optimizer,
        lambda leaf: jnp.full_like(leaf, 1),
        state,
        transform_non_params=lambda leaf: leaf,
    )
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    for before, after in zip(
        jax.tree.leaves(state), jax.tree.leaves(marked), strict=True
    ):
        if before.shape in shapes:
            assert np.all(after == 1)
    for path, count in optax.tree.get_all_with_path(marked, "count"):
        assert int(count) == 0, path


@each_case
def test_several_problems_at_once(case):
    """Under ``jax.vmap`` each problem is solved as if it were alone."""
    optimizer = case.make()
    problems = [problem(seed) for seed in (0, 10)]
    params, grads = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        for trees in (
            [params for params, _ in problems],
            [gradients[0] for _, gradients in problems],
        )
    )
    state = jax.vmap(optimizer.init)(params)
    update = jax.jit(jax.vmap(optimizer.update))
    updates, _ = update(grads, *_twice(update, grads, state, params))
    for i, (single, gradients) in enumerate(problems):
        expected = _alone(optimizer, single, gradients[0])
        close(jax.tree.map(lambda leaf: leaf[i], updates), expected)  # noqa: B023


def _twice(update, grads, state, params):
    updates, state = update(grads, state, params)
    return state, optax.apply_updates(params, updates)


def _alone(optimizer, params, grads):
    updates, _ = run(optimizer, params, [grads, grads])
    return updates[1]
