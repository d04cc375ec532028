"""What is compared: each optimizer, its reference in Optax, its PyTorch counterpart.

``ROWS`` is the table. The reference is what an optimizer is built on: SGD with
momentum, Muon, else Adam.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import optax

import spherical_optax as so
from experiments.optimizers import OPTIMIZERS

# So small that thousands of steps with one gradient leave the weights where they are,
# and with them the branches that AdamP and SGDP take.
LEARNING_RATE = 1e-6
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Counterpart:
    """An optimizer of PyTorch.

    Attributes:
      package: that has to be installed.
      name: the class in it; a dot leads into a module of it.
      options: beside the learning rate.
      groups: how parameters are grouped: all in one, spherical ones apart from the
        others, or every parameter for itself.
      group_options: of every parameter group, set again before each step.
      written_here: not a package's own but ``torch_optimizers``'.
    """

    package: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: Literal["one", "spheres", "each"] = "one"
    group_options: Mapping[str, Any] = field(default_factory=dict)
    written_here: bool = False

    @property
    def label(self) -> str:
        """What to call it in a table."""
        if self.written_here:
            return f"{self.name}, written here"
        fused = ", fused" if self.options.get("fused") else ""
        return f"{self.package}.{self.name}{fused}"


def _written_here(name: str, **options: Any) -> Counterpart:
    return Counterpart("torch", name, options, "spheres", written_here=True)


def _swats(groups: Literal["one", "each"], phase: str) -> Counterpart:
    # Without its phase set anew it would leave Adam within a few equal gradients.
    again = {"phase": phase, "lr": LEARNING_RATE}
    return Counterpart("pytorch_optimizer", "SWATS", {"eps": 1e-8}, groups, again)


_FUSED, _SGD = {"fused": True}, {"momentum": _MOMENTUM}
_TORCH_ADAM = Counterpart("torch", "optim.Adam", _FUSED)
_TORCH_SGD = Counterpart("torch", "optim.SGD", {**_SGD, **_FUSED})
_TORCH_ADAMW = Counterpart("torch", "optim.AdamW", {**_FUSED, "weight_decay": 1e-4})
# As in the first version of the paper: no bias correction, weight norms clipped.
_LAMB = Counterpart("pytorch_optimizer", "Lamb", {"adam_debias": True})

Build = Callable[..., optax.GradientTransformation]


@dataclass(frozen=True)
class Row:
    """An optimizer to measure.

    Attributes:
      build: makes it; called with a learning rate and ``options``.
      reference: the name of another row, or its own.
      torch: its counterpart; None where there is none.
      floor: arrays of the size of the weights that a step has to read or write, each
        pass over memory once; None where arithmetic takes the time.
      options: arguments other than the defaults.
    """

    build: Build
    reference: str
    torch: Counterpart | None
    floor: int | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(
        self,
        labels: Any,
        mu_dtype: str | None = None,
        learning_rate: float = LEARNING_RATE,
    ) -> optax.GradientTransformation:
        """The optimizer.

        Args:
          labels: of the weights, for those that take labels.
          mu_dtype: type of the first moment, for those that have a choice.
          learning_rate: other than the one to measure with.
        """
        taken = inspect.signature(self.build).parameters
        arguments = dict(self.options)
        if "labels" in taken:
            arguments["labels"] = labels
        if name := self._moment_option():
            arguments[name] = mu_dtype
        return self.build(learning_rate, **arguments)

    def _moment_option(self) -> str | None:
        taken = inspect.signature(self.build).parameters
        names = ("mu_dtype", "accumulator_dtype")
        return next((name for name in names if name in taken), None)


def _ours(
    name: str,
    torch: Counterpart | None,
    floor: int | None,
    reference: str = "adam",
    **options: Any,
) -> Row:
    known = OPTIMIZERS[name]
    return Row(known.build, reference, torch, floor, {**known.defaults, **options})


def _rotational(
    learning_rate: optax.ScalarOrSchedule, labels: Any
) -> optax.GradientTransformation:
    return so.rotational(optax.scale_by_adam(), learning_rate, 1e-4, labels=labels)


def _swats_rows() -> dict[str, Row]:
    """Both phases; PyTorch's switches all parameters of a group together."""
    rows = {}
    known: dict[str, Literal["one", "each"] | None] = {
        "local": "each",
        "global": "one",
        "vector": None,
    }
    for switch, groups in known.items():
        for phase, threshold in (("adam", 0.0), ("sgd", 1e30)):
            torch = _swats(groups, phase) if groups else None
            options = {"switch": switch, "threshold": threshold}
            rows[f"swats_{switch}_{phase}"] = _ours("swats", torch, 7, **options)
    return rows


ROWS: dict[str, Row] = {
    # Optax's: the references first
    "adam": Row(optax.adam, "adam", _TORCH_ADAM, 7),
    "sgd": Row(optax.sgd, "sgd", _TORCH_SGD, 5, {"momentum": _MOMENTUM}),
    # spherical
    "adams": _ours("adams", _written_here("AdamS"), 6),
    "adamsrt": _ours("adamsrt", _written_here("AdamSRT"), 8),
    "adamg": _ours("adamg", _written_here("AdamG"), 8),
    "sgdmrt": _ours("sgdmrt", _written_here("SGDMRT", momentum=_MOMENTUM), 8, "sgd"),
    # projection
    "adamp": _ours("adamp", Counterpart("adamp", "AdamP"), 10),
    "sgdp": _ours("sgdp", Counterpart("adamp", "SGDP", _SGD), 7, "sgd"),
    # from Adam to SGD
    **_swats_rows(),
    "adabound": _ours("adabound", Counterpart("pytorch_optimizer", "AdaBound"), 7),
    # layer-wise and element-wise
    "lamb": _ours("lamb", _LAMB, 10),
    "adam_abs": _ours("adam_abs", None, 7),
    # any optimizer on spheres
    "adamh": Row(so.adamh, "adam", None, 11),
    "muonh": Row(so.muonh, "muon", None, None),
    "rotational": Row(_rotational, "adam", None, 11),
    # Optax's, for comparison
    "muon": _ours("muon", None, None, "muon"),
    "adamw": Row(optax.adamw, "adam", _TORCH_ADAMW, 7),
    "optax_lamb": Row(optax.lamb, "adam", None, 10),
}
"""Name to what is measured under it; ``optax_lamb`` and the like are Optax's."""

REFERENCES = tuple(dict.fromkeys(row.reference for row in ROWS.values()))
"""Rows that others are compared with."""
COMPARISONS = ("muon", "adamw", "optax_lamb")
"""Rows of Optax's optimizers that are no reference for plain ones."""
NOT_COMPILED_ALONE = ("muonh", "swats_global_adam", "swats_vector_adam")
"""Rows that take minutes to compile for a deep network, as does their reference, and
those that are alike to another."""
