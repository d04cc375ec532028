"""Published ways to run an experiment, each as the options that it stands for.

``--protocol NAME`` sets them; an option given beside it wins. Milestones are fractions
of the run, so another ``--epochs`` moves them in proportion.
"""

import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UsageError
from experiments.optimizers import OPTIMIZERS, flag

TABLE = Path(__file__).parent / "hyperparameters.toml"

# What a table has to say of an optimizer that takes it.
_TABULATED = ("learning_rate", "momentum", "b1", "b2", "decay", "weight_decay")


class Names(NamedTuple):
    """What a run combines."""

    dataset: str
    model: str
    optimizer: str


class Settings(NamedTuple):
    """What a protocol says of a combination."""

    options: dict[str, Any]  # of the command, by the names of their fields
    hyperparameters: dict[str, Any]  # of the optimizer
    source: str  # where the hyperparameters are from


def spherical(names: Names, given: Mapping[str, Any]) -> Settings:
    """The protocol of the spherical family (Roburin et al. 2020).

    405 epochs in batches of 128 images (ImageNet: 256); the learning rate falls to a
    tenth at 135, 225 and 315. 5 % of the training images are held out for validation,
    by the seed, and the epoch with the best validation accuracy decides the test
    accuracy. Hyperparameters are those of the table.
    """
    imagenet = names.dataset == "imagenet2012"
    options = {
        "epochs": 405,
        "batch_size": 256 if imagenet else 128,
        "eval_batch_size": 512 if imagenet else 1024,
        "schedule": "step",
        "milestones": (135 / 405, 225 / 405, 315 / 405),
        "milestone_factor": 0.1,
        "validation_fraction": 0.05,
        "augment": True,
    }
    row = read_table().get(names)
    if row is None:
        _check_all_given(names, given)
    where = f"{TABLE.name} [{'.'.join(names)}]"
    return Settings(options, dict(row or {}), where)


def swats(names: Names, given: Mapping[str, Any]) -> Settings:
    """The protocol of the local switch from Adam to SGD, and of AdaBound beside it.

    200 epochs in batches of 128 images, and the accuracy of the last one. A tenth of
    the learning rate from epoch 100 on; where SWATS switches all leaves together, in
    a DenseNet from 150 on. Leaves that SWATS switched on their own have a decay of
    their own: at 75 and 150.
    """
    if names.optimizer not in ("swats", "adabound"):
        raise UsageError(
            f"--protocol swats: for --optimizer swats or adabound, not"
            f" {names.optimizer}; --epochs 200 --batch-size 128 --schedule step"
            f" --milestones 0.5 is its training"
        )
    local = names.optimizer == "swats" and given.get("switch", "local") == "local"
    together = names.optimizer == "swats" and not local
    fall = 150 if together and names.model.startswith("densenet") else 100
    options: dict[str, Any] = {
        "epochs": 200,
        "batch_size": 128,
        "schedule": "step",
        "milestones": (fall / 200,),
        "milestone_factor": 0.1,
        "sgd_milestones": (75 / 200, 150 / 200) if local else None,
        "validation_fraction": 0.0,
        "augment": True,
    }
    hyperparameters: dict[str, Any] = {"learning_rate": 1e-3}
    if names.optimizer == "swats":
        hyperparameters["threshold"] = 1e-5
    else:
        hyperparameters["final_learning_rate"] = 0.1
    return Settings(options, hyperparameters, "protocol")


PROTOCOLS: dict[str, Callable[[Names, Mapping[str, Any]], Settings]] = {
    "spherical": spherical,
    "swats": swats,
}
"""Name to protocol: from the combination, and the options given on the command line,
to settings. It raises a UsageError where it has none for the combination."""


@cache
def read_table() -> dict[Names, dict[str, float]]:
    """The published hyperparameters of each combination of the spherical protocol."""
    with TABLE.open("rb") as file:
        table = tomllib.load(file)
    return {
        Names(dataset, model, optimizer): row
        for dataset, models in table.items()
        for model, optimizers in models.items()
        for optimizer, row in optimizers.items()
    }


def _check_all_given(names: Names, given: Mapping[str, Any]) -> None:
    """An error, unless the command line has all that a table would have said."""
    taken = OPTIMIZERS[names.optimizer].options()
    missing = [name for name in _TABULATED if name in taken and name not in given]
    if missing:
        raise UsageError(
            f"--protocol spherical: {TABLE.name} has nothing for {names.optimizer} with"
            f" {names.model} on {names.dataset}; give"
            f" {' '.join(map(flag, missing))}, or choose from: {_contents()}"
        )


def _contents() -> str:
    """What the table has, in one line: ``cifar10 resnet18 (sgd adam ...)``."""
    rows: dict[tuple[str, str], list[str]] = {}
    for dataset, model, optimizer in read_table():
        rows.setdefault((dataset, model), []).append(optimizer)
    return "; ".join(
        f"{dataset} {model} ({' '.join(optimizers)})"
        for (dataset, model), optimizers in rows.items()
    )
