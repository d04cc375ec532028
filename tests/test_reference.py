"""The library against the NumPy implementations, over options and shapes.

The recordings in ``golden/`` fix the usual settings; here are the others: layer and
custom labels, schedules, Nesterov, dampening, AMSGrad, a large eps, complex leaves.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import TRACES, load
from trajectories import assert_same_trajectory, follow_slowly, stack

import spherical_optax as so

SHAPES = {
    "attention": (6, 4),
    "bias": (5,),
    "conv": (3, 2, 2, 4),
    "conv1d": (3, 2, 5),
    "scale": (),
}
STEPS = 25
LABELS = {
    "attention": "layer",
    "bias": "layer",
    "conv": "filter",
    "conv1d": "depthwise",
    "scale": "euclidean",
}
CHANNEL_AXES = {**so.CHANNEL_AXES, "depthwise": (-2, -1)}
DEFAULT_AXES = {
    name: (-1,) if len(shape) >= 3 else None for name, shape in SHAPES.items()
}


def falling(start, end=0.0):
    """A linear schedule in the precision of the session, whatever the count's."""
    return lambda count: start + (end - start) * jnp.asarray(count, float) / (2 * STEPS)


def wavy(count):
    """A schedule that goes up and down."""
    return 0.5 + 0.4 * jnp.cos(0.3 * jnp.asarray(count, float))


def random_tree(seed, shapes=SHAPES, dtype=np.float64):
    rng = np.random.default_rng(seed)

    def leaf(shape):
        x = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return np.asarray(x, dtype)

    return {name: leaf(shape) for name, shape in shapes.items()}


def gradients_of(seed, tangent=None, shapes=SHAPES, dtype=np.float64):
    """Gradients with a common direction, so that the weights travel.

    Leaves named in ``tangent`` get gradients orthogonal to each of their groups,
    as those of a scale-invariant loss are.
    """
    drift = random_tree((seed, 0), shapes, dtype)

    def gradient(step, x):
        noise = random_tree((seed, 1, step), shapes, dtype)
        grads = {name: drift[name] + noise[name] for name in shapes}
        for name, axes in (tangent or {}).items():
            g, at = grads[name], x[name]
            radial = reference.dot(at, g, axes) / reference.dot(at, at, axes)
            grads[name] = g - radial * at
        return grads

    return gradient


def compare(optimizer, coroutine, gradient):
    start = next(coroutine)
    gradients, trajectory = reference.walk(coroutine, start, gradient, STEPS)
    actual, state = follow_slowly(optimizer, start, gradients)
    assert_same_trajectory(actual, stack(trajectory), tolerance=1e-9)
    return actual, state


def labelled_axes(labels):
    return {name: CHANNEL_AXES[label] for name, label in labels.items()}


# ---------------------------------------------------------------- the recordings


@pytest.mark.parametrize("name", TRACES)
def test_the_reference_reproduces_the_recordings(name):
    start, grads, recorded, meta = load(name)
    kwargs = dict(meta["kwargs"])
    optimizer = meta["optimizer"]
    if optimizer == "swats":
        switches = {}
        coroutine = reference.swats(start, **kwargs, switches=switches)
    elif meta["labels"] is not None:
        axes = {k: so.CHANNEL_AXES[label] for k, label in meta["labels"].items()}
        coroutine = SPHERICAL[optimizer](start, axes, **kwargs)
    else:
        coroutine = reference.leafwise(getattr(reference, optimizer), start, **kwargs)
    _, trajectory = reference.walk(
        coroutine,
        next(coroutine),
        lambda step, _: {k: g[step] for k, g in grads.items()},
        meta["steps"],
    )
    assert_same_trajectory(stack(trajectory), recorded)
    if "step" in meta.get("final", {}):
        assert {step for step, _ in switches.values()} == {meta["final"]["step"]}


# ---------------------------------------------------------------- spherical family


def _adam_family(algorithm):
    return functools.partial(reference.spherical, algorithm, reference.adam)


