"""Bad arguments are refused at once, in one line that says what is allowed."""

import inspect
import math

import cases
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import spherical_optax as so

NEGATIVE = (-1, -1e-9, math.nan, math.inf, "fast", None, [0.1], 1j)
# Argument: values that are refused.
WRONG = {
    "learning_rate": NEGATIVE,
    "weight_decay": NEGATIVE,
    "eps": (-1e-8, math.nan, "small"),
    "b1": (1.0, 1, -0.1, 1.5, math.nan, "0.9"),
    "b2": (1.0, -0.1, 1.5, None),
    "momentum": (1.5, 1.0, -0.1, "heavy"),
    "dampening": (-0.1, 1.5, math.nan),
    "delta": (-0.1, math.nan, None),
    "wd_ratio": (-0.1, math.nan, "x"),
    "threshold": (-1e-9, math.nan, "tight"),
    "sgd_scale": (-1.0, math.nan, "x"),
    "switch": ("locall", "Local", "", None, 1),
    "final_learning_rate": (-0.1, math.nan, "x"),
    "gamma": (-1e-3, 0.0, math.nan),
    "max_weight_norm": (-1.0, math.nan, "x"),
    "nesterov": ("yes", 1, None),
    "amsgrad": ("yes", 1, None),
    "amsbound": ("yes", 1, None),
    "bias_correction": ("yes", 1, None),
    "mu_dtype": ("nonsense", jnp.int32, 3.0, bool),
    "accumulator_dtype": ("nonsense", jnp.int32),
    "channel_axis": (1.5, "last", None),
    "channel_axes": (3, "last", [("filter", (-1,))]),
    "radius": (-1.0, math.nan, "start", None),
    "inner": (3, None, optax.adam),
    "base": (3, None, optax.scale_by_adam),
    "norm_decay": (1.0, -0.1, math.nan, "x"),
    "every": (0, -1, 1.5, True, "often", None),
    "peak_learning_rate": (0.0, -1e-3, math.nan, "x"),
}
# Fine at the edge of the range.
RIGHT = {
    "learning_rate": (0.0, 1, np.float32(0.1), jnp.float32(0.1)),
    "weight_decay": (0, np.float64(0.1)),
    "eps": (0.0, 1),
    "b1": (0.0, np.float32(0.9), jnp.asarray(0.9)),
    "b2": (0.0, 0.999999),
    "momentum": (0.0, 0.99),
    "dampening": (0.0, 1.0),
    "threshold": (0.0, 1e9),
    "mu_dtype": ("bfloat16", jnp.float32, np.float64, jnp.dtype("float16")),
    "accumulator_dtype": ("bfloat16", None),
    "channel_axis": (0, np.int64(1)),
    "wd_ratio": (0, 1),
    "gamma": (1, 1e-9),
    "every": (1, np.int64(7)),
    "norm_decay": (0.0, 0.999),
}
# Arguments that two kinds of functions share by name alone: for blocks these are a
# sequence of axes, which the leaf's shape decides on.
BY_SHAPE = {"channel_axes"}


def cases_by_name():
    """The first case of every name."""
    first = {}
    for case in cases.CASES:
        first.setdefault(case.name, case)
    return first.values()


def spelled(value):
    return getattr(value, "__name__", repr(value))


def pairs(table):
    return [
        pytest.param(
            case, argument, value, id=f"{case.name}-{argument}-{spelled(value)}"
        )
        for case in cases_by_name()
        for argument in inspect.signature(getattr(so, case.name)).parameters
        if not (case.is_block and argument in BY_SHAPE)
        for value in table.get(argument, ())
    ]


def build(case, argument, value):
    optimizer = case.make(**{argument: value})
    return optimizer.init(cases.make_tree(case))


@pytest.mark.parametrize(("case", "argument", "value"), pairs(WRONG))
def test_out_of_range(case, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}\b") as caught:
        build(case, argument, value)
    message = str(caught.value)
    assert "\n" not in message
    assert "must" in message, "what is allowed"


@pytest.mark.parametrize(("case", "argument", "value"), pairs(RIGHT))
def test_at_the_edge(case, argument, value):
    build(case, argument, value)


@pytest.mark.parametrize("case", cases_by_name(), ids=cases.case_id)
def test_every_argument_is_tried(case):
    parameters = set(inspect.signature(getattr(so, case.name)).parameters)
    assert parameters <= set(WRONG) | {"labels", "channel_axes", "per_weight"}


@pytest.mark.parametrize("factory", [so.swats, so.scale_by_swats])
def test_choices_are_listed(factory):
    with pytest.raises(ValueError, match="switch") as caught:
        factory(1e-3, switch="locall")
    assert "locall" in str(caught.value)
    for choice in ("local", "global", "vector"):
        assert choice in str(caught.value)


# Positional arguments with their defaults, then keyword-only ones.
SIGNATURES = {
    "adams": "learning_rate b1=0.9 b2=0.999 eps=1e-08 weight_decay=0.0 "
    "* labels=None channel_axes=None mu_dtype=None",
    "sgdmrt": "learning_rate momentum=0.0 dampening=0.0 weight_decay=0.0 "
    "* labels=None channel_axes=None accumulator_dtype=None",
    "adamp": "learning_rate b1=0.9 b2=0.999 eps=1e-08 weight_decay=0.0 delta=0.1 "
    "wd_ratio=0.1 nesterov=False * channel_axis=-1 mu_dtype=None",
    "sgdp": "learning_rate momentum=0.0 dampening=0.0 weight_decay=0.0 nesterov=False "
    "delta=0.1 wd_ratio=0.1 eps=1e-08 * channel_axis=-1 accumulator_dtype=None",
    "swats": "learning_rate b1=0.9 b2=0.999 eps=1e-08 threshold=1e-09 "
    "weight_decay=0.0 * switch='local' sgd_scale=1.0 nesterov=False amsgrad=False",
    "adabound": "learning_rate b1=0.9 b2=0.999 final_learning_rate=0.1 gamma=0.001 "
    "eps=1e-08 weight_decay=0.0 * amsbound=False",
    "lamb": "learning_rate b1=0.9 b2=0.999 eps=1e-06 weight_decay=0.0 "
    "* bias_correction=False max_weight_norm=10.0",
    "adam_abs": "learning_rate b1=0.9 b2=0.99 eps=1e-08 weight_decay=0.0",
}
SIGNATURES |= {"adamsrt": SIGNATURES["adams"], "adamg": SIGNATURES["adams"]}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    words, starred = [], False
    for parameter in inspect.signature(getattr(so, name)).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            words.append("*")
        empty = parameter.default is inspect.Parameter.empty
        default = "" if empty else f"={parameter.default!r}"
        words.append(parameter.name + default)
    assert " ".join(words) == SIGNATURES[name]


def test_schedules_are_given_arrays():
    """As Optax does; the first value is asked for when an optimizer is made."""
    optimizer = so.adabound(lambda count: 0.1 / (1 + count.astype(float)))
    optimizer.init(jnp.ones(3))


def test_no_bound_of_weight_norms():
    optimizer = so.lamb(0.1, bias_correction=True, max_weight_norm=math.inf)
    reference = optax.lamb(0.1)
    x = 1e3 * jnp.arange(1.0, 4.0)
    step, _ = optimizer.update(x, optimizer.init(x), x)
    expected, _ = reference.update(x, reference.init(x), x)
    np.testing.assert_allclose(step, expected, rtol=1e-6)
