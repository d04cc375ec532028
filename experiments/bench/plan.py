"""What has to be measured: tasks of one row or a few, in order."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from experiments.bench import trees
from experiments.bench.bandwidth import measure_bandwidth
from experiments.bench.clock import Budget
from experiments.bench.compiling import measure_compile
from experiments.bench.memory import measure_memory
from experiments.bench.options import DEFAULT_MODELS, Options
from experiments.bench.rows import REFERENCES
from experiments.bench.scaling import (
    LEAVES_OF_WEIGHTS,
    WEIGHTS_OF_LEAVES,
    measure_scaling,
)
from experiments.bench.step import measure_step
from experiments.bench.store import Job
from experiments.bench.traffic import measure_traffic
from experiments.bench.training import measure_train, random_batch

Results = Mapping[str, Mapping[str, Any]]

_TRAINED = ("resnet20", "resnet18")
_WEIGHTS = tuple(10**n for n in range(4, 9))
_LEAVES = (1, 10, 100, 1000)
_TOGETHER = 6  # rows of compile beside one reference


@dataclass(frozen=True)
class Task:
    """Rows that are measured in one alternating run.

    Attributes:
      jobs: the rows.
      measure: from their names, or some of them, to results by name.
      seconds: how long one row takes, at first guess.
    """

    jobs: Sequence[Job]
    measure: Callable[[Sequence[str]], Results]
    seconds: float


def plan(options: Options) -> list[Task]:
    """All tasks that the options ask for."""
    return [task for bench in options.benches() for task in _PLANS[bench](options)]


def _step(options: Options) -> Iterator[Task]:
    model = options.model or DEFAULT_MODELS["step"]
    settings = {
        "model": model,
        "dtype": options.dtype,
        "mu_dtype": options.mu_dtype,
        "rounds": options.rounds,
    }

    def measure(names: Sequence[str]) -> Results:
        (name,) = names
        values = _trees(model, options.dtype)
        return {
            name: measure_step(
                name,
                values,
                _budget(options),
                mu_dtype=options.mu_dtype,
            )
        }

    for name in options.rows():
        yield Task([Job("step", name, settings)], measure, options.row_seconds + 3)


def _compile(options: Options) -> Iterator[Task]:
    model = options.model or DEFAULT_MODELS["compile"]
    rounds = min(options.rounds, max(2, math.ceil(options.rounds / 15)))
    settings = {"model": model, "rounds": rounds}

    def measure(names: Sequence[str]) -> Results:
        shapes = _shapes(model)
        return measure_compile(names, shapes, trees.label(shapes), rounds)

    wanted = options.rows(compiled_alone=True)
    rows = [name for name in wanted if name not in REFERENCES]
    for start in range(0, len(rows), _TOGETHER):
        jobs = [Job("compile", n, settings) for n in rows[start : start + _TOGETHER]]
        yield Task(jobs, measure, 9.0 * rounds)


def _memory(options: Options) -> Iterator[Task]:
    model = options.model or DEFAULT_MODELS["memory"]
    settings = {"model": model, "dtype": options.dtype, "mu_dtype": options.mu_dtype}

    def measure(names: Sequence[str]) -> Results:
        (name,) = names
        shapes = trees.as_dtype(_shapes(model), options.dtype)
        labels = trees.label(shapes)
        return {name: measure_memory(name, shapes, labels, options.mu_dtype)}

    for name in options.rows(compiled_alone=True):
        yield Task([Job("memory", name, settings)], measure, 3.0)


def _traffic(options: Options) -> Iterator[Task]:
    model = options.model or DEFAULT_MODELS["traffic"]
    settings = {
        "model": model,
        "dtype": options.dtype,
        "mu_dtype": options.mu_dtype,
        "target": options.target,
    }

    def measure(names: Sequence[str]) -> Results:
        (name,) = names
        shapes = trees.as_dtype(_shapes(model), options.dtype)
        labels, dtype = trees.label(shapes), options.mu_dtype
        return {name: measure_traffic(name, shapes, labels, dtype, options.target)}

    for name in options.rows(compiled_alone=True):
        yield Task([Job("traffic", name, settings)], measure, 5.0)


def _train(options: Options) -> Iterator[Task]:
    models = [options.model] if options.model else _TRAINED
    settings = {
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "rounds": options.rounds,
    }

    def measure(names: Sequence[str]) -> Results:
        (name,) = names
        batch = random_batch(options.batch_size)
        budget = Budget(options.rounds, 5 * options.row_seconds)
        result = measure_train(name, batch, options.dtype, budget)
        return {name: result}

    for model in models:
        seconds = 20 + 5 * options.row_seconds
        yield Task([Job("train", model, settings)], measure, seconds)


def _scaling(options: Options) -> Iterator[Task]:
    places = [("weights", n, LEAVES_OF_WEIGHTS) for n in _WEIGHTS]
    places += [("leaves", WEIGHTS_OF_LEAVES, n) for n in _LEAVES]
    for axis, weights, leaves in places:
        settings = {
            "axis": axis,
            "weights": weights,
            "leaves": leaves,
            "rounds": options.rounds,
        }

        def measure(
            names: Sequence[str], weights: int = weights, leaves: int = leaves
        ) -> Results:
            (name,) = names
            return {name: measure_scaling(weights, leaves, _budget(options))}

        name = f"{axis} {weights if axis == 'weights' else leaves:,}"
        seconds = 3 + 2e-2 * leaves + 2e-7 * weights
        yield Task([Job("scaling", name, settings)], measure, seconds)


def _bandwidth(options: Options) -> Iterator[Task]:
    weights = _WEIGHTS[-1]
    settings = {"weights": weights, "rounds": options.rounds}

    def measure(names: Sequence[str]) -> Results:
        (name,) = names
        budget = _budget(options)
        return {name: measure_bandwidth(name, weights, budget)}

    for name in ("adam", "adamsrt"):
        yield Task([Job("bandwidth", name, settings)], measure, 15.0)


def _budget(options: Options) -> Budget:
    return Budget(options.rounds, options.row_seconds)


_shapes = cache(trees.model_shapes)


@cache
def _trees(model: str, dtype: str) -> trees.Trees:
    return trees.random_trees(_shapes(model), dtype)


_PLANS: dict[str, Callable[[Options], Iterator[Task]]] = {
    "step": _step,
    "compile": _compile,
    "memory": _memory,
    "train": _train,
    "scaling": _scaling,
    "bandwidth": _bandwidth,
    "traffic": _traffic,
}
