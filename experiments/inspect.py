"""Measures which weights of a model live on spheres, and prints the table.

    python -m experiments.inspect --model resnet18

takes the training loss of a model on a small batch of noise, asks
``spherical_optax.detect_invariance`` which groups of weights have no scale, and shows
that beside the labels that the model's own rules give.

Exit codes: 0 the labels agree; 1 they do not; 2 an option cannot be used; 130 Ctrl-C.
"""

import experiments.starting  # noqa: F401 - before what takes seconds to import

# isort: split
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import spherical_optax as so
from experiments import errors
from experiments.config import Config
from experiments.data import Dataset, StreamedDataset
from experiments.errors import UsageError, check_name
from experiments.models import MODELS, label_spheres
from experiments.progress import say
from spherical_optax.labels import leaves_with_paths

_SHAPES = {"small_resnet": (8, 8, 1), "convnet": (28, 28, 1)}
_CLASSES = {"resnet18_imagenet": 1000}
_IMAGENET = (64, 64, 3)  # small enough to be fast, large enough for every stage
_CIFAR = (32, 32, 3)


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.inspect``."""

    model: str = "small_resnet"
    """Model."""
    image_shape: Annotated[
        tuple[int, int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH CHANNELS")
    ] = None
    """Of an image; by default that of the data set that the model is made for."""
    classes: int | None = None
    """Number of classes, by default 10; 1000 for ImageNet."""
    batch_size: int = 8
    """Images in the batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in."""
    tolerance: float = 0.05
    """How much of a cosine is put down to rounding and to epsilon in normalizations."""
    seed: int = 0
    """Decides weights, batch and perturbations."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the table here, too."""


@dataclass(frozen=True)
class Row:
    """A leaf: how it is labelled by rule, and what was measured."""

    path: str
    shape: tuple[int, ...]
    by_rule: str
    measured: str
    worst_cosine: float
    worst_loss_change: float
    known: bool

    @property
    def differs(self) -> bool:
        """Whether rule and measurement disagree; what is unknown does not."""
        return self.known and self.by_rule != self.measured


def inspect_model(
    make_model: Callable[..., nnx.Module],
    images: jax.Array,
    classes: jax.Array,
    *,
    tolerance: float = 0.05,
    seed: int = 0,
) -> list[Row]:
    """Measures a model's labels on its training loss, a row a leaf.

    Args:
      make_model: constructor, called with ``rngs``.
      images: a batch, as the model takes it.
      classes: the class of each image.
      tolerance: as in :func:`so.detect_invariance`.
      seed: decides weights and perturbations.

    Raises:
      ValueError: the loss is not finite; or a leaf is known to no rule.
    """
    model = make_model(rngs=nnx.Rngs(seed))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)

    def loss_fn(params: Any, rest: Any, images: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params, rest, copy=True)(images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), classes
        )
        return jnp.mean(losses)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table tells what is unknown
        _, table = so.detect_invariance(
            loss_fn, params, rest, images, explain=True, tolerance=tolerance, seed=seed
        )
    shapes = dict(leaves_with_paths(params))
    rules = dict(leaves_with_paths(label_spheres(params)))
    return [
        Row(
            found.path,
            tuple(shapes[found.path].shape),
            rules[found.path],
            found.label,
            found.worst_cosine,
            found.worst_loss_change,
            found.known,
        )
        for found in table
    ]


