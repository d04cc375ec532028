"""What is seen of each leaf at one point: gradients, and how sure they are."""

import math
from collections.abc import Sequence

import numpy as np

from spherical_optax._groups import (
    candidates,
    inner_axes,
    length,
    lengths,
    radial,
    strength,
)
from spherical_optax._probe import Points, Probe, wide
from spherical_optax.labels import ChannelAxesTable

# A gradient this small next to the largest is taken for rounding errors.
NEGLIGIBLE = 1e-6
# One of a group that is so small next to those of the others, as well.
NEGLIGIBLE_GROUP = 1e-3
# One that changes by so much when weights change in their last digit is, too.
NOISE = 0.5


class MeasuredLeaf:
    """What is known of one leaf while it is measured.

    Attributes:
      index: which of the leaves it is.
      candidates: the labels that may hold, the finest first.
      alive: at how many points a gradient reached it.
      dead: whether close to the start its gradient is exactly zero.
      noise: of its gradient, relative.
      known: False where no gradient reached it.
      passed: labels that gradients allow and that are yet to be confirmed, with the
        worst cosine.
      excused: by label, groups that have a scale where some unit is almost dead, by an
        epsilon alone.
      label: the one that was confirmed.
    """

    def __init__(
        self, index: int, path: str, shape: tuple[int, ...], table: ChannelAxesTable
    ):
        self.index, self.path, self.shape = index, path, shape
        try:
            self.candidates = candidates(shape, table)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self.axes = {x: inner_axes(shape, table[x]) for x in self.candidates}
        self.alive, self.dead, self.noise, self.known = 0, False, 0.0, False
        self.passed: list[tuple[str, float]] = []
        self.excused: dict[str, np.ndarray] = {}
        self.label: str | None = None
        self.cosine = self.loss_change = math.nan

    def is_excused(self, label: str) -> np.ndarray:
        """Which groups have a scale at some points, by an epsilon alone."""
        return self.excused.get(label, np.asarray(False))

    def size(self, label: str) -> int:
        """The number of weights in a group."""
        return math.prod(self.shape[n] for n in self.axes[label])


class Look:
    """The loss and its gradients at a point.

    :meth:`nudge` measures gradients a second time, with the weights changed by their
    rounding, which tells gradients from rounding errors where numbers are fine enough.
    """

    def __init__(self, probe: Probe, point: Points):
        self.probe, self.point = probe, point
        _, self.loss, self.gradients = probe(point)
        self.strengths = [
            strength(g, x) for g, x in zip(self.gradients, point, strict=True)
        ]
        self.nudged: Points = self.gradients

    def is_finite(self) -> bool:
        """Whether the loss and all gradients are finite."""
        finite = all(np.all(np.isfinite(g)) for g in self.gradients)
        return finite and math.isfinite(self.loss)

    def nudge(self, rng: np.random.Generator) -> None:
        """Measures the gradients where weights are changed by their rounding."""
        spacing = 2 * self.probe.precision
        point = [
            (x * (1 + spacing * rng.standard_normal(x.shape))).astype(x.dtype)
            for x in self.point
        ]
        _, _, self.nudged = self.probe(point)

    def noise(self, leaf: MeasuredLeaf) -> float:
        """How much the gradient of a leaf changed with the rounding of weights."""
        g = self.gradients[leaf.index]
        if not np.any(g):
            return 0.0
        return length(wide(self.nudged[leaf.index]) - wide(g)) / length(g)

    def is_noise(self, leaf: MeasuredLeaf) -> bool:
        """Whether a gradient is rounding errors; in 16 bits most are, to a part."""
        return self.probe.is_fine and leaf.noise >= NOISE

    def is_alive(self, leaf: MeasuredLeaf) -> bool:
        """Whether a gradient reaches a leaf."""
        least = NEGLIGIBLE * max(self.strengths)
        return self.strengths[leaf.index] > least and not self.is_noise(leaf)

    def counted(self, leaf: MeasuredLeaf, label: str) -> np.ndarray:
        """The gradient of a leaf, without groups that are excused."""
        excused = np.broadcast_to(
            leaf.is_excused(label),
            [n for i, n in enumerate(leaf.shape) if i not in leaf.axes[label]],
        )
        excused = np.expand_dims(excused, leaf.axes[label])
        return np.where(excused, 0.0, wide(self.gradients[leaf.index]))

    def radial(self, leaf: MeasuredLeaf, label: str) -> np.ndarray:
        """The absolute value of <g, x> in every group."""
        i = leaf.index
        return radial(self.gradients[i], self.point[i], leaf.axes[label])

    def rounding(self, leaf: MeasuredLeaf, label: str) -> np.ndarray:
        """How much of that changed with the rounding of weights."""
        i = leaf.index
        change = wide(self.nudged[i]) - wide(self.gradients[i])
        return radial(change, self.point[i], leaf.axes[label])

    def lengths(self, leaf: MeasuredLeaf, label: str) -> np.ndarray:
        """|g| |x| in every group."""
        axes = leaf.axes[label]
        slopes = lengths(self.gradients[leaf.index], axes)
        return slopes * lengths(self.point[leaf.index], axes)

    def cosines(self, leaf: MeasuredLeaf, label: str) -> np.ndarray:
        """The cosine of every group; NaN where there is no gradient.

        Or nothing but rounding errors.
        """
        i, axes = leaf.index, leaf.axes[label]
        products = self.lengths(leaf, label)
        # The strength of a leaf of n equal groups is n times theirs.
        least = max(
            NEGLIGIBLE * max(self.strengths) / products.size,
            NEGLIGIBLE_GROUP * float(np.sqrt(np.mean(products**2))),
        )
        seen = products > least
        if self.probe.is_fine:
            g = self.gradients[i]
            change = lengths(wide(self.nudged[i]) - wide(g), axes)
            seen &= change < NOISE * lengths(g, axes)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(seen, self.radial(leaf, label) / products, np.nan)


def scaled(
    look: Look, leaves: Sequence[MeasuredLeaf], factors: Sequence[np.ndarray]
) -> Look:
    """The look at the point where the groups of some leaves are scaled."""
    point = list(look.point)
    for leaf, factor in zip(leaves, factors, strict=True):
        x = point[leaf.index]
        point[leaf.index] = (x * factor).astype(x.dtype)
    return Look(look.probe, point)
