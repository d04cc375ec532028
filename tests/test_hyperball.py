"""Any optimizer on spheres: against NumPy, the norms it keeps, what it does not see.

Covers ``hyperball``, ``adamh``, ``muonh``, ``project_to_norm`` and, with them,
``rotational`` and ``add_corrected_weight_decay``; more of it in ``test_rotational.py``.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_spheres as reference
from labelled_leaves import BASES, LABELLED, by_base, by_type, follows
from optax import contrib
from trajectories import compare, falling, gradients_of, random_tree

import spherical_optax as so

# ---------------------------------------------------------------- the mathematics


@pytest.mark.parametrize("rate", [0.03, falling(0.1)], ids=["number", "schedule"])
@pytest.mark.parametrize("radius", ["initial", "current", 1.5])
@by_base
def test_hyperball(base, radius, rate, x64):
    transformation, direction = BASES[base]
    follows(
        so.hyperball(transformation, rate, **LABELLED, radius=radius),
        lambda x, axes: reference.hyperball(x, axes, direction(), rate, radius),
    )


@by_type
def test_adamh(dtype, x64):
    follows(
        so.adamh(0.02, 0.8, 0.95, 1e-3, **LABELLED),
        lambda x, axes: reference.hyperball(
            x, axes, reference.adam(0.8, 0.95, 1e-3), 0.02
        ),
        dtype,
    )


@pytest.mark.parametrize("nesterov", [True, False])
@by_type
def test_muonh(dtype, nesterov, x64):
    def leaf(x, axes):
        if axes is None:
            direction = reference.adam(0.8, 0.95, 1e-6)
        else:
            direction = reference.muon(axes, 0.9, 1e-6, nesterov)
        return reference.hyperball(x, axes, direction, 0.02)

    optimizer = so.muonh(0.02, 0.9, 0.8, 0.95, 1e-6, nesterov=nesterov, **LABELLED)
    follows(optimizer, leaf, dtype)


def test_muonh_takes_adam_where_there_is_no_matrix(x64):
    start = {"w": np.array([1.0, -2.0, 3.0])}
    coroutine = reference.tree(
        lambda x, axes: reference.hyperball(x, axes, reference.adam(), 0.02),
        start,
        {"w": ()},
    )
    gradient = gradients_of(2, shapes={"w": (3,)})
    compare(so.muonh(0.02, labels={"w": "layer"}), coroutine, gradient)


@pytest.mark.parametrize("radius", ["initial", "current", 1.5])
@pytest.mark.parametrize("every", [1, 4])
def test_project_to_norm(every, radius, x64):
    follows(
        optax.chain(optax.sgd(0.05), so.project_to_norm(every, radius, **LABELLED)),
        lambda x, axes: reference.projected(x, axes, 0.05, every, radius),
    )


def test_corrected_weight_decay(x64):
    rate, decay = falling(0.1), falling(0.5, 0.3)
    follows(
        optax.chain(
            so.add_corrected_weight_decay(decay, rate, 0.1, **LABELLED),
            optax.scale_by_learning_rate(rate),
        ),
        lambda x, axes: reference.corrected_decay(x, axes, rate, decay, 0.1),
    )


SHAPES = [(7,), (5, 3), (1, 4), (4, 1), (2, 3, 5), (3, 3, 2, 4), (2, 1, 3, 2, 2)]


def random_layouts(seed):
    """Leaves of every rank with any of their axes as channel axes, and their table."""
    rng = np.random.default_rng(seed)
    shapes, table = {}, {"euclidean": None}
    for shape in SHAPES:
        count = rng.integers(0, len(shape))  # at least one axis is left for the group
        chosen = rng.permutation(len(shape))[:count]
        signs = rng.integers(0, 2, count) * len(shape)  # from the end, too
        label = f"{'x'.join(map(str, shape))}"
        shapes[label] = shape
        table[label] = tuple(int(axis) for axis in chosen - signs)
    return shapes, table


def adam_or_muon(axes, ndim):
    return reference.muon(axes) if ndim >= 2 else reference.adam()


ANYWHERE = {
    "hyperball": (
        lambda radius, kw: so.hyperball(optax.trace(0.9), 0.05, radius=radius, **kw),
        lambda x, axes, r: reference.hyperball(x, axes, reference.momentum(), 0.05, r),
    ),
    "adamh": (
        lambda radius, kw: so.adamh(0.05, radius=radius, **kw),
        lambda x, axes, r: reference.hyperball(x, axes, reference.adam(), 0.05, r),
    ),
    "muonh": (
        lambda radius, kw: so.muonh(0.05, radius=radius, **kw),
        lambda x, axes, r: reference.hyperball(
            x, axes, adam_or_muon(axes, x.ndim), 0.05, r
        ),
    ),
    "rotational": (
        lambda _, kw: so.rotational(optax.scale_by_adam(), 0.05, 0.1, **kw),
        lambda x, axes, _: reference.rotational(x, axes, reference.adam(), 0.05, 0.1),
    ),
    "project_to_norm": (
        lambda radius, kw: optax.chain(
            optax.sgd(0.05), so.project_to_norm(2, radius, **kw)
        ),
        lambda x, axes, r: reference.projected(x, axes, 0.05, 2, r),
    ),
}


@pytest.mark.parametrize(
    ("name", "radius"),
    [
        ("hyperball", "initial"),
        ("hyperball", "current"),
        ("adamh", 0.7),
        ("muonh", "initial"),
        ("rotational", "initial"),
        ("project_to_norm", "current"),
        ("project_to_norm", 0.7),
    ],
)
def test_any_shape_and_any_axes(name, radius, x64):
    make, leaf = ANYWHERE[name]
    seed = len(name) + len(str(radius))
    shapes, table = random_layouts(seed)
    optimizer = make(radius, {"labels": {k: k for k in shapes}, "channel_axes": table})
    coroutine = reference.tree(
        lambda x, axes: leaf(x, axes, radius), random_tree(seed, shapes), table
    )
    compiled = optax.GradientTransformation(optimizer.init, jax.jit(optimizer.update))
    compare(compiled, coroutine, gradients_of(seed, shapes=shapes))


# ---------------------------------------------------------------- norms

STEPS = 10_000
ON_SPHERES = {
    "hyperball": lambda: so.hyperball(optax.scale_by_adam(), 0.01),
    "adamh": lambda: so.adamh(0.01),
    "muonh": lambda: so.muonh(0.01),
    "rotational": lambda: so.rotational(optax.scale_by_adam(), 0.01, 0.1),
    "project_to_norm": lambda: optax.chain(optax.adam(0.01), so.project_to_norm()),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2.0**-8)]
)
@pytest.mark.parametrize("name", ON_SPHERES)
def test_the_norm_is_kept_over_many_steps(name, dtype, tolerance):
    """To the precision of the weights' type, whatever the gradients are."""
    optimizer = ON_SPHERES[name]()
    rng = np.random.default_rng(0)
    start = {"conv": cases.random_leaf(rng, (3, 3, 2, 4), dtype)}

    def norms(params):
        return so.geometry.norm(params["conv"], (-1,))

    def step(carry, key):
        params, state = carry
        noise = jax.random.normal(key, (3, 3, 2, 4)).astype(dtype)
        updates, state = optimizer.update({"conv": noise}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.max(jnp.abs(norms(params) / norms(start) - 1))

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(0), STEPS)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)

    (params, _), drift = run(start)
    assert not np.allclose(params["conv"], start["conv"], atol=0.1)
    assert float(jnp.max(drift)) <= tolerance


