"""The options of the command, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.bench.rows import COMPARISONS, NOT_COMPILED_ALONE, ROWS
from experiments.bench.targets import HERE, TARGETS
from experiments.errors import UsageError, check_name
from experiments.models import MODELS
from experiments.values import make_folder

BENCHES = ("step", "compile", "memory", "scaling", "bandwidth", "train")
"""In order: training last, since the process keeps the gigabytes that it frees."""
WHAT = (*BENCHES, "all", "traffic", "table")
DEFAULT_MODELS = {
    "step": "resnet18",
    "compile": "densenet121",
    "memory": "resnet18",
    "traffic": "resnet18",
}
"""Whose weights are updated, without --model."""


def _own(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.bench``."""

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WHAT")]
    """step, compile, memory, train, scaling, bandwidth, all of them; traffic, table."""
    json: Annotated[Path | None, _own("FILE")] = None
    """Keep every finished row here, and measure only what is not yet in it; table
    reads it."""
    overwrite: bool = False
    """Measure rows again that --json has."""
    time_limit: Annotated[str | None, _own("TIME")] = None
    """Begin no row that would end later, as 90s or 9m, and leave one that does
    undone; with all, 9m."""
    optimizers: tuple[str, ...] = ("all",)
    """Rows of step, compile, memory and traffic, swats for all of its rows; all leaves
    out, but in step, Optax's own for comparison and what compiles for minutes."""
    model: Annotated[str | None, _own("MODEL")] = None
    """Whose weights are updated; densenet121 in compile, else resnet18; train trains
    resnet20 and resnet18."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and gradients; in train, what the models compute in."""
    mu_dtype: Annotated[Literal["float32", "bfloat16"] | None, _own("DTYPE")] = None
    """Of the first moment, in optimizers that let one choose."""
    rounds: int = 25
    """Samples of each contender, where there is time for them; in compile a fifteenth,
    but two at least."""
    row_seconds: float = 2.0
    """When the rounds of a row have taken so long, three of them suffice; in train,
    five times that; not in compile."""
    batch_size: int = 128
    """Images a step in train."""
    target: Annotated[str, _own("DEVICE")] = HERE
    """traffic: the device to compile for; h100 and v5e (a TPU) need not be here."""
    readme: Annotated[Path | None, _own("FILE")] = None
    """table: put the table into this file, between the lines that mark its place."""
    figures: Annotated[Path | None, _own("FOLDER")] = None
    """Draw the figures into this folder, as PNG and SVG."""

    def benches(self) -> tuple[str, ...]:
        """The measurements that are asked for."""
        return BENCHES if self.what == "all" else (self.what,)

    def rows(self, compiled_alone: bool = False) -> list[str]:
        """The rows that --optimizers names.

        Args:
          compiled_alone: for a measurement that does nothing but compile them.
        """
        names = [name for name in ROWS if _is_named(name, self.optimizers)]
        if not compiled_alone:
            return names
        left_out = (*COMPARISONS, *NOT_COMPILED_ALONE)
        if "all" in self.optimizers:
            names = [name for name in names if name not in left_out]
        # Of SWATS both phases are one program.
        return [name for name in names if not name.endswith("_sgd")]


def check(options: Options) -> None:
    """Raises a UsageError for the first option that cannot be used."""
    check_name("WHAT", options.what, WHAT)
    if not options.optimizers:
        raise UsageError("--optimizers: name one at least, or all")
    for name in options.optimizers:
        known = ["all", *dict.fromkeys([*ROWS, "swats"])]
        check_name("--optimizers", name, known)
    if options.model is not None:
        check_name("--model", options.model, MODELS)
    check_name("--target", options.target, (HERE, *TARGETS))
    if options.target != HERE and options.what != "traffic":
        raise UsageError("--target goes with traffic alone")
    for flag, value in (
        ("--rounds", options.rounds),
        ("--batch-size", options.batch_size),
    ):
        if value < 1:
            raise UsageError(f"{flag} must be at least 1, got {value}")
    if not 0 < options.row_seconds < float("inf"):
        raise UsageError(
            f"--row-seconds must be a finite number > 0, got {options.row_seconds}"
        )
    if options.what == "table" and options.json is None:
        raise UsageError("table needs --json FILE, the results to show")
    if options.what != "table" and options.readme is not None:
        raise UsageError("--readme goes with table alone")
    if options.json is not None:
        make_folder("--json", options.json.parent)
    if options.figures is not None:
        make_folder("--figures", options.figures)


def _is_named(row: str, names: tuple[str, ...]) -> bool:
    return "all" in names or row in names or ("swats" in names and "swats_" in row)
