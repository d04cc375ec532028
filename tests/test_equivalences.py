"""What is the same on spheres: under rotations, under scales, and in the long run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from trajectories import follow_slowly, random_tree

import spherical_optax as so
from spherical_optax import geometry

# ---------------------------------------------------------------- rotations

FAMILY = {
    "adams": functools.partial(so.adams, 0.05, eps=1e-3),
    "adamsrt": functools.partial(so.adamsrt, 0.05, eps=1e-3),
    "adamg": functools.partial(so.adamg, 0.05, eps=1e-3),
    "sgdmrt": functools.partial(so.sgdmrt, 0.05, momentum=0.9),
}


@settings(max_examples=8)
@given(
    size=st.integers(2, 7),
    groups=st.integers(1, 3),
    label=st.sampled_from(["filter", "layer"]),
    weight_decay=st.floats(0.0, 0.5),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("name", FAMILY)
def test_commutes_with_orthogonal_maps(name, size, groups, label, weight_decay, seed):
    """Turn or reflect weights and gradients of a group, and the path is turned so.

    Adam's does not: it depends on the axes.
    """
    shape = {"w": (size, groups)}
    rng = np.random.default_rng(seed)
    count = size if label == "filter" else size * groups
    rotation, _ = np.linalg.qr(rng.normal(size=(count, count)))

    def turned(tree):
        rows = tree["w"].reshape(*tree["w"].shape[:-2], count, -1)
        return {"w": (rotation @ rows).reshape(tree["w"].shape)}

    start = random_tree((seed, 0), shape)
    gradients = [random_tree((seed, step), shape) for step in range(1, 6)]

    def path(optimizer, change=lambda tree: tree):
        return follow_slowly(optimizer, change(start), [change(g) for g in gradients])

    with jax.enable_x64(True):
        optimizer = FAMILY[name](weight_decay=weight_decay, labels=label)
        straight, _ = path(optimizer)
        other, _ = path(optimizer, turned)
    np.testing.assert_allclose(other["w"], turned(straight)["w"], rtol=1e-9, atol=1e-9)


def test_adam_does_not_commute_with_them(x64):
    start, grads = (random_tree(seed, {"w": (6, 2)}) for seed in (1, 2))
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    straight, _ = follow_slowly(optax.adam(0.05), start, [grads])
    other, _ = follow_slowly(
        optax.adam(0.05), {"w": rotation @ start["w"]}, [{"w": rotation @ grads["w"]}]
    )
    assert np.max(np.abs(other["w"] - rotation @ straight["w"])) > 1e-2


# ---------------------------------------------------------------- scales

SHAPE = (9, 4)


def invariant_loss(x):
    """Sees the direction of each column alone, and is not convex there."""
    unit = x / geometry.norm(x, (-1,))
    goals = jnp.asarray(random_tree(5, {"a": (2, *SHAPE)})["a"], x.dtype)
    return jnp.sum(
        (unit * goals[0]).sum(0) ** 2 + jnp.sin(3 * (unit * goals[1]).sum(0))
    )


def directions(optimizer, start, steps=20):
    """Unit weights after each step on ``invariant_loss``, and the last state."""
    gradient = jax.jit(jax.grad(invariant_loss))
    update = jax.jit(optimizer.update)
    x, state, path = start, optimizer.init(start), []
    for _ in range(steps):
        updates, state = update(gradient(x), state, x)
        x = optax.apply_updates(x, updates)
        path.append(np.asarray(x / geometry.norm(x, (-1,))))
    return np.stack(path), state


def l2(weight_decay, optimizer):
    return optax.chain(optax.add_decayed_weights(weight_decay), optimizer)


def adamsrt_of_two_eps(c):
    """AdamSRT with an eps for each place: 1 / c in the root, c^2 in the norm."""
    return so.rescale_and_transport(
        optax.chain(
            optax.add_decayed_weights(0.1 / c**2),
            so.scale_by_standardized_adam(0.9, 0.99, 0.1 / c, (-1,)),
            optax.scale_by_learning_rate(0.02 * c),
        ),
        (-1,),
        eps=0.1 * c**2,
    )


# Weights times c, and gradients by c: what keeps the path. In each, the part of the
# gradient and the part of weight decay have to change alike.
SCALED = {
    # lr c^2, wd / c^2
    "sgd": lambda c: l2(0.1 / c**2, optax.sgd(0.02 * c**2)),
    "momentum": lambda c: l2(0.1 / c**2, optax.sgd(0.02 * c**2, momentum=0.9)),
    "sgdmrt": lambda c: so.sgdmrt(0.02 * c**2, 0.9, 0, 0.1 / c**2, labels="filter"),
    # lr c, wd / c^2, eps / c
    "adam": lambda c: l2(0.1 / c**2, optax.adam(0.02 * c, eps=0.1 / c)),
    "adams": lambda c: so.adams(
        0.02 * c, eps=0.1 / c, weight_decay=0.1 / c**2, labels="filter"
    ),
    # lr c, wd / c^2; eps has two units: none, or one for each place
    "adamsrt": lambda c: so.adamsrt(
        0.02 * c, eps=0.0, weight_decay=0.1 / c**2, labels="filter"
    ),
    "adamsrt, two eps": adamsrt_of_two_eps,
    # lr c, wd / c, eps / c: weight decay is not divided by the root
    "adamw": lambda c: optax.adamw(0.02 * c, eps=0.1 / c, weight_decay=0.5 / c),
}


@pytest.mark.parametrize("c", [0.1, 30.0])
@pytest.mark.parametrize("name", SCALED)
def test_the_path_from_scaled_weights(name, c, x64):
    """The same, step by step, with learning rate, decay and eps transformed.

    A scale-invariant loss has gradients that are c times smaller where weights are c
    times larger. So SGD's step has to be multiplied by c^2, Adam's by c; coupled L2,
    which is added to the gradient, by 1 / c^2; and eps, which is added to a gradient's
    size, by 1 / c.
    """
    start = random_tree(6, {"w": SHAPE})["w"]
    expected, _ = directions(SCALED[name](1.0), start)
    assert np.max(np.abs(expected[-1] - expected[0])) > 0.02
    path, _ = directions(SCALED[name](c), c * start)
    np.testing.assert_allclose(path, expected, atol=1e-10)
    untransformed, _ = directions(SCALED[name](1.0), c * start)
    assert np.max(np.abs(untransformed - expected)) > 1e-2


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_sgd_on_the_sphere_with_the_monitored_rate(weight_decay, x64):
    """With learning rate lr / |x|^2, to which weight decay adds by shrinking |x|."""
    lr, x = 0.3, jnp.asarray(random_tree(6, {"w": SHAPE})["w"])
    optimizer = so.monitor_sphere(l2(weight_decay, optax.sgd(lr)), labels="filter")
    gradient = jax.jit(jax.grad(invariant_loss))
    state = optimizer.init(x)
    for _ in range(20):
        norm = geometry.norm(x, (-1,))
        updates, state = optimizer.update(gradient(x), state, x)
        (found,) = so.sphere_statistics(state).values()
        rate = found.effective_learning_rate
        np.testing.assert_allclose(rate, lr / norm**2, rtol=1e-10)
        unit = x / norm
        turned = unit - rate / (1 - lr * weight_decay) * gradient(unit)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(
            x / geometry.norm(x, (-1,)),
            turned / geometry.norm(turned, (-1,)),
            rtol=1e-9,
        )


# ---------------------------------------------------------------- equilibrium

WIDTH, INPUTS, BATCH = 24, 32, 16


def noisy_loss(kernel, key):
    """A batch-normalized layer on a batch whose labels are noise."""
    keys = jax.random.split(key, 2)
    y = jax.random.normal(keys[0], (BATCH, INPUTS)) @ kernel
    y = (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-8)
    return jnp.mean(jnp.sum(jax.nn.relu(y) * jax.random.normal(keys[1], y.shape), 1))


def long_run(optimizer, steps, scale=1.0):
    """Statistics and gradients on the unit sphere over the second half of a run."""
    monitored = so.monitor_sphere(optimizer, labels="filter")

    def step(carry, key):
        x, state = carry
        grads = jax.grad(noisy_loss)(x, key)
        updates, state = monitored.update(grads, state, x)
        (found,) = so.sphere_statistics(state).values()
        slope = geometry.norm(grads, (-1,)) * found.norm_before
        return (optax.apply_updates(x, updates), state), (found, slope)

    @jax.jit
    def run(x):
        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (x, monitored.init(x)), keys)[1]

    start = scale * jax.random.normal(jax.random.key(0), (INPUTS, WIDTH))
    return jax.tree.map(lambda leaf: leaf[steps // 2 :], run(start))


def rms(x):
    return float(jnp.sqrt(jnp.mean(x**2)))


EQUILIBRIA = {
    "sgd": ({"learning_rate": 0.2, "weight_decay": 0.02}, optax.sgd(0.2)),
    "sgd with momentum": (
        {"learning_rate": 0.02, "weight_decay": 0.02, "momentum": 0.9},
        optax.sgd(0.02, momentum=0.9),
    ),
    "sgdmrt": (
        {"learning_rate": 0.02, "weight_decay": 0.02, "momentum": 0.9},
        so.sgdmrt(0.02, 0.9, labels="filter"),
    ),
    "adam": (
        {"learning_rate": 0.01, "weight_decay": 0.1},
        optax.adam(0.01, b2=0.99),
    ),
    "adams": (
        {"learning_rate": 0.01, "weight_decay": 0.1},
        so.adams(0.01, b2=0.99, labels="filter"),
    ),
    "adamsrt": (
        {"learning_rate": 0.01, "weight_decay": 0.1},
        so.adamsrt(0.01, b2=0.99, labels="filter"),
    ),
    "adamw": (
        {"learning_rate": 3e-3, "weight_decay": 0.3},
        optax.adamw(3e-3, b2=0.99, weight_decay=0.3),
    ),
}


# Where weights begin, so that they settle within the first half of the run.
START = {"sgdmrt": 0.2, "adam": 0.2, "adams": 0.2, "adamsrt": 0.2}


@pytest.mark.parametrize("name", EQUILIBRIA)
def test_equilibrium(name):
    """The angle that is predicted is the one that is measured, to a tenth."""
    hyperparameters, optimizer = EQUILIBRIA[name]
    if name != "adamw":
        optimizer = l2(hyperparameters["weight_decay"], optimizer)
    found, slope = long_run(optimizer, 6000, START.get(name, 1.0))
    extra = {}
    if name in ("adam", "adams", "adamsrt"):
        extra = {"group_size": INPUTS, "gradient_norm": rms(slope)}
    predicted = so.equilibrium_rotation(name.split()[0], **hyperparameters, **extra)
    np.testing.assert_allclose(rms(found.angle), predicted, rtol=0.1)


@pytest.mark.parametrize(
    ("optimizer", "predicted"),
    [
        (
            l2(0.01, optax.sgd(0.05, momentum=0.9)),
            so.equilibrium_rotation("sgd", 0.05, 0.01, momentum=0.9),
        ),
        (
            optax.adamw(0.01, weight_decay=0.1),
            so.equilibrium_rotation("adamw", 0.01, 0.1),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_equilibrium_of_a_network_that_learns(optimizer, predicted):
    """Handwritten digits: the angles of both layers, over the last third of a run."""
    digits = load_digits()
    images, classes = jnp.float32(digits.data / 16 - 0.3), jnp.asarray(digits.target)
    labels = {"first": "filter", "second": "filter", "head": "euclidean"}
    monitored = so.monitor_sphere(optimizer, labels=labels)

    def loss_fn(params, batch):
        x = images[batch]
        for name in ("first", "second"):
            x = x @ params[name]
            x = jax.nn.relu((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-8))
        losses = optax.softmax_cross_entropy_with_integer_labels(
            x @ params["head"], classes[batch]
        )
        return jnp.mean(losses)

    def step(carry, key):
        params, state = carry
        batch = jax.random.choice(key, len(images), (32,))
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = monitored.update(grads, state, params)
        angles = {path: x.angle for path, x in so.sphere_statistics(state).items()}
        return (optax.apply_updates(params, updates), state), (loss, angles)

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(1), 3000)
        return jax.lax.scan(step, (params, monitored.init(params)), keys)[1]

    shapes = {"first": (64, 32), "second": (32, 32), "head": (32, 10)}
    losses, angles = run(
        {
            name: jnp.float32(leaf / np.sqrt(len(leaf)))
            for name, leaf in random_tree(0, shapes).items()
        }
    )
    assert np.mean(losses[:10]) > 5 * np.mean(losses[-100:])
    for path in ("first", "second"):
        np.testing.assert_allclose(rms(angles[path][2000:]), predicted, rtol=0.1)


def test_rotational_turns_so_from_the_first_step():
    """By the angle at which AdamW would settle."""
    optimizer = so.rotational(optax.scale_by_adam(b2=0.99), 3e-3, 0.3, labels="filter")
    found, _ = long_run(optimizer, 200)
    predicted = so.equilibrium_rotation("adamw", 3e-3, 0.3)
    np.testing.assert_allclose(rms(found.angle), predicted, rtol=0.1)


def test_corrected_decay_keeps_the_norm_while_the_learning_rate_falls():
    """With plain weight decay it falls with it."""
    rate = optax.linear_schedule(0.2, 0.02, 6000)
    norms = {}
    for name, decay in {
        "plain": optax.add_decayed_weights(0.02),
        "corrected": so.add_corrected_weight_decay(0.02, rate, 0.2, labels="filter"),
    }.items():
        found, _ = long_run(optax.chain(decay, optax.sgd(rate)), 6000)
        ends = [found.norm_before[0], found.norm_before[-1]]
        norms[name] = rms(ends[1]) / rms(ends[0])
    assert norms["plain"] < 0.85
    assert norms["corrected"] > 0.95


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optimizer": "lion"}, "^optimizer must be one of"),
        ({"optimizer": "adam"}, "^group_size and gradient_norm must be given"),
        ({"learning_rate": -1.0}, "^learning_rate must be"),
        ({"weight_decay": np.nan}, "^weight_decay must be"),
        ({"momentum": 1.0}, "^momentum must be"),
        (
            {"optimizer": "adam", "group_size": 0, "gradient_norm": 1.0},
            "^group_size must be",
        ),
        ({"learning_rate": np.array([0.1, -0.1])}, "^learning_rate must be"),
        ({"learning_rate": optax.constant_schedule(0.1)}, "^learning_rate must be"),
    ],
)
def test_predictions_that_cannot_be_made(changes, match):
    arguments = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.1}
    with pytest.raises(ValueError, match=match):
        so.equilibrium_rotation(**{**arguments, **changes})


@pytest.mark.parametrize("make", [np.array, jnp.array])
def test_predictions_of_arrays(make):
    """One for each group: their gradients differ."""
    known = {"weight_decay": 1e-2, "group_size": 18}
    each = [
        so.equilibrium_rotation("adam", rate, gradient_norm=norm, **known)
        for rate, norm in ((0.1, 1.0), (0.2, 3.0))
    ]
    rates, norms = make([0.1, 0.2]), make([1.0, 3.0])
    found = so.equilibrium_rotation("adam", rates, gradient_norm=norms, **known)
    np.testing.assert_allclose(found, each, rtol=1e-6)


@pytest.mark.parametrize("gamma", [1e-5, 1e-7, 1e-9])
def test_the_lower_bound_of_adabound_does_not_cancel(gamma):
    x = jnp.ones(3)
    optimizer = so.adabound(1e-12, final_learning_rate=1.0, gamma=gamma)
    step, _ = optimizer.update(x, optimizer.init(x), x)
    np.testing.assert_allclose(step, -0.1 * gamma / (1 + gamma), rtol=1e-5)