# ---------------------------------------------------------------- what is not seen


def goal_loss(params):
    """Depends on the direction of each filter alone."""
    goal = random_tree(5, {"conv": (3, 3, 2, 4)})["conv"]
    x = params["conv"]
    cosine = so.geometry.dot(x, goal, (-1,)) / so.geometry.norm(x, (-1,))
    return -jnp.sum(cosine)


def path_on_the_sphere(optimizer, scale, steps=30):
    """Directions after each step, from weights multiplied by ``scale``."""
    params = {"conv": scale * random_tree(6, {"conv": (3, 3, 2, 4)})["conv"]}
    state, path = optimizer.init(params), []
    step = jax.jit(cases.make_step(optimizer))
    gradient = jax.jit(jax.grad(goal_loss))
    for _ in range(steps):
        params, state = step(params, state, gradient(params))
        path.append(params["conv"] / so.geometry.norm(params["conv"], (-1,)))
    return np.stack(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: so.adamh(0.05, eps=0.0),
        lambda: so.muonh(0.05, eps=0.0),
        lambda: so.hyperball(optax.trace(0.9), 0.05, radius="current"),
        lambda: so.rotational(optax.scale_by_adam(eps=0.0), 0.1, 0.5, eps=0.0),
    ],
    ids=["adamh", "muonh", "current", "rotational"],
)
@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_the_path_does_not_depend_on_the_initial_radius(make, scale, x64):
    expected = path_on_the_sphere(make(), 1.0)
    assert np.max(np.abs(expected[-1] - expected[0])) > 0.1
    np.testing.assert_allclose(path_on_the_sphere(make(), scale), expected, atol=1e-9)


