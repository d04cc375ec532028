"""Every optimizer of the command on the model of the command."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import spherical_optax as so
from experiments.compiling import compile_ahead
from experiments.errors import UsageError
from experiments.models import label_spheres
from experiments.models.resnet import ResNet
from experiments.optimizers import OPTIMIZERS, make_optimizer, resolve_options
from experiments.steps import init_state

FAST_TO_COMPILE = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def problem():
    """Parameters of a ResNet and a gradient of its loss."""
    graph, _, state = init_state(
        partial(ResNet, widths=(4, 8), blocks=(1, 1), channels=1, num_classes=10),
        lambda _: optax.identity(),
        jax.random.key(0),
    )
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    labels = jnp.arange(16) % 10

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits = nnx.merge(graph, params, state.stats, copy=True)(images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return state.params, loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_finite_and_lower_the_loss(name, problem):
    params, loss = problem
    options = resolve_options(name, {})
    constant = optax.constant_schedule(1.0)
    optimizer = make_optimizer(name, options, constant, label_spheres, params)

    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    before, grads = loss(params)
    state = optimizer.init(params)
    update = compile_ahead(update, grads, state, params, options=FAST_TO_COMPILE)
    for _ in range(3):
        params, state = update(grads, state, params)
        value, grads = loss(params)
    for leaf in jax.tree.leaves((params, state)):
        assert np.all(np.isfinite(leaf))
    assert value < before


@pytest.fixture(scope="module")
def first_step():
    """From an optimizer and its options to its first step on two small leaves."""
    params = {"conv": np.arange(1, 19.0, dtype=np.float32).reshape(3, 3, 1, 2) / 9}
    params["bias"] = np.ones(4, np.float32)
    grads = jax.tree.map(lambda x: 1e-2 * np.cos(3 * x), params)

    def first_step(name, factor=1.0, **given):
        schedule = optax.constant_schedule(factor)
        options = resolve_options(name, given)
        optimizer = make_optimizer(
            name, options, schedule, so.label_conv_filters, params
        )

        def step(params):
            return optimizer.update(grads, optimizer.init(params), params)[0]

        return jax.device_get(compile_ahead(step, params)(params))

    return first_step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_schedule_arrives(name, first_step):
    step, half = first_step(name)["bias"], first_step(name, factor=0.5)["bias"]
    np.testing.assert_allclose(half, step / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [n for n in OPTIMIZERS if "weight_decay" in resolve_options(n, {})]
)
def test_weight_decay_arrives(name, first_step):
    decayed = first_step(name, weight_decay=0.5)
    assert not all(
        np.allclose(decayed[leaf], step, rtol=1e-4)
        for leaf, step in first_step(name, weight_decay=0.0).items()
    )


@pytest.mark.parametrize("b1", [0.9, 0.5])
def test_rotational_turns_as_adamw_of_its_momentum_would(b1, first_step):
    step = first_step("rotational", b1=b1, learning_rate=1e-3, weight_decay=0.1)
    start = np.arange(1, 19.0).reshape(9, 2) / 9
    turned = np.linalg.norm(step["conv"].reshape(9, 2), axis=0)
    expected = so.equilibrium_rotation("adamw", 1e-3, 0.1, b1=b1)
    angles = turned / np.linalg.norm(start, axis=0)
    np.testing.assert_allclose(angles, expected, rtol=1e-3)


def test_option_that_is_not_taken():
    with pytest.raises(UsageError, match="--threshold: adamp does not take it"):
        resolve_options("adamp", {"threshold": 1e-5})


def test_unknown_name():
    with pytest.raises(UsageError, match=r"'adamx'; known: adams, adamsrt, .*muon"):
        resolve_options("adamx", {})
