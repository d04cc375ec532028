"""The same numbers whatever holds the parameters: dicts, tuples, Flax, Equinox."""

import functools
from collections.abc import Callable
from typing import Any

import cases
import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import spherical_optax as so

STEPS = 3
SHAPES = {
    "conv/bias": (4,),
    "conv/kernel": (3, 3, 2, 4),
    "head/bias": (3,),
    "head/kernel": (4, 3),
}
PATHS = list(SHAPES)
# Leaves by the names that the tuples below give them.
NUMBERED = dict(zip(["0/0", "0/1", "1/0", "1/1"], PATHS, strict=True))


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=SHAPES[path]).astype(np.float32) for path in PATHS}


def gradient(params: Any) -> Any:
    """Some gradients, made element by element so that any tree will do."""
    return jax.tree.map(lambda x: jnp.sin(3 * x) + 0.1, params)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
    return {NUMBERED.get(path, path): leaf for path, leaf in found.items()}


def descend(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """The loop of anybody who uses Optax directly."""
    state = optimizer.init(params)
    for _ in range(STEPS):
        updates, state = optimizer.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def nested(leaves):
    tree = {"conv": {}, "head": {}}
    for path, leaf in leaves.items():
        layer, name = path.split("/")
        tree[layer][name] = jnp.asarray(leaf)
    return tree


def as_dict(optimizer):
    params, state = descend(optimizer, nested(start()))
    return params, state, params


def as_tuple(optimizer):
    tree = nested(start())
    params = tuple((tree[k]["bias"], tree[k]["kernel"]) for k in ("conv", "head"))
    params, state = descend(optimizer, params)
    return params, state, params


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), name="conv")(x)
        return linen.Dense(3, name="head")(x)


def as_linen(optimizer):
    made = LinenModel().init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))["params"]
    assert jax.tree.structure(made) == jax.tree.structure(nested(start()))
    params = jax.tree.map(lambda _, x: x, made, nested(start()))
    params, state = descend(optimizer, params)
    return params, state, params


def as_linen_boxes(optimizer):
    """Parameters in boxes that name their axes, as for sharding."""
    boxes = linen.with_partitioning(linen.initializers.zeros, (None, "model"))
    model = linen.Dense(3, kernel_init=boxes, name="head")
    box = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]["kernel"]
    params = jax.tree.map(box.replace_boxed, nested(start()))
    params, state = descend(optimizer, params)
    return linen.meta.unbox(params), state, params


class NnxModel(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(1))


def nnx_model() -> NnxModel:
    model = NnxModel()
    nnx.update(model, nnx.State(nested(start())))
    return model


def as_nnx_optimizer(optimizer):
    model = nnx_model()
    trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    for _ in range(STEPS):
        trainer.update(model, gradient(nnx.state(model, nnx.Param)))
    params = nnx.state(model, nnx.Param)
    return nnx.as_pure(params), trainer.opt_state, params


def as_nnx_state(optimizer):
    """``nnx.State`` as it is, variables and all."""
    params, state = descend(optimizer, nnx.state(nnx_model(), nnx.Param))
    return nnx.as_pure(params), state, params


def as_nnx_pure(optimizer):
    """What a compiled training step is made of."""
    graph, params, rest = nnx.split(nnx_model(), nnx.Param, ...)
    params, state = descend(optimizer, nnx.as_pure(params))
    nnx.merge(graph, params, rest)
    return params, state, params


class EqxLayer(eqx.Module):
    bias: jax.Array
    kernel: jax.Array
    activation: Callable = jax.nn.relu


class EqxModel(eqx.Module):
    conv: EqxLayer
    head: EqxLayer
    name: str = "model"


def as_equinox(optimizer):
    tree = nested(start())
    model = EqxModel(EqxLayer(**tree["conv"]), EqxLayer(**tree["head"]))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(STEPS):
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(gradient(params), state, params)
        model = eqx.apply_updates(model, updates)
    params = eqx.filter(model, eqx.is_inexact_array)
    return params, state, params


FRAMEWORKS = {
    "tuple": as_tuple,
    "linen": as_linen,
    "linen-boxes": as_linen_boxes,
    "nnx-optimizer": as_nnx_optimizer,
    "nnx-state": as_nnx_state,
    "nnx-pure": as_nnx_pure,
    "equinox": as_equinox,
}
each_framework = pytest.mark.parametrize(
    "run", FRAMEWORKS.values(), ids=FRAMEWORKS.keys()
)