def _adamg(params, axes, weight_decay=0.0, **kwargs):
    """Weight decay acts on the euclidean leaves alone."""
    return reference.spherical(
        reference.adamg,
        functools.partial(reference.adam, weight_decay=weight_decay),
        params,
        axes,
        **kwargs,
    )


SPHERICAL = {
    "adams": _adam_family(reference.adams),
    "adamsrt": _adam_family(functools.partial(reference.adams, transport=True)),
    "adamg": _adamg,
    "sgdmrt": functools.partial(
        reference.spherical,
        reference.sgdmrt,
        functools.partial(reference.sgdmrt, axes=None),
    ),
}
ADAM_OPTIONS = {
    "plain": {"learning_rate": 0.02},
    "eps": {"learning_rate": 0.02, "eps": 1e-2, "b1": 0.8, "b2": 0.95},
    "decay": {"learning_rate": 0.05, "weight_decay": 0.1, "b2": 0.9},
    "b1=0": {"learning_rate": 0.01, "b1": 0.0, "b2": 0.5},
    "schedules": {
        "learning_rate": falling(0.05),
        "weight_decay": falling(0.3, 0.1),
        "eps": 1e-3,
    },
}
SGD_OPTIONS = {
    "plain": {"learning_rate": 0.02},
    "momentum": {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.1},
    "dampening": {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.3},
    "schedules": {
        "learning_rate": falling(0.05),
        "weight_decay": falling(0.3, 0.1),
        "momentum": 0.8,
    },
}
SPHERICAL_SETTINGS = [
    pytest.param(name, options, id=f"{name}-{key}")
    for name in SPHERICAL
    for key, options in (SGD_OPTIONS if name == "sgdmrt" else ADAM_OPTIONS).items()
]


@pytest.mark.parametrize("labels", [None, LABELS], ids=["default", "labels"])
@pytest.mark.parametrize(("name", "options"), SPHERICAL_SETTINGS)
def test_spherical_family(name, options, labels, x64):
    axes = DEFAULT_AXES if labels is None else labelled_axes(labels)
    optimizer = getattr(so, name)(**options, labels=labels, channel_axes=CHANNEL_AXES)
    coroutine = SPHERICAL[name](random_tree(0), axes, **options)
    compare(optimizer, coroutine, gradients_of(1))


@pytest.mark.parametrize("name", SPHERICAL)
def test_spherical_family_on_complex_leaves(name, x64):
    options = {"learning_rate": 0.02, "weight_decay": 0.1}
    options |= {"momentum": 0.9} if name == "sgdmrt" else {"eps": 1e-2}
    optimizer = getattr(so, name)(**options, labels=LABELS, channel_axes=CHANNEL_AXES)
    start = random_tree(2, dtype=np.complex128)
    coroutine = SPHERICAL[name](start, labelled_axes(LABELS), **options)
    compare(optimizer, coroutine, gradients_of(3, dtype=np.complex128))


