"""Every exported optimizer and block, with all that the shared tests need to know.

This is the only list of them. ``test_contracts.py`` fails when the library exports
a function that is neither here nor in ``OTHER_EXPORTS``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spherical_optax as so

# Exports that are no transformations.
OTHER_EXPORTS = {
    "detect_invariance",
    "equilibrium_rotation",
    "label_by_path",
    "label_conv_filters",
    "sphere_statistics",
    "swats_switch_points",
}

DEPTHWISE = {**so.CHANNEL_AXES, "depthwise": (-2, -1)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to use one export.

    Attributes:
      name: the name in ``spherical_optax.__all__``.
      variant: what sets it apart from other cases of the same name.
      kwargs: arguments with which it solves the targets of ``test_convergence.py``,
        close to those with which Optax tests its own Adam and SGD.
      static: arguments that ``optax.inject_hyperparams`` must leave as they are.
      learning_rate: for a block: the learning rate that follows it in a chain, or
        None where the block's own step is already whole.
      kernels_only: whether it works on leaves of at least one axis alone.
      solves: the targets of ``test_convergence.py`` that it reaches.
      schedules: hyperparameters that may be schedules.
      needs_params: whether ``update`` has to be given the parameters.
    """

    name: str
    kwargs: Mapping[str, Any]
    variant: str = ""
    static: tuple[str, ...] = ()
    learning_rate: float | None = None
    kernels_only: bool = False
    solves: tuple[str, ...] = ("parabola", "rosenbrock", "matrix", "mixed")
    schedules: tuple[str, ...] = ("learning_rate", "weight_decay")
    needs_params: bool = True

    @property
    def cancels(self) -> bool:
        """Whether updates are differences of numbers of the size of the weights."""
        return self.name in CANCELLING

    @property
    def numbers_a_group(self) -> int:
        """How many numbers it keeps for each group beside Adam's moments."""
        return NUMBERS_A_GROUP.get(self.name, 0)

    @property
    def id(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def is_block(self) -> bool:
        return self.name in BLOCK_NAMES

    def make(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation itself."""
        return getattr(so, self.name)(**{**self.kwargs, **changes})

    def make_optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The transformation with what makes an optimizer of it."""
        if self.name in DESCENT_BLOCKS:
            return optax.chain(self.make(), optax.scale(-1.0))
        if self.name in LAST_BLOCKS:
            return optax.chain(optax.sgd(self.learning_rate), self.make())
        if self.learning_rate is not None:
            return optax.chain(
                self.make(), optax.scale_by_learning_rate(self.learning_rate)
            )
        return self.make()

    def inject(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The same under ``optax.inject_hyperparams``."""
        factory = optax.inject_hyperparams(getattr(so, self.name), self.static)
        return factory(**{**self.kwargs, **changes})


BLOCK_NAMES = {
    "project_if_invariant",
    "project_to_tangent",
    "rescale_and_transport",
    "retract_to_sphere",
    "scale_by_adabound",
    "scale_by_adam_abs",
    "scale_by_lamb",
    "scale_by_standardized_adam",
    "scale_by_swats",
}
# Blocks with a learning rate of their own that keep the gradient's sign.
DESCENT_BLOCKS = {"scale_by_adabound", "scale_by_swats"}
# Blocks that stand after the learning rate.
LAST_BLOCKS = {"project_to_norm", "retract_to_sphere"}


# Beside Adam's two moments: the radius, and a mean of squared lengths.
NUMBERS_A_GROUP = {"adamh": 1, "hyperball": 1, "rotational": 2}
# Updates that are small next to what they are the difference of.
CANCELLING = {
    "adamh",
    "hyperball",
    "muonh",
    "project_to_norm",
    "project_to_tangent",
    "retract_to_sphere",
    "rotational",
}


_ANY = "(.*/)?"  # any folder in a path


def _spherical(name: str, **kwargs: Any) -> list[Case]:
    """A member of the spherical family under the default and other labels."""
    by_layer = so.label_by_path({rf"{_ANY}conv": "layer", rf"{_ANY}dense": "filter"})
    by_depth = so.label_by_path({rf"{_ANY}conv": "depthwise"})
    case = functools.partial(Case, name, static=("labels",))
    spheres = ("sphere",)
    solves = ("parabola", "rosenbrock", "matrix", "mixed", *spheres)
    return [
        case(kwargs, solves=solves),
        case(kwargs | {"labels": by_layer}, "layer", solves=spheres),
        case(
            kwargs | {"labels": by_depth, "channel_axes": DEPTHWISE},
            "depthwise",
            solves=spheres,
        ),
    ]


_SGD = {"learning_rate": 1e-3, "momentum": 0.9}
_ALL = ("parabola", "rosenbrock", "matrix", "mixed")
_NO_DECAY = ("learning_rate",)
# Clipped to a final learning rate with which SGD is stable on Rosenbrock's valley.
_ADABOUND = {"learning_rate": 1e-1, "final_learning_rate": 2e-3}
_SWATS = {"learning_rate": 1e-2, "threshold": 1e-5}


def _on_spheres(name: str, variant: str = "", **kwargs: Any) -> list[Case]:
    """One member of that list, for optimizers that differ in little else."""
    schedules = ("learning_rate", "weight_decay")
    return [
        dataclasses.replace(
            case, schedules=schedules if "weight_decay" in kwargs else _NO_DECAY
        )
        for case in _spherical(name, **kwargs)
        if case.variant == variant
    ]


OPTIMIZERS: list[Case] = [
    *_spherical("adams", learning_rate=1e-1),
    *_spherical("adamsrt", learning_rate=1e-1),
    *_spherical("adamg", learning_rate=1e-1),
    *_spherical("sgdmrt", **_SGD),
    *_on_spheres("hyperball", base=optax.scale_by_adam(), learning_rate=1e-2),
    Case(
        "hyperball",
        {"base": optax.trace(0.9), "learning_rate": 1e-2, "radius": 2.0},
        "2.0",
        static=("labels",),
        solves=("sphere",),
        schedules=_NO_DECAY,
    ),
    *_on_spheres("adamh", "layer", learning_rate=1e-2),
    *_on_spheres("muonh", learning_rate=1e-2),
    *_on_spheres("muonh", "layer", learning_rate=1e-2),
    # It leaves the mean of a group alone, which matters least for the largest groups.
    *_on_spheres(
        "rotational",
        "layer",
        base=optax.scale_by_adam(),
        learning_rate=1e-2,
        weight_decay=1e-2,
    ),
    Case(
        "monitor_sphere",
        {"inner": optax.sgd(1e-3, momentum=0.9)},
        static=("labels",),
        schedules=(),
    ),
    Case("adamp", {"learning_rate": 1e-1, "weight_decay": 1e-6}),
    Case("adamp", {"learning_rate": 1e-2, "nesterov": True}, "nesterov"),
    Case("adamp", {"learning_rate": 1e-1, "channel_axis": 0}, "first-axis"),
    Case("sgdp", {**_SGD, "weight_decay": 1e-6}),
    Case("sgdp", {**_SGD, "learning_rate": 5e-4, "nesterov": True}, "nesterov"),
    *(
        Case(
            "swats",
            {**_SWATS, "switch": switch},
            switch,
            schedules=("learning_rate", "weight_decay", "sgd_scale"),
        )
        for switch in ("local", "global", "vector")
    ),
    Case(
        "swats",
        {**_SWATS, "nesterov": True, "amsgrad": True},
        "nesterov-amsgrad",
        schedules=("learning_rate", "weight_decay", "sgd_scale"),
    ),
    Case("adabound", _ADABOUND),
    Case("adabound", {**_ADABOUND, "amsbound": True}, "amsbound"),
    Case("lamb", {"learning_rate": 1e-3}),
    Case("lamb", {"learning_rate": 1e-3, "bias_correction": True}, "corrected"),
    Case("adam_abs", {"learning_rate": 1e-1}),
]

BLOCKS: list[Case] = [
    Case(
        "project_to_tangent",
        {"channel_axes": ()},
        learning_rate=1e-1,
        solves=("sphere",),
        schedules=(),
    ),
    Case(
        "project_to_tangent",
        {"channel_axes": (-1,)},
        "filters",
        learning_rate=1e-1,
        kernels_only=True,
        solves=("sphere",),
        schedules=(),
    ),
    Case(
        "project_if_invariant",
        {},
        learning_rate=1e-3,
        solves=("parabola", "matrix", "mixed"),
        schedules=("weight_decay",),
    ),
    Case(
        "scale_by_standardized_adam",
        {"channel_axes": ()},
        learning_rate=1e-2,
        solves=("parabola", "matrix", "mixed"),
        schedules=(),
        needs_params=False,
    ),
    Case(
        "scale_by_standardized_adam",
        {"channel_axes": (-1,)},
        "filters",
        learning_rate=1e-2,
        kernels_only=True,
        solves=_ALL,
        schedules=(),
        needs_params=False,
    ),
    Case(
        "rescale_and_transport",
        {"inner": optax.sgd(1e-1, momentum=0.9), "channel_axes": (-1,)},
        "filters",
        kernels_only=True,
        solves=("sphere",),
        schedules=(),
    ),
    Case(
        "rescale_and_transport",
        {"inner": optax.sgd(1e-1, momentum=0.9), "channel_axes": ()},
        solves=("sphere",),
        schedules=(),
    ),
    *(
        Case(
            "retract_to_sphere",
            {"channel_axes": (), "radius": radius},
            str(radius),
            learning_rate=1e-1,
            solves=("sphere",),
            schedules=(),
        )
        for radius in ("initial", "current", 2.0)
    ),
    Case(
        "project_to_norm",
        {"every": 3},
        static=("labels",),
        learning_rate=1e-2,
        solves=("parabola", "matrix", "mixed", "sphere"),
        schedules=(),
    ),
    Case(
        "add_corrected_weight_decay",
        {"weight_decay": 1e-2, "learning_rate": 1e-3, "peak_learning_rate": 1e-3},
        static=("labels",),
        learning_rate=1e-3,
        solves=("parabola", "matrix", "mixed"),
    ),
    Case(
        "scale_by_swats",
        {**_SWATS, "switch": "global"},
        solves=_ALL,
        schedules=("learning_rate", "sgd_scale"),
        needs_params=False,
    ),
    Case(
        "scale_by_adabound",
        _ADABOUND,
        solves=_ALL,
        schedules=_NO_DECAY,
        needs_params=False,
    ),
    Case(
        "scale_by_lamb",
        {},
        learning_rate=1e-3,
        solves=_ALL,
        schedules=("weight_decay",),
    ),
    Case(
        "scale_by_adam_abs",
        {},
        learning_rate=1e-1,
        solves=_ALL,
        schedules=(),
        needs_params=False,
    ),
]

CASES = OPTIMIZERS + BLOCKS
# One case of each name, and those whose state or arguments differ in kind: enough
# for what does not depend on the arithmetic.
DISTINCT = [
    case
    for case in CASES
    if case.variant not in ("corrected", "current", "depthwise", "filters", "nesterov")
    and (case.variant != "layer" or case.name in ("adamh", "adamsrt", "rotational"))
]
SPHERICAL_NAMES = ("adams", "adamsrt", "adamg", "sgdmrt")

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def random_leaf(rng: np.random.Generator, shape, dtype) -> jax.Array:
    x = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * rng.normal(size=shape)
    return jnp.asarray(x, dtype)


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    """Leaves of every rank that the case works on."""
    shapes = {"bias": (3,), "conv": (3, 2, 2, 4), "dense": (4, 3)}
    return shapes if case.kernels_only else {**shapes, "scale": ()}


def make_tree(case: Case, seed: int = 0, dtype: Any = "float32") -> dict[str, Any]:
    """A tree of random parameters, or of gradients."""
    rng = np.random.default_rng(seed)
    return {k: random_leaf(rng, shape, dtype) for k, shape in shapes_of(case).items()}


def make_step(optimizer: optax.GradientTransformation) -> Callable:
    """(params, state, gradients) -> (params, state), not compiled."""

    def step(params, state, grads, **extra):
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def case_id(case: Case) -> str:
    """The name of a case in pytest's output."""
    return case.id


def compiled_fast(function, *args):
    """What a function of arrays returns, compiled with few optimizations."""
    lowered = jax.jit(function).lower(*args)
    return lowered.compile({"xla_backend_optimization_level": 0})(*args)
