"""What a hyperparameter search may choose from, and its published grid."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.errors import UsageError, check_name
from experiments.optimizers import resolve_options
from experiments.options import Hyperparameters
from experiments.protocols import read_table

# The source gives no weight decay there; the table has PyTorch's default instead.
_NOT_OF_THE_GRID = ("cifar10", "resnet20", "adamw", "weight_decay")


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: Sequence[Any]


@dataclass(frozen=True)
class Range:
    """A number between two; on a logarithmic scale if ``low`` is above 0."""

    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether the scale is logarithmic."""
        return self.low > 0


Space = Mapping[str, Choices | Range]


def parse_space(optimizer: str, texts: Sequence[str]) -> Space:
    """Reads ``weight_decay=0,1e-4`` (choices) and ``learning_rate=1e-4..1e-1``.

    Raises:
      UsageError: it is nothing of the sort, or the optimizer does not take it.
    """
    space: dict[str, Choices | Range] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.replace("-", "_")
        check_name("--search", name, vars(Hyperparameters()))
        if name in space:
            raise UsageError(f"--search: {name} comes twice")
        try:
            if ".." in values:
                low, high = map(float, values.split(".."))
                space[name] = Range(low, high)
            else:
                space[name] = Choices([_value(part) for part in values.split(",")])
        except ValueError:
            raise UsageError(
                f"--search must be like weight_decay=0,1e-4 or learning_rate=1e-4..0.1,"
                f" got {text!r}"
            ) from None
        if isinstance(range_ := space[name], Range) and not (
            0 <= range_.low < range_.high < math.inf
        ):
            raise UsageError(f"--search: 0 <= LOW < HIGH, got {text!r}")
    resolve_options(optimizer, dict.fromkeys(space))
    return space


def published_space(optimizer: str) -> Space:
    """The published grid of the spherical protocol, as far as its results show it.

    The source gives the best of a grid search for each case and not the grid. Here the
    learning rate is the optimizer's own in all of its cases, and every other option
    has all values that came out best for any optimizer anywhere: b2 0.99 and 0.999,
    weight decay 0 and 5e-4 / 2^k with k from 0 to 6, all else a single value.

    Raises:
      UsageError: the optimizer is not in the table.
    """
    cases = [
        (names.optimizer, option, value)
        for names, row in read_table().items()
        for option, value in row.items()
        if (*names, option) != _NOT_OF_THE_GRID
    ]
    known = dict.fromkeys(name for name, _, _ in cases)
    check_name("--preset spherical: --optimizer", optimizer, known)
    space = {}
    for option in dict.fromkeys(o for name, o, _ in cases if name == optimizer):
        shared = option != "learning_rate"
        values = {v for n, o, v in cases if o == option and (shared or n == optimizer)}
        space[option] = Choices(sorted(values))
    return space


def grid_points(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of choices.

    Raises:
      UsageError: there is a range, which has no grid.
    """
    values = []
    for name, part in space.items():
        if isinstance(part, Range):
            raise UsageError(f"--search {name}: a grid takes values like 0,1e-4")
        values.append(part.values)
    for point in itertools.product(*values):
        yield dict(zip(space, point, strict=True))


def edge_points(space: Space) -> Iterator[dict[str, Any]]:
    """Settings that have every choice and both ends of each range between them.

    Each is the first setting with another value for one option. A search may come to
    any of them, since it combines whatever it may choose.
    """
    values = {
        name: (part.low, part.high) if isinstance(part, Range) else part.values
        for name, part in space.items()
    }
    first = {name: edges[0] for name, edges in values.items()}
    for name, edges in values.items():
        for value in edges:
            yield {**first, name: value}


def _value(text: str) -> Any:
    """A number, a truth value or a name, as the training command takes it."""
    if text in ("True", "False"):
        return text == "True"
    if text.isidentifier():
        return text
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