@st.composite
def one_leaf(draw):
    """A shape of one to four axes, and some of the axes as channel axes."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    kept = draw(st.sets(st.integers(0, len(shape) - 1)))
    signs = draw(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept)))
    axes = tuple(
        axis - len(shape) if negative else axis
        for axis, negative in zip(sorted(kept), signs, strict=True)
    )
    return shape, axes


@settings(max_examples=12)
@given(
    leaf=one_leaf(),
    name=st.sampled_from(sorted(SPHERICAL)),
    seed=st.integers(0, 2**16),
    decays=st.tuples(st.floats(0.0, 0.95), st.floats(0.1, 0.999)),
    weight_decay=st.floats(0.0, 0.5),
)
def test_spherical_family_on_any_shape_and_axes(leaf, name, seed, decays, weight_decay):
    shape, axes = leaf
    options = {"learning_rate": 0.03, "weight_decay": weight_decay}
    if name == "sgdmrt":
        options |= {"momentum": decays[0], "dampening": 0.2}
    else:
        options |= {"b1": decays[0], "b2": decays[1], "eps": 1e-3}
    with jax.enable_x64(True):
        optimizer = getattr(so, name)(
            **options, labels={"w": "own"}, channel_axes={"own": axes}
        )
        start = random_tree(seed, {"w": shape})
        coroutine = SPHERICAL[name](start, {"w": axes}, **options)
        compare(optimizer, coroutine, gradients_of(seed, shapes={"w": shape}))


# ---------------------------------------------------------------- projection

PROJECTION_SETTINGS = {
    "adamp": {
        "plain": {"learning_rate": 0.02},
        "decay": {"learning_rate": 0.05, "weight_decay": 0.3, "wd_ratio": 0.2},
        "nesterov": {"learning_rate": 0.02, "nesterov": True, "weight_decay": 0.1},
        "eps": {"learning_rate": 0.02, "eps": 1e-2, "delta": 0.05},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
        },
    },
    "sgdp": {
        "plain": {"learning_rate": 0.02},
        "momentum": {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.1},
        "nesterov": {
            "learning_rate": 0.02,
            "momentum": 0.9,
            "dampening": 0.2,
            "weight_decay": 0.2,
            "nesterov": True,
            "wd_ratio": 0.4,
        },
        "eps": {"learning_rate": 0.02, "momentum": 0.5, "eps": 1e-2, "delta": 0.05},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
            "momentum": 0.7,
        },
    },
}
# Orthogonal filter by filter, and as a whole but not filter by filter.
TANGENT = {"conv": (-1,), "attention": ()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{key}")
        for name, table in PROJECTION_SETTINGS.items()
        for key, options in table.items()
    ],
)
def test_projection(name, options, x64):
    coroutine = reference.leafwise(getattr(reference, name), random_tree(4), **options)
    compare(getattr(so, name)(**options), coroutine, gradients_of(5, TANGENT))


@pytest.mark.parametrize("channel_axis", [0, 1, -2])
@pytest.mark.parametrize("name", PROJECTION_SETTINGS)
def test_projection_along_other_axes(name, channel_axis, x64):
    options = {"learning_rate": 0.05, "weight_decay": 0.1, "channel_axis": channel_axis}
    tangent = {"conv": (channel_axis,), "conv1d": (), "attention": (channel_axis,)}
    coroutine = reference.leafwise(getattr(reference, name), random_tree(6), **options)
    compare(getattr(so, name)(**options), coroutine, gradients_of(7, tangent))


@pytest.mark.parametrize("name", PROJECTION_SETTINGS)
def test_projection_of_complex_leaves(name, x64):
    options = {"learning_rate": 0.02, "weight_decay": 0.1}
    start = random_tree(8, dtype=np.complex128)
    coroutine = reference.leafwise(getattr(reference, name), start, **options)
    gradient = gradients_of(9, TANGENT, dtype=np.complex128)
    compare(getattr(so, name)(**options), coroutine, gradient)


def test_the_projections_above_remove_what_they_should():
    """By filter, by layer, and not at all: each happens."""
    x = random_tree(4)
    g = gradients_of(5, TANGENT)(0, x)
    removed = {
        name: reference.without_radial_part(g[name], g[name], x[name], 0.1, 1e-8, -1)[1]
        for name in SHAPES
    }
    assert removed == {
        "attention": True,
        "bias": False,
        "conv": True,
        "conv1d": False,
        "scale": False,
    }
    cosines = np.abs(reference.dot(g["attention"], x["attention"], (-1,))) / (
        reference.norm(g["attention"], (-1,)) * reference.norm(x["attention"], (-1,))
    )
    assert np.max(cosines) > 0.1 / np.sqrt(6)


# ---------------------------------------------------------------- leaf by leaf

LEAFWISE_SETTINGS = {
    "adabound": {
        "plain": {"learning_rate": 0.01},
        "bounds": {"learning_rate": 0.05, "gamma": 0.2, "final_learning_rate": 0.02},
        "ams": {"learning_rate": 0.02, "b2": 0.7, "amsbound": True, "gamma": 0.05},
        "decay": {"learning_rate": 0.02, "weight_decay": 0.2, "eps": 1e-2},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
            "gamma": 0.3,
            "amsbound": True,
        },
    },
    "lamb": {
        "plain": {"learning_rate": 0.02},
        "decay": {"learning_rate": 0.02, "weight_decay": 0.2, "eps": 1e-2},
        "corrected": {"learning_rate": 0.02, "bias_correction": True, "eps": 1e-2},
        "clipped": {"learning_rate": 0.02, "max_weight_norm": 1.5},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
            "bias_correction": True,
        },
    },
    "adam_abs": {
        "plain": {"learning_rate": 0.02},
        "eps": {"learning_rate": 0.02, "eps": 1e-2, "b1": 0.5, "b2": 0.8},
        "schedules": {
            "learning_rate": falling(0.05),
            "weight_decay": falling(0.3, 0.1),
        },
    },
}


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{key}")
        for name, table in LEAFWISE_SETTINGS.items()
        for key, options in table.items()
    ],
)
def test_leaf_by_leaf(name, options, dtype, x64):
    start = random_tree(10, dtype=dtype)
    coroutine = reference.leafwise(getattr(reference, name), start, **options)
    compare(getattr(so, name)(**options), coroutine, gradients_of(11, dtype=dtype))


def test_lamb_takes_a_trust_ratio_of_one_where_a_norm_is_zero(x64):
    start = random_tree(12) | {"bias": np.zeros(5), "conv": np.zeros((3, 2, 2, 4))}
    options = {"learning_rate": 0.02, "weight_decay": 0.1}
    coroutine = reference.leafwise(reference.lamb, start, **options)
    actual, _ = compare(so.lamb(**options), coroutine, gradients_of(13))
    assert np.all(np.abs(actual["bias"][0]) > 0)


def test_lamb_keeps_its_norms_in_the_state(x64):
    params = {"w": np.array([3.0, 4.0])}
    optimizer = so.lamb(0.1, eps=1.0, max_weight_norm=4.5)
    _, state = follow_slowly(optimizer, params, [{"w": np.array([10.0, 0.0])}])
    # r = (1, 0) / (sqrt(0.1) + 1), with m = 0.1 g and v = 0.001 g^2.
    adam_norm = 1.0 / (math.sqrt(0.1) + 1.0)
    found = {
        key: float(optax.tree.get(state, key)["w"])
        for key in ("weight_norm", "adam_norm", "trust_ratio")
    }
    assert found == pytest.approx(
        {
            "weight_norm": 4.5,
            "adam_norm": adam_norm,
            "trust_ratio": 4.5 / adam_norm,
        },
        rel=1e-9,
    )


# ---------------------------------------------------------------- SWATS

# Wide enough that leaves switch within the run, at different steps.
THRESHOLDS = {np.float64: 5e-4, np.complex128: 1e-4}
SWATS_SETTINGS = {
    "plain": {"learning_rate": 0.02, "b2": 0.95},
    "never": {"learning_rate": 0.02, "threshold": 0.0},
    "nesterov": {"learning_rate": 0.02, "b2": 0.9, "nesterov": True},
    "amsgrad": {
        "learning_rate": 0.02,
        "b2": 0.8,
        "amsgrad": True,
        "weight_decay": 0.1,
    },
    "eps": {"learning_rate": 0.02, "b2": 0.9, "eps": 1e-2},
    "schedules": {
        "learning_rate": falling(0.02, 0.015),
        "b2": 0.9,
        "weight_decay": falling(0.3, 0.1),
        "sgd_scale": wavy,
    },
}


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("switch", ["local", "global", "vector"])
@pytest.mark.parametrize("options", SWATS_SETTINGS.values(), ids=SWATS_SETTINGS)
def test_swats(options, switch, dtype, x64):
    options = {"threshold": THRESHOLDS[dtype], **options}
    switches = {}
    start = random_tree(14, dtype=dtype)
    coroutine = reference.swats(start, **options, switch=switch, switches=switches)
    optimizer = so.swats(**options, switch=switch)
    _, state = compare(optimizer, coroutine, gradients_of(15, dtype=dtype))

    points = so.swats_switch_points(state, start)
    assert [point.step for point in points] == sorted(p.step for p in points)
    assert {p.path: p.step for p in points} == {k: t for k, (t, _) in switches.items()}
    for point in points:
        expected = switches[point.path][1]
        assert point.sgd_learning_rate == pytest.approx(expected, rel=1e-9)
    if options["threshold"] == 0.0:
        assert not points
    elif switch != "local":
        assert len(points) == len(SHAPES)
    else:
        assert len({point.step for point in points}) > 1, "leaves switch on their own"


def test_swats_waits_where_the_step_is_orthogonal_to_the_gradient(x64):
    """<p, g> = 0 (a zero gradient, or an exactly orthogonal step) tells nothing."""
    start = {"w": np.array([1.0, -2.0]), "z": np.array([3.0])}
    gradient = gradients_of(16, shapes={"w": (2,), "z": (1,)})

    def silent_first(step, x):
        grads = gradient(step, x)
        return {name: g * (step >= 4) for name, g in grads.items()}

    options = {"learning_rate": 0.02, "threshold": 1e-2, "b2": 0.9}
    switches = {}
    coroutine = reference.swats(start, **options, switches=switches)
    _, state = compare(so.swats(**options), coroutine, silent_first)
    points = so.swats_switch_points(state, start)
    assert {p.path: p.step for p in points} == {k: t for k, (t, _) in switches.items()}


# ---------------------------------------------------------------- blocks


def test_standardized_adam_block_is_the_direction_of_adams(x64):
    shapes = {"conv": (3, 2, 4), "dense": (4, 3)}
    start = random_tree(17, shapes)
    options = {"b1": 0.8, "b2": 0.9, "eps": 1e-2}
    optimizer = optax.chain(
        so.scale_by_standardized_adam(**options, channel_axes=(-1,)),
        optax.scale_by_learning_rate(0.1),
    )
    axes = dict.fromkeys(shapes, (-1,))
    coroutine = SPHERICAL["adams"](start, axes, learning_rate=0.1, **options)
    compare(optimizer, coroutine, gradients_of(18, shapes=shapes))


@pytest.mark.parametrize(
    ("block", "algorithm", "options"),
    [
        (
            lambda lr, **o: optax.chain(so.scale_by_adabound(lr, **o), optax.scale(-1)),
            "adabound",
            {"gamma": 0.1, "amsbound": True, "eps": 1e-2},
        ),
        (
            lambda lr, **o: optax.chain(
                so.scale_by_lamb(**o), optax.scale_by_learning_rate(lr)
            ),
            "lamb",
            {"eps": 1e-2, "max_weight_norm": 2.0, "weight_decay": 0.1},
        ),
        (
            lambda lr, **o: optax.chain(
                so.scale_by_adam_abs(**o), optax.scale_by_learning_rate(lr)
            ),
            "adam_abs",
            {"eps": 1e-2, "b2": 0.8},
        ),
    ],
    ids=["adabound", "lamb", "adam_abs"],
)
def test_blocks_are_the_optimizers_without_their_frame(block, algorithm, options, x64):
    start = random_tree(19)
    coroutine = reference.leafwise(
        getattr(reference, algorithm), start, learning_rate=0.05, **options
    )
    compare(block(0.05, **options), coroutine, gradients_of(20))


def test_swats_block_is_swats_without_weight_decay(x64):
    start = random_tree(21)
    options = {"learning_rate": 0.02, "threshold": 5e-4, "b2": 0.95, "switch": "global"}
    optimizer = optax.chain(so.scale_by_swats(**options), optax.scale(-1.0))
    compare(optimizer, reference.swats(start, **options), gradients_of(22))
