"""How much memory the optimizers keep beside the parameters."""

import cases
import jax
import jax.numpy as jnp
import optax
import pytest

import spherical_optax as so


def resnet18():
    """The leaves of a ResNet-18 for images of 32 x 32 and ten classes."""
    params = {"stem": {"kernel": (3, 3, 3, 64), "scale": (64,), "bias": (64,)}}
    width = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers = {"conv0": (3, 3, width, channels)}
            layers["conv1"] = (3, 3, channels, channels)
            if width != channels:
                layers["shortcut"] = (1, 1, width, channels)
            for name, shape in layers.items():
                params[f"{stage}/{block}/{name}"] = {
                    "kernel": shape,
                    "scale": (channels,),
                    "bias": (channels,),
                }
            width = channels
    params["head"] = {"kernel": (512, 10), "bias": (10,)}
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        params,
        is_leaf=lambda node: isinstance(node, tuple),
    )


PARAMS = resnet18()
FROM_SUMS_ALONE = ("adams", "adamsrt", "adamg", "sgdmrt", "sgdp", "adabound")
LEAVES = len(jax.tree.leaves(PARAMS))
FILTERS = sum(x.shape[-1] for x in jax.tree.leaves(PARAMS) if x.ndim >= 3)


def size_in_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_size(optimizer, params=None):
    return size_in_bytes(jax.eval_shape(optimizer.init, params or PARAMS))


def test_this_is_a_resnet18():
    assert sum(x.size for x in jax.tree.leaves(PARAMS)) == 11_173_962
    assert LEAVES == 62


@pytest.mark.parametrize("name", ["adams", "adamsrt", "adamg"])
def test_one_moment_and_one_number_a_group(name):
    size = state_size(getattr(so, name)(1e-3))
    assert size <= 1.05 * size_in_bytes(PARAMS)
    assert state_size(optax.adam(1e-3)) > 1.99 * size_in_bytes(PARAMS)


@pytest.mark.parametrize("label", ["filter", "layer"])
@pytest.mark.parametrize("name", ["adams", "adamsrt", "adamg"])
def test_one_number_a_group_to_the_byte(name, label):
    params = {"conv": jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32)}
    groups = {"filter": 32, "layer": 1}[label]
    state = jax.eval_shape(getattr(so, name)(1e-3, labels=label).init, params)
    moments = [x for x in jax.tree.leaves(state) if x.dtype == jnp.float32]
    assert size_in_bytes(moments) == 4 * (3 * 3 * 16 * 32 + groups)
    counters = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert size_in_bytes(state) == size_in_bytes(moments) + size_in_bytes(counters)


def test_sgdmrt_is_as_large_as_momentum():
    size = state_size(so.sgdmrt(1e-3, momentum=0.9))
    assert size <= state_size(optax.sgd(1e-3, momentum=0.9)) + 64


@pytest.mark.parametrize("switch", ["local", "global", "vector"])
def test_swats_is_as_large_as_adam(switch):
    """But for a few numbers a leaf: the estimate, and what the switch was."""
    size = state_size(so.swats(1e-3, switch=switch))
    assert size <= state_size(optax.adam(1e-3)) + 16 * LEAVES + 64


@pytest.mark.parametrize(
    "case",
    [c for c in cases.OPTIMIZERS if c.variant not in ("amsbound", "nesterov-amsgrad")],
    ids=cases.case_id,
)
def test_none_is_larger_than_adam(case):
    """But for a few numbers a leaf, and a radius a group where it is fixed."""
    size = state_size(case.make())
    beside = 16 * LEAVES + 4 * FILTERS * case.numbers_a_group
    assert size <= state_size(optax.adam(1e-3)) + beside + 64


@pytest.mark.parametrize("factory", [so.adams, so.adamsrt, so.adamp])
def test_a_narrow_first_moment_is_smaller(factory):
    wide, narrow = (state_size(factory(1e-3, mu_dtype=t)) for t in (None, "bfloat16"))
    assert wide - narrow == size_in_bytes(PARAMS) // 2


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA for the CPU copies")
@pytest.mark.parametrize("name", FROM_SUMS_ALONE)
def test_a_step_in_place_needs_no_array_beside(name):
    """Where a step follows from sums; others write theirs, to know its norm."""
    optimizer = getattr(so, name)(1e-3)
    step = jax.jit(cases.make_step(optimizer), donate_argnums=(0, 1))
    compiled = step.lower(PARAMS, jax.eval_shape(optimizer.init, PARAMS), PARAMS)
    sizes = compiled.compile().memory_analysis()
    beside = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    beside += sizes.temp_size_in_bytes
    assert beside < 0.01 * sizes.argument_size_in_bytes
