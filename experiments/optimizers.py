"""The optimizers by name: what each is built from, and what it takes.

``OPTIMIZERS`` is the table. An optimizer's options are the arguments of its builder;
an option that is not among them is an error, not a silence.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

import spherical_optax as so
from experiments.errors import UsageError, check_name

# Arguments of the builders that are no options of the command.
_NOT_OPTIONS = {
    "labels",
    "channel_axes",
    "channel_axis",
    "mu_dtype",
    "accumulator_dtype",
    "radius",
}

Rate = optax.ScalarOrSchedule


def sgd(
    learning_rate: Rate,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """SGD with coupled L2, which Optax leaves to a block of its own."""
    return _with_l2(weight_decay, optax.sgd(learning_rate, momentum, nesterov))


def adam(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Adam with coupled L2."""
    return _with_l2(
        weight_decay, optax.adam(learning_rate, b1, b2, eps, nesterov=nesterov)
    )


def adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return optax.adamw(
        learning_rate, b1, b2, eps, weight_decay=weight_decay, nesterov=nesterov
    )


def rmsprop(
    learning_rate: Rate,
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """RMSprop with coupled L2."""
    return _with_l2(
        weight_decay, optax.rmsprop(learning_rate, decay, eps, momentum=momentum)
    )


def adabelief(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdaBelief with coupled L2."""
    return _with_l2(weight_decay, optax.adabelief(learning_rate, b1, b2, eps))


def optax_lamb(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """LAMB as Optax has it: bias corrected, weight norms not clipped."""
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay)


def muon(
    learning_rate: Rate,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    nesterov: bool = True,
) -> optax.GradientTransformation:
    """Muon for convolution kernels, seen as matrices; Adam for all other leaves.

    With updates as large as Adam's (``consistent_rms``), so that one learning rate
    serves both.
    """
    kernel = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return optax.contrib.muon(
        learning_rate,
        beta=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda x: kernel if x.ndim == 4 else None, params
        ),
    )


def rotational(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    labels: Any = None,
) -> optax.GradientTransformation:
    """Balanced rotation over Adam: the angles that AdamW would settle at."""
    base = optax.scale_by_adam(b1, b2, eps)
    return so.rotational(base, learning_rate, weight_decay, b1=b1, labels=labels)


@dataclass(frozen=True)
class Optimizer:
    """A builder, its default learning rate, and defaults other than the builder's."""

    build: Callable[..., optax.GradientTransformation]
    learning_rate: float
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The options it takes, with their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        own = {p.name: p.default for p in parameters if p.name not in _NOT_OPTIONS}
        return {**own, "learning_rate": self.learning_rate, **self.defaults}


OPTIMIZERS: dict[str, Optimizer] = {
    # spherical
    "adams": Optimizer(so.adams, 1e-3),
    "adamsrt": Optimizer(so.adamsrt, 1e-3),
    "adamg": Optimizer(so.adamg, 1e-2),
    "sgdmrt": Optimizer(so.sgdmrt, 0.1, {"momentum": 0.9}),
    # projection
    "adamp": Optimizer(so.adamp, 1e-3),
    "sgdp": Optimizer(so.sgdp, 0.1, {"momentum": 0.9}),
    # on spheres of fixed radius
    "adamh": Optimizer(so.adamh, 1e-2),
    "muonh": Optimizer(so.muonh, 1e-2),
    "rotational": Optimizer(rotational, 1e-3),
    # from Adam to SGD
    "swats": Optimizer(so.swats, 1e-3, {"threshold": 1e-5}),
    "adabound": Optimizer(so.adabound, 1e-3),
    # layer-wise and element-wise
    "lamb": Optimizer(so.lamb, 1e-2),
    "adam_abs": Optimizer(so.adam_abs, 1e-3),
    # Optax's, for comparison
    "sgd": Optimizer(sgd, 0.1),
    "adam": Optimizer(adam, 1e-3),
    "adamw": Optimizer(adamw, 1e-3),
    "rmsprop": Optimizer(rmsprop, 1e-3),
    "adabelief": Optimizer(adabelief, 1e-3),
    "optax_lamb": Optimizer(optax_lamb, 1e-2),
    "muon": Optimizer(muon, 3e-3),
}
"""Name to builder, default learning rate, and defaults that differ from its own."""


def resolve_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the options given for an optimizer with its defaults.

    Raises:
      UsageError: the optimizer is unknown, or does not take one of the options.
    """
    check_name("--optimizer", name, OPTIMIZERS)
    options = OPTIMIZERS[name].options()
    for option in given:
        if option not in options:
            taken = ", ".join(map(flag, options))
            raise UsageError(f"{flag(option)}: {name} does not take it, but {taken}")
    return {**options, **given}


def make_optimizer(
    name: str,
    options: Mapping[str, Any],
    schedule: optax.Schedule,
    label: Callable[[Any], Any],
    params: Any,
    *,
    sgd_schedule: optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """Builds an optimizer.

    Args:
      name: one of ``OPTIMIZERS``.
      options: all of its options, from :func:`resolve_options`.
      schedule: factor of the learning rate at each step.
      label: from parameters to labels, for the spherical family.
      params: the parameters or their shapes.
      sgd_schedule: of the SGD phase of SWATS; ``schedule`` if there is none.

    Raises:
      UsageError: the builder refuses an option.
    """
    build = OPTIMIZERS[name].build
    arguments = dict(options)
    schedules = {"learning_rate": schedule, "sgd_scale": sgd_schedule or schedule}
    for rate, factor in schedules.items():
        if rate in arguments:
            arguments[rate] = _scheduled(arguments[rate], factor)
    if "labels" in inspect.signature(build).parameters:
        arguments["labels"] = label(params)
    try:
        return build(**arguments)
    except ValueError as error:
        raise UsageError(f"--optimizer {name}: {error}") from None


def flag(option: str) -> str:
    """Spells an option as on the command line: ``--weight-decay``."""
    return "--" + option.replace("_", "-")


def _scheduled(value: float, schedule: optax.Schedule) -> optax.Schedule:
    return lambda step: value * schedule(step)


def _with_l2(
    weight_decay: float, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optimizer)