def label_differences(config: Config, dataset: Dataset | StreamedDataset) -> str | None:
    """One line that names the leaves of a run whose labels are not what is measured."""
    streamed = isinstance(dataset, StreamedDataset)
    size = dataset.test.size if streamed else 0
    shape = (size, size, 3) if streamed else dataset.test.images.shape[1:]
    images, classes = _noise(shape, dataset.num_classes, 8, config.seed)
    make = partial(
        MODELS[config.model],
        channels=shape[-1],
        num_classes=dataset.num_classes,
        dtype=jnp.dtype(config.dtype),
    )
    rows = inspect_model(make, images, classes, seed=config.seed)
    wrong = [
        f"{row.path} is {row.by_rule!r} by rule and {row.measured!r} as measured"
        for row in rows
        if row.differs
    ]
    return "; ".join(wrong) or None


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    try:
        options = tyro.cli(
            Options,
            prog="python -m experiments.inspect",
            description=__doc__,
            args=args,
        )
        rows = _measure(options)
    except (UsageError, ValueError) as error:
        say(f"error: {error}", stderr=True)
        return errors.EXIT_USAGE
    _show(rows)
    if options.json is not None:
        try:
            options.json.write_text(
                json.dumps(_to_json(options, rows), indent=2) + "\n"
            )
        except OSError as error:
            say(f"error: --json: {options.json}: {error.strerror}", stderr=True)
            return errors.EXIT_USAGE
    wrong = sum(row.differs for row in rows)
    unknown = sum(not row.known for row in rows)
    say(
        f"{len(rows)} leaves: {len(rows) - wrong - unknown} as the rules say,"
        f" {wrong} otherwise, {unknown} unknown"
    )
    return errors.EXIT_FAILED if wrong else errors.EXIT_FINISHED


def _measure(options: Options) -> list[Row]:
    check_name("--model", options.model, MODELS)
    large = options.model == "resnet18_imagenet"
    shape = options.image_shape or _SHAPES.get(
        options.model, _IMAGENET if large else _CIFAR
    )
    classes = options.classes
    if classes is None:
        classes = _CLASSES.get(options.model, 10)
    for name, value, least in (
        ("--image-shape", min(shape), 1),
        ("--classes", classes, 2),
        ("--batch-size", options.batch_size, 2),
        ("--seed", options.seed, 0),
    ):
        if value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")
    if not 0 < options.tolerance < math.inf:
        raise UsageError(
            f"--tolerance must be positive and finite, got {options.tolerance}"
        )
    if options.json is not None and not options.json.parent.is_dir():
        raise UsageError(f"--json: {options.json}: there is no such folder")
    images, targets = _noise(shape, classes, options.batch_size, options.seed)
    make = partial(
        MODELS[options.model],
        channels=shape[-1],
        num_classes=classes,
        dtype=jnp.dtype(options.dtype),
    )
    try:
        return inspect_model(
            make, images, targets, tolerance=options.tolerance, seed=options.seed
        )
    except (TypeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--image-shape {' '.join(map(str, shape))}: {options.model} cannot take"
            f" such images: {reason}"
        ) from None


def _noise(
    shape: Sequence[int], classes: int, size: int, seed: int
) -> tuple[jax.Array, jax.Array]:
    """A batch of normalized noise, and classes for it."""
    keys = jax.random.split(jax.random.key(seed))
    images = jax.random.normal(keys[0], (size, *shape))
    return images, jax.random.randint(keys[1], (size,), 0, classes)


def _show(rows: Sequence[Row]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("leaf", "shape", "by rule", "measured"):
        table.add_column(title, no_wrap=True)
    for title in ("worst cosine", "worst loss change"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        measured = row.measured if row.known else "unknown"
        style = "bold red" if row.differs else None if row.known else "dim"
        table.add_row(
            row.path,
            " ".join(map(str, row.shape)),
            row.by_rule,
            measured,
            _number(row.worst_cosine),
            _number(row.worst_loss_change),
            style=style,
        )
    width = Console(width=1000).measure(table).maximum  # never cut, wherever it goes
    Console(width=max(width, Console().width)).print(table)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"


def _to_json(options: Options, rows: Sequence[Row]) -> Mapping[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "model": options.model,
        "seed": options.seed,
        "tolerance": options.tolerance,
        "leaves": [
            {
                "path": row.path,
                "shape": row.shape,
                "by_rule": row.by_rule,
                "measured": row.measured,
                "known": row.known,
                "worst_cosine": number(row.worst_cosine),
                "worst_loss_change": number(row.worst_loss_change),
            }
            for row in rows
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