@functools.cache
def on_a_dict(case_id: str) -> dict[str, np.ndarray]:
    (case,) = (case for case in cases.CASES if case.id == case_id)
    return by_path(as_dict(case.make())[0])


def assert_same(actual, expected):
    assert actual.keys() == expected.keys() == SHAPES.keys()
    for path in PATHS:
        np.testing.assert_allclose(actual[path], expected[path], rtol=1e-6, atol=1e-7)


@each_framework
@pytest.mark.parametrize(
    "case", [c for c in cases.DISTINCT if "labels" not in c.kwargs], ids=cases.case_id
)
def test_same_numbers(case, run):
    assert_same(by_path(run(case.make())[0]), on_a_dict(case.id))


# ---------------------------------------------------------------- labels

LABELS = {
    "conv": {"bias": "euclidean", "kernel": "filter"},
    "head": {"bias": "euclidean", "kernel": "layer"},
}
RULES = {r"(conv|0)/(kernel|1)": "filter", r"(head|1)/(kernel|1)": "layer"}
family = pytest.mark.parametrize("name", cases.SPHERICAL_NAMES)


def make(name, labels):
    options = {"momentum": 0.9} if name == "sgdmrt" else {}
    return getattr(so, name)(0.1, **options, labels=labels)


@functools.cache
def labelled_dict(name):
    labelled = by_path(as_dict(make(name, LABELS))[0])
    default = by_path(as_dict(make(name, None))[0])
    assert not np.allclose(labelled["head/kernel"], default["head/kernel"], rtol=1e-3)
    return labelled


@family
@each_framework
def test_labels_by_path(run, name):
    optimizer = make(name, so.label_by_path(RULES))
    assert_same(by_path(run(optimizer)[0]), labelled_dict(name))


def static_labels(run):
    """A label tree as one would write it for each framework."""
    conv, head = LABELS["conv"], LABELS["head"]
    if run is as_tuple:
        return (("euclidean", "filter"), ("euclidean", "layer"))
    if run is as_equinox:
        return EqxModel(EqxLayer(**conv), EqxLayer(**head))
    if run in (as_nnx_optimizer, as_nnx_state, as_nnx_pure):
        pure = nnx.as_pure(nnx.state(nnx_model(), nnx.Param))
        return so.label_by_path(RULES)(pure)
    return LABELS


@family
@each_framework
def test_static_label_trees(run, name):
    optimizer = make(name, static_labels(run))
    assert_same(by_path(run(optimizer)[0]), labelled_dict(name))


@each_framework
def test_a_plain_dict_of_labels_fits_any_framework(run):
    """Paths are what counts, not the kind of node."""
    if run is as_tuple:
        labels = [["euclidean", "filter"], ["euclidean", "layer"]]
    else:
        labels = LABELS
    optimizer = make("adamsrt", labels)
    assert_same(by_path(run(optimizer)[0]), labelled_dict("adamsrt"))


@family
@each_framework
def test_an_uncovered_leaf_is_named_by_its_path(run, name):
    labels = {"conv": LABELS["conv"], "head": {"bias": "euclidean"}}
    path = "'head/kernel'"
    if run is as_tuple:
        labels, path = ((("euclidean", "filter"), ("euclidean",))), "'1/1'"
    with pytest.raises(ValueError, match=path):
        run(make(name, labels))


@each_framework
def test_switch_points_are_named_by_their_paths(run):
    _, state, params = run(so.swats(1e-2, threshold=1e9))
    points = so.swats_switch_points(state, params)
    assert [NUMBERED.get(point.path, point.path) for point in points] == PATHS
    assert {point.step for point in points} == {2}
    assert all(point.sgd_learning_rate > 0 for point in points)


def test_nnx_optimizer_compiled():
    """In ``nnx.jit``, with state that stays where it is."""
    model = nnx_model()
    trainer = nnx.Optimizer(
        model, make("adamsrt", static_labels(as_nnx_optimizer)), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, trainer):
        trainer.update(model, gradient(nnx.state(model, nnx.Param)))

    for _ in range(STEPS):
        step(model, trainer)
    found = by_path(nnx.as_pure(nnx.state(model, nnx.Param)))
    expected = labelled_dict("adamsrt")
    for path in PATHS:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6)
