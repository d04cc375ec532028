"""The options of a run, as dataclasses that tyro turns into a command line."""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.data import DATASETS
from experiments.errors import UsageError, check_name
from experiments.models import MODELS
from experiments.optimizers import OPTIMIZERS, flag, resolve_options


def _own(kind: Any, metavar: str) -> Any:
    """An option whose default, None, has to be explained and not shown."""
    return Annotated[kind | None, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


if TYPE_CHECKING:
    Number = float | None
    Flag = bool | None
    Switch = Literal["local", "global", "vector"] | None
    File = Path | None
    Folder = Path | None
else:
    Number = _own(float, "FLOAT")
    Flag = _own(bool, "{True,False}")
    Switch = _own(Literal["local", "global", "vector"], "{local,global,vector}")
    File, Folder = _own(Path, "FILE"), _own(Path, "FOLDER")


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the optimizer.

    One that is not given has the optimizer's own default; one that the optimizer does
    not take is an error. The table above says which takes what.
    """

    learning_rate: Number = None
    """At the first step; --schedule says what becomes of it."""
    weight_decay: Number = None
    """Coupled L2; decoupled in adamw, adamp, sgdp, muon; within the norm in lamb."""
    b1: Number = None
    """Decay rate of the first moment."""
    b2: Number = None
    """Decay rate of the second moment."""
    eps: Number = None
    """Added to the denominator."""
    momentum: Number = None
    """Decay rate of the momentum."""
    dampening: Number = None
    """The momentum takes in 1 - dampening of each gradient."""
    decay: Number = None
    """rmsprop: decay rate of the mean square."""
    nesterov: Flag = None
    """Nesterov's look-ahead."""
    amsgrad: Flag = None
    """swats: take the running maximum of the second moment."""
    delta: Number = None
    """adamp, sgdp: weights with a cosine under it pass for scale-invariant."""
    wd_ratio: Number = None
    """adamp, sgdp: factor of the weight decay of scale-invariant weights."""
    threshold: Number = None
    """swats: how close SGD's learning rate must be to its running mean."""
    switch: Switch = None
    """swats: which leaves go over to SGD together."""
    sgd_scale: Number = None
    """swats: factor of the learning rate in the SGD phase."""
    final_learning_rate: Number = None
    """adabound: learning rate that the bounds close in on."""
    gamma: Number = None
    """adabound: how fast the bounds close."""
    amsbound: Flag = None
    """adabound: take the running maximum of the second moment."""
    bias_correction: Flag = None
    """lamb: correct the bias of both moments."""
    max_weight_norm: Number = None
    """lamb: bound of the weight norm in the trust ratio."""

    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        pairs = dataclasses.asdict(self).items()
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True)
class Config:
    """Options of ``python -m experiments.train``."""

    dataset: str = "digits"
    """Data set."""
    model: str = "small_resnet"
    """Model."""
    optimizer: str = "adamsrt"
    """Optimizer; the table above lists all."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step; the last, incomplete batch of an epoch is left out."""
    seed: int = 0
    """Decides initial weights, order and augmentation; not the test split."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """The learning rate: constant, falling to 0 along a cosine, or in steps."""
    milestones: tuple[float, ...] = (1 / 3, 5 / 9, 7 / 9)
    """Where it falls with --schedule step, as fractions of the run."""
    milestone_factor: float = 0.1
    """What it is multiplied by at each of --milestones."""
    augment: bool = True
    """Augment the training images, in the way of the data set."""
    out: Folder = None
    """Run folder, by default runs/DATASET-MODEL-OPTIMIZER-seedSEED."""
    overwrite: bool = False
    """Replace the run that is in the run folder."""
    config: File = None
    """Start from the config.json of a run; options beside it win, and with another
    --optimizer its hyperparameters are left aside."""
    hyperparameters: tyro.conf.OmitArgPrefixes[Hyperparameters] = dataclasses.field(
        default_factory=Hyperparameters
    )


# Options that say where a run goes and not what it is: left out of config.json.
_PLACE = ("out", "overwrite", "config")

_Rule = tuple[str, Callable[[Any], bool]]
_AT_LEAST_ZERO: _Rule = ("a finite number >= 0", lambda x: 0 <= x < math.inf)
_POSITIVE: _Rule = ("a finite number > 0", lambda x: 0 < x < math.inf)
_BELOW_ONE: _Rule = ("a number in [0, 1)", lambda x: 0 <= x < 1)
_UP_TO_ONE: _Rule = ("a number in [0, 1]", lambda x: 0 <= x <= 1)
_AT_LEAST_ONE: _Rule = ("at least 1", lambda x: x >= 1)
_ALLOWED: dict[str, _Rule] = {
    "epochs": _AT_LEAST_ONE,
    "batch_size": _AT_LEAST_ONE,
    "seed": ("from 0 to 4294967295", lambda x: 0 <= x < 2**32),
    "milestones": (
        "rising numbers between 0 and 1",
        lambda x: list(x) == sorted(set(x)) and all(0 < m < 1 for m in x),
    ),
    "b1": _BELOW_ONE,
    "b2": _BELOW_ONE,
    "decay": _BELOW_ONE,
    "momentum": _BELOW_ONE,
    "dampening": _UP_TO_ONE,
    "gamma": _POSITIVE,
    "max_weight_norm": _POSITIVE,
}
"""What an option may be; the numbers that are not here, ``_AT_LEAST_ZERO``."""


def parse(args: Sequence[str]) -> Config:
    """Reads the command line and completes it: no hyperparameter is left None.

    Raises:
      UsageError: an option has a value that cannot be.
      SystemExit: with 2, from tyro, for an option it does not know; with 0 for --help.
    """
    config = tyro.cli(
        Config,
        prog="python -m experiments.train",
        description=_description(),
        args=[*_args_of_file(args), *args],
    )
    check_name("--dataset", config.dataset, DATASETS)
    check_name("--model", config.model, MODELS)
    _check_values(config)
    options = resolve_options(config.optimizer, config.hyperparameters.given())
    run = f"{config.dataset}-{config.model}-{config.optimizer}-seed{config.seed}"
    return dataclasses.replace(
        config,
        hyperparameters=Hyperparameters(**options),
        out=config.out or Path("runs") / run,
    )


def to_json(config: Config) -> dict[str, Any]:
    """What ``--config`` can read again: all that decides the run's numbers."""
    options = dataclasses.asdict(config)
    options["hyperparameters"] = config.hyperparameters.given()
    return {name: value for name, value in options.items() if name not in _PLACE}


