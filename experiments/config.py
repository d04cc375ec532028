"""From the command line to a complete configuration, and back."""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.data import (
    check_dataset_name,
    dataset_label,
    dataset_names,
)
from experiments.errors import EXIT_CODES, UsageError, check_name
from experiments.models import MODELS
from experiments.optimizers import OPTIMIZERS, flag, resolve_options
from experiments.options import NAMES, PLACE, Config, Hyperparameters
from experiments.periods import parse_period
from experiments.protocols import PROTOCOLS, Names, Settings
from experiments.values import is_in_float32, parse_duration, parse_seeds

__all__ = [
    "Config",
    "Hyperparameters",
    "first_difference",
    "of_each_seed",
    "parse",
    "to_json",
]

_HYPERPARAMETERS = [field.name for field in dataclasses.fields(Hyperparameters)]
# In a file with another optimizer these are left aside.
_OF_THE_OPTIMIZER = (*_HYPERPARAMETERS, "sgd_milestones")

# Where an option may be from that a user chose.
_CHOSEN = _COMMAND_LINE, _FILE = ("command line", "config file")

# Options that earlier versions did not write, and what they did.
ADDED_LATER = {
    "monitor": False,
    "accumulate": 1,
    "skip_nonfinite": 0,
    "batch_norm": "global",
}