def test_each_step_turns_by_the_learning_rate(x64):
    """Where the direction is tangent, the tangent of the angle is the rate."""
    optimizer = so.hyperball(optax.identity(), 0.1)
    path = path_on_the_sphere(optimizer, 3.0, steps=2)
    cosines = np.sum(path[0] * path[1], axis=(0, 1, 2))
    np.testing.assert_allclose(np.arccos(cosines), np.arctan(0.1), rtol=1e-6)


# ---------------------------------------------------------------- Optax's wrappers


def norm_off(params, start):
    norms, expected = (so.geometry.norm(p["conv"], (-1,)) for p in (params, start))
    return float(jnp.max(jnp.abs(norms / expected - 1)))


def start_of(seed):
    return {"conv": random_tree(seed, {"conv": (3, 3, 2, 4)}, np.float32)["conv"]}


def test_over_the_whole_of_muon():
    """A complete optimizer, its sign turned, gives the same direction as its block."""
    spec = contrib.MuonDimensionNumbers((0, 1, 2), 3)
    whole = optax.chain(
        contrib.muon(1.0, muon_weight_dimension_numbers={"conv": spec}),
        optax.scale(-1.0),
    )
    params, grads = start_of(1), start_of(2)
    for make in (functools.partial(so.hyperball, whole), so.muonh):
        optimizer = make(0.1, labels="layer")
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        if make is not so.muonh:
            expected = updates["conv"]
    np.testing.assert_allclose(updates["conv"], expected, atol=1e-5)


def test_muon_put_back_on_its_sphere():
    spec = contrib.MuonDimensionNumbers((0, 1, 2), 3)
    optimizer = optax.chain(
        contrib.muon(0.05, muon_weight_dimension_numbers={"conv": spec}),
        so.project_to_norm(),
    )
    params = start = start_of(3)
    state, before = optimizer.init(params), goal_loss(params)
    step = jax.jit(cases.make_step(optimizer))
    for _ in range(30):
        params, state = step(params, state, jax.grad(goal_loss)(params))
    assert norm_off(params, start) < 1e-6
    assert float(goal_loss(params)) < float(before) - 3


def test_inside_schedule_free():
    """It learns, but adds updates to another point than they are made for."""
    params = start = start_of(3)
    optimizer = contrib.schedule_free(so.adamh(0.05, b1=0.0), 0.05, b1=0.9)
    state = optimizer.init(params)
    step = jax.jit(cases.make_step(optimizer))
    before = goal_loss(params)
    for _ in range(100):
        params, state = step(params, state, jax.grad(goal_loss)(params))
    assert norm_off(params, start) > 1e-3
    evaluated = contrib.schedule_free_eval_params(state, params)
    assert float(goal_loss(evaluated)) < float(before) - 3


@pytest.mark.parametrize("opaque", [True, False])
def test_inside_sam(opaque):
    """Its outer steps end on the sphere, wherever the adversarial ones went."""
    params = start = start_of(4)
    adversary = optax.chain(contrib.normalize(), optax.sgd(0.05))
    optimizer = contrib.sam(so.adamh(0.05), adversary, 2, opaque_mode=opaque)
    state = optimizer.init(params)
    before = goal_loss(params)
    gradient = jax.jit(jax.grad(goal_loss))
    extra = {"grad_fn": lambda params, _: gradient(params)} if opaque else {}
    offs = []
    for _ in range(40):
        updates, state = optimizer.update(gradient(params), state, params, **extra)
        params = optax.apply_updates(params, updates)
        offs.append(norm_off(params, start))
    assert max(offs if opaque else offs[1::2]) < 1e-5
    assert opaque or min(offs[::2]) > 1e-5
    assert float(goal_loss(params)) < float(before) - 3