def _check_values(config: Config) -> None:
    options = {**vars(config), **config.hyperparameters.given()}
    for name, value in options.items():
        if name in _ALLOWED or isinstance(value, float):
            allowed, is_allowed = _ALLOWED.get(name, _AT_LEAST_ZERO)
            if not is_allowed(value):
                values = value if isinstance(value, tuple) else [value]
                got = " ".join(map(str, values))
                raise UsageError(f"{flag(name)} must be {allowed}, got {got}")


def _args_of_file(args: Sequence[str]) -> list[str]:
    """The options that --config FILE stands for, spelled as on the command line."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", nargs="?")
    peek.add_argument("--optimizer", nargs="?")
    named, _ = peek.parse_known_args(args)
    if named.config is None:
        return []
    options = _read(Path(named.config))
    hyperparameters = options.pop("hyperparameters", {})
    if named.optimizer in (None, options.get("optimizer")):
        options |= hyperparameters
    spelled = []
    for name, value in options.items():
        if isinstance(value, list):
            spelled += [flag(name), *map(str, value)]
        elif isinstance(value, bool) and name not in hyperparameters:
            spelled.append(flag(name) if value else flag(f"no_{name}"))
        else:
            spelled.append(f"{flag(name)}={value}")
    return spelled


def _read(path: Path) -> dict[str, Any]:
    """The options in a run's config.json, under its key ``config``."""
    try:
        options = json.loads(path.read_text())["config"]
        known = {field.name for field in dataclasses.fields(Config)} - set(_PLACE)
        unknown = set(options) - known
        hyperparameters = options.get("hyperparameters", {})
        unknown |= set(hyperparameters) - set(vars(Hyperparameters()))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UsageError(f"--config {path}: not the config.json of a run") from None
    if unknown:
        raise UsageError(f"--config {path}: unknown option {min(unknown)!r}")
    return options


def _description() -> str:
    """The head of --help: what can be named, and what each optimizer takes."""
    lines = [
        "Trains a model and keeps the run in a folder.",
        "",
        f"Data sets: {', '.join(DATASETS)}. Models: {', '.join(MODELS)}.",
        "Optimizers, with the hyperparameters they take and their defaults:",
    ]
    for name, optimizer in OPTIMIZERS.items():
        options = [f"{flag(o)} {value}" for o, value in optimizer.options().items()]
        lines.append(f"  {name:<10}  {'  '.join(options)}")
    return "\n".join(lines)
