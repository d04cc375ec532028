# pyright: reportMissingImports=false
"""Training steps in PyTorch, as fast as its manual says to make them."""

import math
from typing import Any

import jax

from experiments.bench.clock import Contender
from experiments.bench.torch_side import UnavailableError, load_torch, wait
from experiments.bench.trees import model_shapes


def torch_training(model: str, batch: Any, dtype: str) -> Contender:
    """Makes what does training steps of the same model with fused Adam.

    On an accelerator with channels last and ``torch.compile``; with bfloat16 under
    autocast.

    Args:
      model: a name in ``torch_models.SHAPES``.
      batch: images, labels and the statistics to normalize by.
      dtype: what the model computes in.

    Raises:
      UnavailableError: PyTorch is not installed for this device, or the model is not
        written for it.
    """
    torch, device = load_torch()
    from experiments.bench.torch_models import SHAPES, ResNet

    if model not in SHAPES:
        raise UnavailableError(f"{model} is not written for torch")
    torch.manual_seed(0)
    net: Any = ResNet(*SHAPES[model]).to(device)
    check_same_size(net, model)
    images = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2)
    if device.type == "cuda":
        net = torch.compile(net.to(memory_format=torch.channels_last))
    else:
        images = images.contiguous()
    labels = torch.from_numpy(batch.labels).to(device, torch.int64)
    shape = (1, -1, 1, 1)
    mean, std = (
        torch.tensor(x, device=device).view(shape) for x in (batch.mean, batch.std)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-6, fused=True)
    low = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def run(calls: int) -> None:
        for _ in range(calls):
            optimizer.zero_grad(set_to_none=True)
            with low:
                logits = net((images.float() - mean) / std)
                loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
        wait(torch, device)

    try:
        run(1)
    except RuntimeError as error:  # torch.compile needs more than torch
        raise UnavailableError(f"fails: {str(error).splitlines()[0]}") from None
    return run


def check_same_size(net: Any, model: str) -> None:
    """An error unless the model has as many weights as the one in Flax."""
    there = sum(x.numel() for x in net.parameters())
    here = sum(math.prod(x.shape) for x in jax.tree.leaves(model_shapes(model)))
    if there != here:
        raise AssertionError(f"{model}: {here} weights in Flax, {there} in PyTorch")
