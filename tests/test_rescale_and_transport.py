"""Moments of Optax's own optimizers carried over spheres, against plain loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from trajectories import assert_same_trajectory, follow_slowly, stack

import spherical_optax as so

STEPS = 12
SHAPES = {"conv": (3, 2, 2, 4), "dense": (4, 3)}
EPS = 1e-3
pytestmark = pytest.mark.usefixtures("x64")
axes_of = pytest.mark.parametrize("axes", [(-1,), (), (0, -1)], ids=str)


def carried(x1, x2, axes, vectors=(), seconds=(), eps=EPS):
    """What becomes of vectors and of second moments on the way from x1 to x2."""
    scale = reference.dot(x2, x2, axes) + eps
    xy = reference.dot(x1, x2, axes)
    shrink = reference.dot(x1, x1, axes) / scale
    return [(xy * m - reference.dot(m, x2, axes) * x1) / scale for m in vectors], [
        v * shrink for v in seconds
    ]


def adam(axes, lr=0.03, b1=0.9, b2=0.99, eps=1e-2):
    """Each weight has its own second moment, rescaled with its group."""

    def leaf(x):
        m = v = np.zeros_like(x)
        t = 0
        while True:
            g = yield x
            t += 1
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            x1, x = x, x - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
            (m,), (v,) = carried(x1, x, axes, [m], [v])

    return leaf, optax.adam(lr, b1, b2, eps)


def adabelief(axes, lr=0.03, b1=0.9, b2=0.99, eps=1e-2, eps_root=1e-4):
    def leaf(x):
        m = s = np.zeros_like(x)
        t = 0
        while True:
            g = yield x
            t += 1
            m = b1 * m + (1 - b1) * g
            s = b2 * s + (1 - b2) * (g - m) ** 2 + eps_root
            x1, x = x, x - lr * (m / (1 - b1**t)) / (np.sqrt(s / (1 - b2**t)) + eps)
            (m,), (s,) = carried(x1, x, axes, [m], [s])

    return leaf, optax.adabelief(lr, b1, b2, eps, eps_root)


def momentum(axes, lr=0.03, decay=0.8):
    def leaf(x):
        m = np.zeros_like(x)
        while True:
            g = yield x
            m = decay * m + g
            x1, x = x, x - lr * m
            (m,), _ = carried(x1, x, axes, [m])

    return leaf, optax.sgd(lr, momentum=decay)


def nesterov(axes, lr=0.03, decay=0.8):
    def leaf(x):
        m = np.zeros_like(x)
        while True:
            g = yield x
            m = decay * m + g
            x1, x = x, x - lr * (g + decay * m)
            (m,), _ = carried(x1, x, axes, [m])

    return leaf, optax.sgd(lr, momentum=decay, nesterov=True)


def clipped_adam(axes):
    """A chain: the moments stand deeper in the state."""
    leaf, optimizer = adam(axes)

    def clipped(x):
        inner = leaf(x)
        x = next(inner)
        while True:
            g = yield x
            x = inner.send(np.clip(g, -0.5, 0.5))

    return clipped, optax.chain(optax.clip(0.5), optimizer)


def injected_adam(axes):
    leaf, _ = adam(axes)
    factory = optax.inject_hyperparams(optax.adam)
    return leaf, factory(0.03, b1=0.9, b2=0.99, eps=1e-2)


def scheduled_adamw(axes, lr=0.03, b1=0.9, b2=0.99, eps=1e-2, decay=0.1):
    """The step that counts is the whole one, decay and schedule included."""

    def leaf(x):
        m = v = np.zeros_like(x)
        t = 0
        while True:
            g = yield x
            t += 1
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            p = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * x
            x1, x = x, x - lr / t * p
            (m,), (v,) = carried(x1, x, axes, [m], [v])

    def schedule(count):
        return lr / (jnp.asarray(count, float) + 1)

    return leaf, optax.adamw(schedule, b1, b2, eps, weight_decay=decay)


def amsgrad(axes, lr=0.03, b1=0.9, b2=0.6, eps=1e-2):
    """Both second moments are rescaled."""

    def leaf(x):
        m = v = v_max = np.zeros_like(x)
        t = 0
        while True:
            g = yield x
            t += 1
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            v_max = np.maximum(v_max, v / (1 - b2**t))
            x1, x = x, x - lr * (m / (1 - b1**t)) / (np.sqrt(v_max) + eps)
            (m,), (v, v_max) = carried(x1, x, axes, [m], [v, v_max])

    return leaf, optax.amsgrad(lr, b1, b2, eps)


INNER = {
    "adam": adam,
    "adabelief": adabelief,
    "momentum": momentum,
    "nesterov": nesterov,
    "chain": clipped_adam,
    "inject_hyperparams": injected_adam,
    "adamw-schedule": scheduled_adamw,
    "amsgrad": amsgrad,
}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def gradient(step, x):
    del x
    drift, noise = random_tree(100), random_tree(step)
    return {name: drift[name] + noise[name] for name in SHAPES}


@axes_of
@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_against_a_plain_loop(make, axes):
    leaf, inner = make(axes)
    coroutine = reference.leafwise(leaf, random_tree(1))
    gradients, expected = reference.walk(coroutine, next(coroutine), gradient, STEPS)
    optimizer = so.rescale_and_transport(inner, axes, eps=EPS)
    actual, _ = follow_slowly(optimizer, random_tree(1), gradients)
    assert_same_trajectory(actual, stack(expected))
    # Which is not what the inner optimizer does alone.
    alone, _ = follow_slowly(inner, random_tree(1), gradients)
    assert not np.allclose(alone["conv"][-1], actual["conv"][-1], rtol=1e-4)


@axes_of
def test_sgd_without_momentum_has_nothing_to_carry(axes):
    gradients = [gradient(step, None) for step in range(3)]
    wrapped = so.rescale_and_transport(optax.sgd(0.1), axes)
    expected, _ = follow_slowly(optax.sgd(0.1), random_tree(1), gradients)
    actual, _ = follow_slowly(wrapped, random_tree(1), gradients)
    assert_same_trajectory(actual, expected)


@axes_of
def test_the_first_step_is_the_inner_one(axes):
    params, grads = random_tree(1), random_tree(2)
    for make in INNER.values():
        _, inner = make(axes)
        wrapped = so.rescale_and_transport(inner, axes)
        updates, _ = wrapped.update(grads, wrapped.init(params), params)
        expected, _ = inner.update(grads, inner.init(params), params)
        for name in SHAPES:
            np.testing.assert_allclose(updates[name], expected[name], rtol=1e-12)


@axes_of
def test_moments_are_orthogonal_to_the_new_weights(axes):
    params, grads = random_tree(1), random_tree(2)
    optimizer = so.rescale_and_transport(optax.adam(0.1), axes, eps=0.0)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    (mu,) = [tree for _, tree in optax.tree.get_all_with_path(state, "mu")]
    for name in SHAPES:
        product = reference.dot(np.asarray(mu[name]), np.asarray(moved[name]), axes)
        np.testing.assert_allclose(product, 0, atol=1e-12)


def test_other_state_is_left_alone():
    """Counters, hyperparameters and what other blocks keep."""
    params = {"mu": random_tree(1), "nu": random_tree(2)}  # names like the moments'
    grads = jax.tree.map(np.cos, params)
    inner = optax.inject_hyperparams(
        lambda learning_rate: optax.chain(
            optax.ema(0.5), optax.scale_by_adam(), optax.scale(-learning_rate)
        )
    )(learning_rate=0.1)
    optimizer = so.rescale_and_transport(inner, (-1,))
    _, state = optimizer.update(grads, optimizer.init(params), params)
    _, expected = inner.update(grads, inner.init(params), params)
    (found,) = [s for s in (state.inner_state,) if hasattr(s, "hyperparams")]
    assert found.hyperparams == expected.hyperparams
    assert int(found.count) == 1
    ema, _, _ = found.inner_state
    expected_ema, expected_adam, _ = expected.inner_state
    jax.tree.map(np.testing.assert_array_equal, ema, expected_ema)
    adam = found.inner_state[1]
    assert int(adam.count) == 1
    for name in ("mu", "nu"):  # parameters of that name, and moments of that name
        for moment in ("mu", "nu"):
            carried_leaf = np.asarray(getattr(adam, moment)[name]["conv"])
            inner_leaf = np.asarray(getattr(expected_adam, moment)[name]["conv"])
            assert not np.allclose(carried_leaf, inner_leaf, rtol=1e-6)


def test_moments_in_parts_of_a_tree():
    """Under a partition every optimizer has holes in its state."""
    labels = {"conv": "adam", "dense": "momentum"}
    adam_alone, momentum_alone = optax.adam(0.1), optax.sgd(0.1, momentum=0.9)
    both = optax.partition({"adam": adam_alone, "momentum": momentum_alone}, labels)
    gradients = [random_tree(step) for step in range(3)]
    together, _ = follow_slowly(
        so.rescale_and_transport(both, (-1,)), random_tree(9), gradients
    )
    for name, inner in (("conv", adam_alone), ("dense", momentum_alone)):
        alone, _ = follow_slowly(
            so.rescale_and_transport(inner, (-1,)),
            {name: random_tree(9)[name]},
            [{name: grads[name]} for grads in gradients],
        )
        assert_same_trajectory({name: together[name]}, alone)


def test_a_bare_array():
    """A tree that is one leaf."""
    x, g = random_tree(1)["dense"], random_tree(2)["dense"]
    optimizer = so.rescale_and_transport(optax.adam(0.1), (-1,))
    tree = {"w": x}
    state, tree_state = optimizer.init(x), optimizer.init(tree)
    for _ in range(3):
        updates, state = optimizer.update(g, state, x)
        tree_updates, tree_state = optimizer.update({"w": g}, tree_state, tree)
        np.testing.assert_allclose(updates, tree_updates["w"], rtol=1e-12)
        x, tree = x + updates, {"w": tree["w"] + tree_updates["w"]}


def test_extra_arguments_reach_the_inner_optimizer():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        del params, extra
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    optimizer = so.rescale_and_transport(inner, ())
    params = random_tree(1)
    optimizer.update(params, optimizer.init(params), params, value=3.0)
    assert seen == [3.0]


def test_adamsrt_is_what_its_parts_make():
    """A reader can build it from the blocks."""
    params = {"conv": random_tree(1)["conv"]}
    gradients = [{"conv": random_tree(step)["conv"]} for step in range(5)]
    own = so.rescale_and_transport(
        optax.chain(
            optax.add_decayed_weights(0.1),
            so.scale_by_standardized_adam(0.9, 0.99, 1e-2, channel_axes=(-1,)),
            optax.scale_by_learning_rate(0.05),
        ),
        (-1,),
        eps=1e-2,
    )
    whole = so.adamsrt(0.05, 0.9, 0.99, 1e-2, 0.1)
    actual, _ = follow_slowly(own, params, gradients)
    expected, _ = follow_slowly(whole, params, gradients)
    assert_same_trajectory(actual, expected, tolerance=1e-12)


@pytest.mark.parametrize(
    "inner",
    [
        optax.rmsprop(0.1, centered=True),
        optax.chain(optax.scale_by_stddev(), optax.scale(-0.1)),
    ],
    ids=["rmsprop", "chain"],
)
def test_a_variance_is_no_second_moment(inner):
    """Carried apart, nu and mu would make nu - mu^2 negative, and weights NaN."""
    with pytest.raises(ValueError, match=r"^inner .*centered"):
        so.rescale_and_transport(inner, (-1,)).init(random_tree(1))


def test_moments_of_no_leaf_are_an_error():
    """They would not follow the weights, and nobody would know."""
    params = random_tree(1)
    optimizer = so.rescale_and_transport(optax.flatten(optax.adam(0.1)), (-1,))
    with pytest.raises(ValueError, match=r"^inner .*'mu'.*flatten"):
        optimizer.update(params, optimizer.init(params), params)


def test_what_only_has_the_name_of_a_moment_is_left_alone():
    """SM3 keeps what it has seen along each axis of a leaf as "mu"."""
    params, inner = random_tree(1), optax.sm3(0.1)
    optimizer = so.rescale_and_transport(inner, (-1,))
    _, state = optimizer.update(params, optimizer.init(params), params)
    _, expected = inner.update(params, inner.init(params), params)
    chex.assert_trees_all_equal(
        optax.tree.get(state, "mu"), optax.tree.get(expected, "mu")
    )


def test_projected_moments_are_named():
    optimizer = so.rescale_and_transport(optax.contrib.galore(0.01), (-1,))
    params = {"k": jnp.ones((8, 4))}
    with pytest.raises(ValueError, match=r"'mu' of the leaf 'k' has shape \(4, 4\)"):
        optimizer.update(params, optimizer.init(params), params)


def test_means_of_absolute_values_go_as_gradients_do():
    """And not as squares: with the inverse of the norm, not of its square."""
    x, g = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    optimizer = so.rescale_and_transport(
        optax.chain(so.adam_abs(1.0, 0.0, 0.99)), (), 0.0
    )
    step, state = optimizer.update(g, optimizer.init(x), x)
    (nu,) = [nu for _, nu in optax.tree.get_all_with_path(state, "nu")]
    shrink = np.linalg.norm(x) / np.linalg.norm(x + step)
    np.testing.assert_allclose(nu, 0.01 * shrink * np.abs(g), rtol=1e-12)


def test_both_averages_of_ademamix_are_vectors():
    x, g = jnp.array([1.0, 0.0]), jnp.array([0.5, 1.0])
    optimizer = so.rescale_and_transport(optax.contrib.ademamix(0.3), ())
    step, state = optimizer.update(g, optimizer.init(x), x)
    for name in ("m1", "m2"):
        (m,) = [m for _, m in optax.tree.get_all_with_path(state, name)]
        np.testing.assert_allclose(np.dot(m, x + step), 0, atol=1e-7)
        assert np.any(m)
