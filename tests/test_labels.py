"""Labels: by shape, by path, by tree; and what is said where one is wrong."""

import cases
import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import spherical_optax as so

KERNEL, MATRIX, VECTOR = jnp.ones((3, 3, 2, 4)), jnp.ones((4, 3)), jnp.ones(3)
RULES = {
    r"stage\d/block\d/conv\d/kernel": "filter",
    r".*/kernel": "layer",
}


def labels_in(tree):
    """Path to label, with Flax variables unwrapped."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): label
        for path, label in leaves
    }


def test_channel_axes():
    assert dict(so.CHANNEL_AXES) == {"filter": (-1,), "layer": (), "euclidean": None}


def test_label_conv_filters():
    params = {"a": KERNEL, "b": {"c": MATRIX, "d": VECTOR}, "e": jnp.ones(()), "f": 1.0}
    expected = {
        "a": "filter",
        "b": {"c": "euclidean", "d": "euclidean"},
        "e": "euclidean",
        "f": "euclidean",
    }
    assert so.label_conv_filters(params) == expected
    assert so.label_conv_filters(jax.eval_shape(lambda: params)) == expected
    assert so.label_conv_filters((jnp.ones((2, 3, 4)), MATRIX)) == (
        "filter",
        "euclidean",
    )
    assert so.label_conv_filters({}) == {}


# ---------------------------------------------------------------- by path


def test_whole_path_must_match():
    label = so.label_by_path({"conv": "filter", r"head/.*": "layer"})
    params = {"conv": KERNEL, "conv2": KERNEL, "my": {"conv": KERNEL}}
    assert label(params) == {
        "conv": "filter",
        "conv2": "euclidean",
        "my": {"conv": "euclidean"},
    }
    assert label({"head": [MATRIX, {"x": VECTOR}]}) == {
        "head": ["layer", {"x": "layer"}]
    }


def test_first_match_wins():
    params = {"conv": {"kernel": KERNEL}}
    first = so.label_by_path({r"conv/.*": "filter", r".*/kernel": "layer"})
    second = so.label_by_path({r".*/kernel": "layer", r"conv/.*": "filter"})
    assert first(params) == {"conv": {"kernel": "filter"}}
    assert second(params) == {"conv": {"kernel": "layer"}}


@pytest.mark.parametrize("rules", ["conv", [("conv", "filter")], {3: "filter"}])
def test_rules_that_are_none(rules):
    with pytest.raises(ValueError, match=r"^rules"):
        so.label_by_path(rules)


def test_default_label():
    label = so.label_by_path({r"head/.*": "euclidean"}, default="filter")
    assert label({"head": {"w": MATRIX}, "conv": KERNEL}) == {
        "head": {"w": "euclidean"},
        "conv": "filter",
    }


@pytest.mark.parametrize("expression", ["(", "*conv", "[a-"])
def test_bad_expression(expression):
    with pytest.raises(ValueError, match="rules") as caught:
        so.label_by_path({"fine": "filter", expression: "filter"})
    assert repr(expression) in str(caught.value)
    assert "\n" not in str(caught.value)


def block(kernel):
    return {"conv1": {"kernel": kernel, "bias": VECTOR}}


def nnx_model():
    class Block(nnx.Module):
        def __init__(self):
            self.conv1 = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))

    class Stage(nnx.Module):
        def __init__(self):
            self.block0 = Block()

    class Model(nnx.Module):
        def __init__(self):
            self.stage1 = Stage()

    return Model()


def linen_params():
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Conv(4, (3, 3), name="conv1")(x)

    class Stage(linen.Module):
        @linen.compact
        def __call__(self, x):
            return Block(name="block0")(x)

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return Stage(name="stage1")(x)

    return Model().init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))["params"]


class EqxConv(eqx.Module):
    kernel: jax.Array
    bias: jax.Array


class EqxBlock(eqx.Module):
    conv1: EqxConv


class EqxStage(eqx.Module):
    block0: EqxBlock


class EqxModel(eqx.Module):
    stage1: EqxStage


SAME_PATHS = {
    "dict": lambda: {"stage1": {"block0": block(KERNEL)}},
    "linen": linen_params,
    "nnx-state": lambda: nnx.state(nnx_model(), nnx.Param),
    "nnx-pure": lambda: nnx.as_pure(nnx.state(nnx_model(), nnx.Param)),
    "nnx-dict": lambda: nnx.to_pure_dict(nnx.state(nnx_model(), nnx.Param)),
    "equinox": lambda: EqxModel(EqxStage(EqxBlock(EqxConv(KERNEL, VECTOR)))),
}


@pytest.mark.parametrize("make", SAME_PATHS.values(), ids=SAME_PATHS)
def test_paths_are_the_same_everywhere(make):
    """And a rule with a typo does not match anywhere."""
    params = make()
    label = so.label_by_path(RULES)
    assert labels_in(label(params)) == {
        "stage1/block0/conv1/bias": "euclidean",
        "stage1/block0/conv1/kernel": "filter",
    }
    wrong = so.label_by_path({r"stage1/block0/conv1/kernel/value": "filter"})
    assert set(labels_in(wrong(params)).values()) == {"euclidean"}
    assert labels_in(so.label_conv_filters(params)) == labels_in(label(params))


def test_indices_are_parts_of_a_path():
    label = so.label_by_path({"0/1": "filter", r"2/\d+": "layer"})
    assert label(((VECTOR, KERNEL), VECTOR, [MATRIX])) == (
        ("euclidean", "filter"),
        "euclidean",
        ["layer"],
    )


def test_labels_do_not_depend_on_values():
    label = so.label_by_path(RULES)
    params = {"stage1": {"block0": block(KERNEL)}}
    other = jax.tree.map(lambda x: x * jnp.nan, params)
    shapes = jax.eval_shape(lambda: params)
    assert label(params) == label(other) == label(shapes)


# ---------------------------------------------------------------- label trees

family = pytest.mark.parametrize("name", cases.SPHERICAL_NAMES)
PARAMS = {"bias": VECTOR, "block": {"conv": KERNEL, "dense": MATRIX}}


def updates_of(name, labels, params=PARAMS, **kwargs):
    optimizer = getattr(so, name)(0.1, labels=labels, **kwargs)
    state = optimizer.init(params)
    grads = jax.tree.map(
        lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), params
    )
    return optimizer.update(grads, state, params)[0]


def same(x, y):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), x, y))


@family
def test_label_trees_may_be_prefixes(name):
    full = {"bias": "euclidean", "block": {"conv": "layer", "dense": "layer"}}
    prefix = {"bias": "euclidean", "block": "layer"}
    assert same(updates_of(name, full), updates_of(name, prefix))
    assert same(updates_of(name, full), updates_of(name, lambda params: prefix))
    everything = jax.tree.map(lambda _: "euclidean", PARAMS)
    assert same(updates_of(name, everything), updates_of(name, "euclidean"))


@family
def test_labels_decide(name):
    by_filter = updates_of(name, {"bias": "euclidean", "block": "filter"})
    by_layer = updates_of(name, {"bias": "euclidean", "block": "layer"})
    default = updates_of(name, None)
    assert same(by_filter["bias"], by_layer["bias"])
    assert same(by_filter["block"]["conv"], default["block"]["conv"])
    if name != "sgdmrt":  # its first step is the same on any sphere
        assert not same(by_filter["block"]["conv"], by_layer["block"]["conv"])
        assert not same(by_filter["block"]["dense"], default["block"]["dense"])


@family
def test_own_labels(name):
    axes = {**so.CHANNEL_AXES, "rows": (0,), "columns": (1,)}
    rows, columns = (
        updates_of(
            name,
            {"bias": "euclidean", "block": "filter"} | {"block": kind},
            channel_axes=axes,
        )
        for kind in ("rows", "columns")
    )
    assert same(rows["bias"], columns["bias"])
    if name != "sgdmrt":
        assert not same(rows["block"]["dense"], columns["block"]["dense"])


FULL = {"bias": "euclidean", "block": {"conv": "filter", "dense": "euclidean"}}
WRONG = {
    "unknown": (
        {**FULL, "block": {"conv": "filters", "dense": "euclidean"}},
        None,
        ["'block/conv'", "'filters'", "'euclidean'", "'filter'", "'layer'"],
    ),
    "unknown-in-own-table": (
        FULL,
        {"filter": (-1,), "flat": None},
        ["'bias'", "'euclidean'", "'filter'", "'flat'"],
    ),
    "unknown-default": (None, {"filter": (-1,)}, ["'bias'", "'euclidean'"]),
    "not-a-label": ({**FULL, "bias": 3}, None, ["'bias'", "3", "'filter'"]),
    "not-labels": (3, None, ["labels", "3", "'filter'"]),
    "uncovered": (
        {"bias": "euclidean", "block": {"conv": "filter"}},
        None,
        ["'block/dense'"],
    ),
    "uncovered-branch": ({"bias": "euclidean"}, None, ["'block/conv'"]),
    "uncovered-by-function": (lambda _: {}, None, ["'bias'"]),
    "misspelled-branch": (
        {"bias": "euclidean", "blok": FULL["block"]},
        None,
        ["'block/conv'"],
    ),
    "out-of-range": (
        {**FULL, "bias": "wide"},
        {**so.CHANNEL_AXES, "wide": (-2, -1)},
        ["'bias'", "-2"],
    ),
    "out-of-range-positive": (
        {**FULL, "block": {"conv": "fourth", "dense": "fourth"}},
        {**so.CHANNEL_AXES, "fourth": (3,)},
        ["'block/dense'", "3"],
    ),
    "by-path": (
        so.label_by_path({"block/.*": "spheric"}),
        None,
        ["'block/conv'", "'spheric'"],
    ),
}


@family
@pytest.mark.parametrize(("labels", "axes", "parts"), WRONG.values(), ids=WRONG)
def test_errors_name_the_path(name, labels, axes, parts):
    optimizer = getattr(so, name)(0.1, labels=labels, channel_axes=axes)
    with pytest.raises(ValueError, match=r"leaf") as caught:
        optimizer.init(PARAMS)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@family
def test_errors_inside_transformations_too(name):
    """In a chain under jit, the message is the same."""
    optimizer = optax.chain(
        optax.clip(1.0), getattr(so, name)(0.1, labels=WRONG["unknown"][0])
    )
    with pytest.raises(ValueError, match=r"'block/conv'.*'filters'"):
        jax.jit(optimizer.init)(PARAMS)


@family
@pytest.mark.parametrize(
    ("table", "part"),
    [
        ({"filter": (0.5,)}, "0.5"),
        ({"filter": -1}, "-1"),
        ({"filter": (0, 0), "euclidean": None}, "twice"),
        ([("filter", (-1,))], "mapping"),
        ("filter", "mapping"),
    ],
)
def test_bad_tables(name, table, part):
    with pytest.raises(ValueError, match="channel_axes") as caught:
        getattr(so, name)(0.1, channel_axes=table).init(PARAMS)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        so.project_to_tangent,
        lambda axes: so.scale_by_standardized_adam(channel_axes=axes),
        lambda axes: so.rescale_and_transport(optax.sgd(0.1, momentum=0.9), axes),
        so.retract_to_sphere,
    ],
    ids=["project_to_tangent", "standardized", "rescale_and_transport", "retract"],
)
def test_blocks_name_the_leaf_that_is_too_small(make):
    block = make((-2, -1))
    block.init({"conv": KERNEL, "dense": MATRIX})
    with pytest.raises(ValueError, match=r"'deep/bias'.*-2"):
        block.init({"deep": {"bias": VECTOR}, "dense": MATRIX})


@pytest.mark.parametrize("factory", [so.adamp, so.sgdp])
def test_projection_names_the_leaf_that_has_no_such_axis(factory):
    optimizer = factory(0.1, channel_axis=2)
    optimizer.init({"conv": KERNEL, "bias": VECTOR})
    with pytest.raises(ValueError, match=r"'head/dense'.*2"):
        optimizer.init({"conv": KERNEL, "head": {"dense": MATRIX}})


TWICE = {"a": {"b": jnp.ones((3, 4))}, "a/b": jnp.ones((3, 4))}


@pytest.mark.parametrize(
    "labels", [so.label_by_path({}), {"a": {"b": "filter"}, "a/b": "euclidean"}]
)
def test_two_leaves_of_one_path_are_an_error(labels):
    """One would have the other's label."""
    for name in ("adams", "monitor_sphere"):
        factory = getattr(so, name)
        first = optax.sgd(0.1) if name == "monitor_sphere" else 0.1
        with pytest.raises(ValueError, match="'a/b'"):
            factory(first, labels=labels).init(TWICE)
