# pyright: reportMissingImports=false
"""The spherical family in plain PyTorch, since no package has it.

Written from the equations, parameter by parameter, as one would write them first.
Groups of weights are the slices of the first axis, where PyTorch keeps the output
channel. Parameter groups with ``spherical=False`` take Adam, or SGD with momentum.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

Dict = dict[str, Any]
Params = Iterable[Any]


class _Optimizer(torch.optim.Optimizer):
    """Calls ``update`` for every parameter."""

    def __init__(self, params: Params, **defaults: Any) -> None:
        super().__init__(params, {"spherical": True, **defaults})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Does a step with the gradients of the parameters."""
        for group in self.param_groups:
            for x in group["params"]:
                decay = self.l2(group)
                grad = x.grad + decay * x if decay else x.grad
                self.update(x, grad, self.state[x], group)

    def l2(self, group: Dict) -> float:
        """The factor of the weights that is added to the gradient."""
        return group["weight_decay"]

    def update(
        self, x: torch.Tensor, grad: torch.Tensor, state: Dict, group: Dict
    ) -> None:
        """Changes ``x`` and ``state`` in place."""
        raise NotImplementedError


class AdamS(_Optimizer):
    """Adam with one second moment for each filter."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(
        self, x: torch.Tensor, grad: torch.Tensor, state: Dict, group: Dict
    ) -> None:
        """Adam's moments, and a step along their quotient."""
        b1, b2 = group["betas"]
        square = _inner(grad, grad) if group["spherical"] else grad * grad
        if not state:
            state["step"] = 0
            state["m"], state["v"] = torch.zeros_like(x), torch.zeros_like(square)
        state["step"] += 1
        state["m"].mul_(b1).add_(grad, alpha=1 - b1)
        state["v"].mul_(b2).add_(square, alpha=1 - b2)
        v_hat_root = state["v"].sqrt() / math.sqrt(1 - b2 ** state["step"])
        m_hat = state["m"] / (1 - b1 ** state["step"])
        direction = m_hat / (v_hat_root + group["eps"])
        if group["spherical"]:
            self.move(x, direction, state, group)
        else:
            x.add_(direction, alpha=-group["lr"])

    def move(
        self, x: torch.Tensor, direction: torch.Tensor, state: Dict, group: Dict
    ) -> None:
        """Moves weights on spheres, and what the state says of them."""
        x.add_(direction, alpha=-group["lr"] * math.sqrt(x[0].numel()))


class AdamSRT(AdamS):
    """AdamS whose moments are rescaled and transported."""

    def move(
        self, x: torch.Tensor, direction: torch.Tensor, state: Dict, group: Dict
    ) -> None:
        """Moves as AdamS does, and takes the moments along."""
        old, m = x.clone(), state["m"]
        super().move(x, direction, state, group)
        square = _inner(x, x) + group["eps"]
        state["m"] = (_inner(old, x) * m - _inner(m, x) * old) / square
        state["v"] = state["v"] * _inner(old, old) / square


class AdamG(AdamS):
    """Moves along the sphere of radius 1; weight decay is for other weights."""

    def l2(self, group: Dict) -> float:
        """None on spheres."""
        return 0.0 if group["spherical"] else group["weight_decay"]

    def move(
        self, x: torch.Tensor, direction: torch.Tensor, state: Dict, group: Dict
    ) -> None:
        """A straight step, then back to the sphere."""
        old, m, eps = x.clone(), state["m"], group["eps"]
        moved = x - group["lr"] * direction
        norm = _inner(moved, moved).sqrt()
        norms = _inner(old, old).sqrt() * norm + eps
        state["m"] = (_inner(old, moved) * m - _inner(m, moved) * old) / norms
        x.copy_(moved / (norm + eps))


class SGDMRT(_Optimizer):
    """SGD whose momentum is rescaled and transported."""

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(
        self, x: torch.Tensor, grad: torch.Tensor, state: Dict, group: Dict
    ) -> None:
        """A step along the momentum, which is then taken along."""
        m = group["momentum"] * state["m"] + grad if state else grad.clone()
        old = x.clone()
        x.add_(m, alpha=-group["lr"])
        if group["spherical"]:
            m = (_inner(old, x) * m - _inner(m, x) * old) / _inner(x, x)
        state["m"] = m


def _inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Inner products over all axes but the first, which are kept with length 1."""
    return (x * y).sum(dim=tuple(range(1, x.dim())), keepdim=True)
