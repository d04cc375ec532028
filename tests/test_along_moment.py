"""Steps along a moment, in few passes, against the same built of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from platforms import CPU, PLATFORMS, traced_as_on

import spherical_optax as so
from spherical_optax._transport import transport_on_sphere

SHAPES = {"conv": (3, 3, 4, 6), "dense": (5, 7), "zero": (2, 3, 4)}
VECTORS = {"adamsrt": "mu", "adamg": "mu", "sgdmrt": "trace"}
RATE = optax.polynomial_schedule(0.1, 0.01, 1, 10)


@pytest.fixture(params=PLATFORMS)
def platform(request):
    with traced_as_on(request.param):
        yield request.param


def adam(axes, eps, decay, **options):
    return optax.chain(
        *([optax.add_decayed_weights(decay)] if decay is not None else []),
        so.scale_by_standardized_adam(0.8, 0.95, eps, axes, **options),
        optax.scale_by_learning_rate(RATE),
    )


def adamsrt(axes, eps):
    return so.rescale_and_transport(adam(axes, eps, 0.1), axes, eps)


def adamg(axes, eps):
    return optax.chain(
        transport_on_sphere(adam(axes, eps, None, per_weight=False), axes, eps),
        so.retract_to_sphere(axes, 1.0, eps),
    )


def sgdmrt(axes, eps):
    del eps
    sgd = optax.chain(
        optax.add_decayed_weights(0.1), optax.trace(0.8), optax.scale(-0.05)
    )
    return so.rescale_and_transport(sgd, axes, 0.0)


def of_blocks(name, axes, eps):
    return {"adamsrt": adamsrt, "adamg": adamg, "sgdmrt": sgdmrt}[name](axes, eps)


def at_once(name, axes, eps):
    options = {"labels": lambda p: jax.tree.map(lambda _: "on", p)}
    options["channel_axes"] = {"on": axes}
    if name == "sgdmrt":
        return so.sgdmrt(0.05, 0.8, weight_decay=0.1, **options)
    return getattr(so, name)(RATE, 0.8, 0.95, eps, 0.1, **options)


def arrays(seed):
    rng = np.random.default_rng(seed)
    values = {name: jnp.asarray(rng.normal(size=s)) for name, s in SHAPES.items()}
    return {**values, "zero": 0 * values["zero"]}


@pytest.mark.usefixtures("x64", "platform")
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("axes", [(-1,), (), (0, -1)], ids=str)
@pytest.mark.parametrize("name", ["adamsrt", "adamg", "sgdmrt"])
def test_the_same_as_of_blocks(name, axes, eps):
    blocks, fast = of_blocks(name, axes, eps), at_once(name, axes, eps)
    x, y = arrays(0), arrays(0)
    state, other = blocks.init(x), fast.init(y)
    for seed in range(1, 8):
        updates, state = jax.jit(blocks.update)(arrays(seed), state, x)
        x = optax.apply_updates(x, updates)
        updates, other = jax.jit(fast.update)(arrays(seed), other, y)
        y = optax.apply_updates(y, updates)
        for want, have in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-11, atol=1e-13)
        assert optax.tree.get_all_with_path(other, VECTORS[name])
        for field in ("mu", "trace", "nu"):
            for want, have in zip(
                optax.tree.get_all_with_path(state, field),
                optax.tree.get_all_with_path(other, field),
                strict=True,
            ):
                jax.tree.map(
                    lambda have, want: np.testing.assert_allclose(
                        have, want, rtol=1e-10, atol=1e-13
                    ),
                    have[1],
                    want[1],
                )


@pytest.mark.parametrize("name", ["adamsrt", "adamg"])
def test_the_state_is_that_of_the_blocks(name):
    params = arrays(0)
    (inner,) = at_once(name, (-1,), 1e-8).init(params).inner_states.values()
    want = of_blocks(name, (-1,), 1e-8).init(params)
    assert jax.tree.structure(inner.inner_state) == jax.tree.structure(want)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("name", ["adamsrt", "sgdmrt", "adamg"])
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6])
def test_a_step_that_is_longer_than_the_weights_costs_digits(name, size):
    """As many as it is longer: old weights are not read, to need no copy of them."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(9, 16, 8)) * size / 12)
    g = np.float32(rng.normal(size=x.shape))
    with jax.enable_x64(True):
        exact, _ = moment_after_a_step(name, np.float64(x), np.float64(g))
    moment, moved = moment_after_a_step(name, x, g)
    error = np.linalg.norm(moment - exact) / np.linalg.norm(exact)
    longer = np.linalg.norm(moved) / np.linalg.norm(np.float64(x))
    assert error < 2.0**-21 * max(longer, 1.0)


def test_nothing_is_left_of_a_moment_that_has_led_away_from_zero():
    """Not the rounding errors either, which AdamG divides by epsilon."""
    g = np.float32(np.random.default_rng(0).normal(size=(9, 16, 8)))
    moment, _ = moment_after_a_step("adamg", np.zeros_like(g), g)
    assert not np.any(moment)


@pytest.mark.parametrize("rest", [0.1, 1e-2, 1e-3])
def test_a_step_that_nearly_ends_at_zero_costs_digits(platform, rest):
    """On accelerators, which take no sums over weights so short."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(9, 16, 8)))
    g = x * np.float32(1 - rest) + rest * np.float32(rng.normal(size=x.shape))
    optimizer = so.sgdmrt(1.0, 0.0, labels="filter")

    def moment(x, g):
        state = optimizer.init(x)
        _, state = optimizer.update(jnp.asarray(g), state, jnp.asarray(x))
        (found,) = jax.tree.leaves(state)[-1:]
        return np.float64(found)

    with jax.enable_x64(True):
        exact = moment(np.float64(x), np.float64(g))
    error = np.linalg.norm(moment(x, g) - exact) / np.linalg.norm(exact)
    assert error < 2.0**-21 * (1.0 if platform == CPU else rest**-2)


@pytest.mark.parametrize("name", ["adamsrt", "sgdmrt"])
def test_what_an_update_for_an_accelerator_is_lowered_to(name):
    """Other platforms are not given the sums of a CPU, nor both of them."""
    optimizer = getattr(so, name)(1e-2, labels="filter")
    x = jnp.ones((3, 3, 4, 8))
    args = x, optimizer.init(x), x
    step = jax.jit(optimizer.update)
    sums = {
        platform: step.trace(*args)
        .lower(lowering_platforms=(platform,))
        .as_text()
        .count("stablehlo.reduce(")
        for platform in ("cpu", "cuda", "tpu")
    }
    assert sums["cuda"] == sums["tpu"] == sums["cpu"] + 1


def moment_after_a_step(name, x, g):
    """The moment that is stored, and the weights before they return to a sphere."""
    options = {"labels": "filter"}
    optimizer = getattr(so, name)(1e-2, **options)
    step, state = optimizer.update(jnp.asarray(g), optimizer.init(x), jnp.asarray(x))
    (moment,) = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if getattr(path[-1], "name", "") == VECTORS[name] and leaf.ndim == 3
    ]
    if name == "adamg":  # an angle of 0.01 on the unit sphere
        step = 1e-2 * g / np.linalg.norm(g, axis=(0, 1), keepdims=True)
    return np.float64(moment), np.float64(x) + np.float64(step)
