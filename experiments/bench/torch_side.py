# pyright: reportMissingImports=false
"""Steps of PyTorch's optimizers on the same weights and gradients, where installed."""

import importlib
from typing import Any

import jax
import numpy as np

from experiments.bench import machine
from experiments.bench.clock import Contender
from experiments.bench.rows import LEARNING_RATE, Counterpart
from experiments.bench.trees import Trees


class UnavailableError(Exception):
    """Something of PyTorch that cannot be measured here; the message says why."""


def torch_step(counterpart: Counterpart, trees: Trees) -> Contender:
    """Makes what does steps of a counterpart, on weights of its own.

    Raises:
      UnavailableError: it is not installed, or does not take such weights.
    """
    torch, device = load_torch(counterpart.package)
    params = []
    leaves = map(jax.tree.leaves, (trees.params, trees.grads))
    for x, g in zip(*leaves, strict=True):
        params.append(torch.nn.Parameter(to_torch(x, device)))
        params[-1].grad = to_torch(g, device)

    def run(calls: int) -> None:
        for _ in range(calls):
            for group in optimizer.param_groups:
                group.update(counterpart.group_options)
            optimizer.step()
        wait(torch, device)

    try:
        optimizer = make_optimizer(counterpart, params, jax.tree.leaves(trees.labels))
        run(1)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        # Releases differ in what they take; the other rows are worth having.
        raise UnavailableError(f"refused: {str(error).splitlines()[0]}") from None
    return run


def make_optimizer(
    counterpart: Counterpart,
    params: list[Any],
    labels: list[str],
    learning_rate: float = LEARNING_RATE,
) -> Any:
    """The counterpart itself; only weights labelled "filter" are spherical."""
    module = counterpart.package
    if counterpart.written_here:
        module = "experiments.bench.torch_optimizers"
    *path, name = counterpart.name.split(".")
    make = getattr(importlib.import_module(".".join((module, *path))), name)
    groups = _groups(counterpart, params, labels)
    return make(groups, lr=learning_rate, **counterpart.options)


def load_torch(package: str = "torch") -> tuple[Any, Any]:
    """PyTorch with as many threads as XLA, and the device that JAX computes on.

    Raises:
      UnavailableError: the package is missing, or PyTorch does not see the device.
    """
    for name in dict.fromkeys(("torch", package)):
        if machine.installed_version(name) is None:
            raise UnavailableError(f"{name} is not installed")
    import torch

    torch.set_num_threads(machine.cores())
    if machine.on_cpu():
        return torch, torch.device("cpu")
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return torch, torch.device("cuda")
    raise UnavailableError(f"this torch does not see the {jax.default_backend()}")


def to_torch(array: np.ndarray, device: Any) -> Any:
    """The array, with the last axes of a kernel, inputs and outputs, swapped in front.

    So (height, width, in, out) becomes (out, in, height, width), as PyTorch has it.
    """
    import torch

    dtype = getattr(torch, array.dtype.name)
    if array.ndim > 1:
        array = np.moveaxis(array, (-1, -2), (0, 1))
    if dtype == torch.bfloat16:  # which torch does not take from numpy
        array = array.astype(np.float32)
    return torch.from_numpy(array.copy(order="C")).to(device, dtype)


def wait(torch: Any, device: Any) -> None:
    """Returns when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _groups(counterpart: Counterpart, params: list[Any], labels: list[str]) -> Any:
    if counterpart.groups == "one":
        return params
    if counterpart.groups == "each":
        return [{"params": [x]} for x in params]
    pairs = list(zip(params, labels, strict=True))
    spheres = [x for x, label in pairs if label == "filter"]
    others = [x for x, label in pairs if label != "filter"]
    groups = ({"params": spheres}, {"params": others, "spherical": False})
    return [group for group in groups if group["params"]]