_Rule = tuple[str, Callable[[Any], bool]]
_AT_LEAST_ZERO: _Rule = ("a finite number >= 0", lambda x: 0 <= x < math.inf)
_POSITIVE: _Rule = ("a finite number > 0", lambda x: 0 < x < math.inf)
_BELOW_ONE: _Rule = ("a number in [0, 1)", lambda x: 0 <= x < 1)
_UP_TO_ONE: _Rule = ("a number in [0, 1]", lambda x: 0 <= x <= 1)
_AT_LEAST_ONE: _Rule = ("at least 1", lambda x: x >= 1)
_RISING: _Rule = (
    "rising numbers between 0 and 1",
    lambda x: list(x) == sorted(set(x)) and all(0 < m < 1 for m in x),
)
_ALLOWED: dict[str, _Rule] = {
    "epochs": _AT_LEAST_ONE,
    "batch_size": _AT_LEAST_ONE,
    "eval_batch_size": _AT_LEAST_ONE,
    "accumulate": _AT_LEAST_ONE,
    "skip_nonfinite": ("from 0 to 2147483647", lambda x: 0 <= x < 2**31),
    "image_size": _AT_LEAST_ONE,
    "validation_fraction": _BELOW_ONE,
    "seed": ("from 0 to 4294967295", lambda x: 0 <= x < 2**32),
    "milestones": _RISING,
    "sgd_milestones": _RISING,
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

    What is on the command line wins over a --protocol there, that over the --config
    file, that over a protocol named in it, and that over the defaults.

    Raises:
      UsageError: an option has a value that cannot be.
      SystemExit: with 2, from tyro, for an option it does not know; with 0 for --help.
    """
    given, filed = _names_in(args), _options_of_file(args)
    settings = _settings([*_spelled(filed), *args])
    if "protocol" in given:
        said = {*settings.options, *settings.hyperparameters}
        filed = {name: value for name, value in filed.items() if name not in said}
    base = Config(
        **settings.options, hyperparameters=Hyperparameters(**settings.hyperparameters)
    )
    config = tyro.cli(
        Config,
        default=base,
        prog="python -m experiments.train",
        description=_description(),
        args=[*_spelled(filed), *args],
    )
    check_dataset_name(config.dataset)
    _check_values(config)
    options = resolve_options(config.optimizer, config.hyperparameters.given())
    for name in ("milestones", "milestone_factor", "sgd_milestones"):
        if name in given and config.schedule != "step":
            raise UsageError(
                f"{flag(name)}: for --schedule step, not {config.schedule}"
            )
    if config.seeds is not None and "seed" in given:
        raise UsageError("--seed and --seeds: give one of them")
    return dataclasses.replace(
        config,
        hyperparameters=Hyperparameters(**options),
        # Of several seeds each has a folder of its own.
        out=config.out or (run_folder(config) if config.seeds is None else None),
        sources=_sources(config, options, given, filed, settings),
    )


def run_folder(config: Config) -> Path:
    """Where a run goes that is not told where to."""
    label = dataset_label(config.dataset)
    run = f"{label}-{config.model}-{config.optimizer}-seed{config.seed}"
    return Path("runs") / run


def of_each_seed(config: Config) -> list[Config]:
    """The runs that ``--seeds`` asks for: one for each seed, each in its own folder."""
    assert config.seeds is not None
    runs = []
    for seed in parse_seeds(config.seeds):
        run = dataclasses.replace(config, seed=seed, seeds=None)
        run = dataclasses.replace(
            run,
            out=config.out / f"seed{seed}" if config.out else run_folder(run),
            sources={**config.sources, "seed": _COMMAND_LINE},
        )
        runs.append(run)
    return runs


def to_json(config: Config) -> dict[str, Any]:
    """What ``--config`` can read again: all that decides the run's numbers."""
    options = dataclasses.asdict(dataclasses.replace(config, sources={}))
    options["hyperparameters"] = config.hyperparameters.given()
    return {name: value for name, value in options.items() if name not in PLACE}


def first_difference(
    mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first option that is not the same in two results of :func:`to_json`."""
    here, there = _flat(mine), _flat(theirs)
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            return name, here.get(name), there.get(name)
    return None


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options and hyperparameters side by side, as JSON has them."""
    options = json.loads(json.dumps(options))
    options = {**ADDED_LATER, **options}
    return {**options, **options.get("hyperparameters", {}), "hyperparameters": None}


def _settings(args: Sequence[str]) -> Settings:
    """What the protocol among the options says of the names among them."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*NAMES, *_HYPERPARAMETERS):
        spellings = {flag(name), f"--{name}"}
        default = getattr(Config, name, None)
        peek.add_argument(*spellings, nargs="?", default=default, dest=name)
    peeked = vars(peek.parse_known_args(args)[0])
    check_name("--model", peeked["model"], MODELS)
    check_name("--optimizer", peeked["optimizer"], OPTIMIZERS)
    protocol = peeked["protocol"]
    if protocol is None or not {"-h", "--help"}.isdisjoint(args):
        return Settings({}, {}, "")
    check_name("--protocol", protocol, PROTOCOLS)
    names = Names(*(peeked[name] for name in NAMES[:3]))
    check_dataset_name(names.dataset)
    given = {name: peeked[name] for name in _HYPERPARAMETERS if peeked[name]}
    return PROTOCOLS[protocol](names, given)


def _names_in(args: Sequence[str]) -> set[str]:
    """The names of the options that some arguments set."""
    words = (arg[2:].split("=")[0] for arg in args if arg.startswith("--"))
    names = {word.replace("-", "_") for word in words}
    return names | {name.removeprefix("no_") for name in names}


def _sources(
    config: Config,
    options: Mapping[str, Any],
    given: Collection[str],
    filed: Collection[str],
    settings: Settings,
) -> dict[str, str]:
    """For each option, and each hyperparameter, where its value is from."""
    protocol = {
        **dict.fromkeys(settings.options, "protocol"),
        **dict.fromkeys(settings.hyperparameters, settings.source),
    }

    def source(name: str, default: str) -> str:
        if name in given:
            return _COMMAND_LINE
        return _FILE if name in filed else protocol.get(name, default)

    own = [name for name in to_json(config) if name != "hyperparameters"]
    return {
        **{name: source(name, "default") for name in own},
        **{name: source(name, f"default of {config.optimizer}") for name in options},
    }


def _check_values(config: Config) -> None:
    options = {**vars(config), **config.hyperparameters.given()}
    for name, value in options.items():
        if value is not None and (name in _ALLOWED or isinstance(value, float)):
            allowed, is_allowed = _ALLOWED.get(name, _AT_LEAST_ZERO)
            if not is_allowed(value):
                values = value if isinstance(value, tuple) else [value]
                got = " ".join(map(str, values))
                raise UsageError(f"{flag(name)} must be {allowed}, got {got}")
        if isinstance(value, float) and not is_in_float32(value):
            raise UsageError(f"{flag(name)} must be a number of float32, got {value:g}")
    parse_period("--checkpoint-every", config.checkpoint_every)
    if config.time_limit is not None:
        parse_duration("--time-limit", config.time_limit)
    if config.seeds is not None:
        parse_seeds(config.seeds)
    if config.sgd_milestones is not None and config.optimizer != "swats":
        raise UsageError(f"--sgd-milestones: {config.optimizer} has no SGD phase")
    if config.resume and config.overwrite:
        raise UsageError("--resume goes on with a run that --overwrite would delete")


def _options_of_file(args: Sequence[str]) -> dict[str, Any]:
    """The options that --config FILE stands for, as far as they count beside others."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", nargs="?")
    peek.add_argument("--optimizer", nargs="?")
    peek.add_argument("--switch", nargs="?")
    peek.add_argument("--protocol", nargs="?")
    named, _ = peek.parse_known_args(args)
    if named.config is None:
        return {}
    options, sources = _read(Path(named.config))
    options |= options.pop("hyperparameters", {})
    another = named.optimizer not in (None, options.get("optimizer"))
    if another or named.switch not in (None, options.get("switch")):
        # The protocol says again what it says for this one.
        options = {k: v for k, v in options.items() if sources.get(k) != "protocol"}
    if another:
        options = {k: v for k, v in options.items() if k not in _OF_THE_OPTIMIZER}
    if named.protocol is not None:
        # Only what a user chose is given: no default, nothing of another protocol.
        options = {k: v for k, v in options.items() if sources.get(k, _FILE) in _CHOSEN}
    return {name: value for name, value in options.items() if value is not None}


def _spelled(options: Mapping[str, Any]) -> list[str]:
    """Options as on the command line."""
    spelled = []
    for name, value in options.items():
        if isinstance(value, list):
            spelled += [flag(name), *map(str, value)]
        elif isinstance(value, bool) and name not in _HYPERPARAMETERS:
            spelled.append(flag(name) if value else flag(f"no_{name}"))
        else:
            spelled.append(f"{flag(name)}={value}")
    return spelled


def _read(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The options in a run's config.json, and where each is from, if it says that."""
    try:
        record = json.loads(path.read_text())
        options, sources = record["config"], record.get("sources", {})
        known = {field.name for field in dataclasses.fields(Config)} - set(PLACE)
        unknown = set(options) - known
        hyperparameters = options.get("hyperparameters", {})
        if not isinstance(hyperparameters, dict) or not isinstance(sources, dict):
            raise TypeError
        unknown |= set(hyperparameters) - set(_HYPERPARAMETERS)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UsageError(f"--config {path}: not the config.json of a run") from None
    if unknown:
        raise UsageError(f"--config {path}: unknown option {min(unknown)!r}")
    return options, sources


def _description() -> str:
    """The head of --help: what can be named, and what each optimizer takes."""
    lines = [
        "Trains a model and keeps the run in a folder.",
        "",
        f"Data sets: {', '.join(dataset_names())}. Models: {', '.join(MODELS)}.",
        "Optimizers, with the hyperparameters they take and their defaults:",
    ]
    for name, optimizer in OPTIMIZERS.items():
        options = [f"{flag(o)} {value}" for o, value in optimizer.options().items()]
        lines.append(f"  {name:<10}  {'  '.join(options)}")
    codes = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    return "\n".join([*lines, "", f"Exit codes: {codes}."])
