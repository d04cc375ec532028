"""How the learning rate falls over a run: factors of the first learning rate."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "step")


def make_schedule(
    name: str, total_steps: int, milestones: Sequence[float], decay: float
) -> optax.Schedule:
    """From the count of steps to a factor that begins at 1.

    Args:
      name: ``"constant"``; ``"cosine"``, down to 0 at the end; or ``"step"``.
      total_steps: steps of the whole run.
      milestones: for ``"step"``, when the factor falls, as fractions of the run.
      decay: for ``"step"``, what it is multiplied by at each milestone.
    """
    if name == "constant":
        return optax.constant_schedule(1.0)
    if name == "cosine":
        return optax.cosine_decay_schedule(1.0, total_steps)
    if name == "step":
        falls: dict[int, float] = {}
        for fraction in milestones:  # two may meet in one step of a short run
            step = max(1, round(fraction * total_steps))
            falls[step] = falls.get(step, 1.0) * decay
        return optax.piecewise_constant_schedule(1.0, falls)
    raise ValueError(f"name must be one of {SCHEDULES}, got {name!r}")


def listed(rates: Sequence[float]) -> optax.Schedule:
    """From the count of steps to the rate in a list."""
    return lambda step: jnp.asarray(rates, jnp.float32)[step]
