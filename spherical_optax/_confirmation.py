"""Confirms labels: scales the groups of leaves, and looks what depends on it."""

from collections.abc import Callable, Sequence

import numpy as np

from spherical_optax import geometry
from spherical_optax._groups import agree, alike, length
from spherical_optax._look import Look, MeasuredLeaf, scaled
from spherical_optax._probe import wide
from spherical_optax.labels import ChannelAxesTable

# Above this part of the tolerance, scale has to matter less for larger weights.
FADING = 0.2
# Powers of two: weights are scaled without rounding, and where the scale does not
# matter, everything after them is rounded alike.
FACTORS = (0.5, 2.0, 4.0)
# Weights so much smaller have to be free of scale as well, but for an epsilon. What
# that adds to a cosine grows by 4, or by 16 behind a product of two outputs; twice that
# is allowed.
SHRUNK, GROWN = 0.5, 32.0
# Of a few groups, in which a unit is almost dead, that may be more, of what each has.
FEW, GROWN_FEW = 0.5, 256.0
# Weights so much larger leave the epsilon of a normalization next to no part. In a deep
# network what is left of it at the start can flip units, and so turn gradients. Where
# it is as large as what is normalized, that is so of weights larger by the square.
ENLARGED = 32.0
# A radial part of at most so many times what rounding makes of it is due to that.
ROUNDING = 2.0
# So small a part of a factor, as a power of it, that a loss follows its gradient.
SMALL = 1 / 16
# An epsilon fades with the square of that; a bias or a shortcut, added to what has
# become larger, with that itself. Between both, and what part of the tolerance is 0.
FADED, VANISHED = 1 / 150, 1e-3


class Confirmation:
    """Confirms the label that is first in the list of each leaf, at some points.

    Attributes:
      bases: looks at the points where weights are scaled.
      allowed: ``allowed(leaf, tolerance)`` is the part of the cosine of random vectors
        that a leaf may have.
    """

    def __init__(
        self,
        bases: Sequence[Look],
        allowed: Callable[[MeasuredLeaf, float], float],
        table: ChannelAxesTable,
        tolerance: float,
        rng: np.random.Generator,
    ):
        self.bases, self.allowed, self.table = bases, allowed, table
        self.tolerance, self.rng = tolerance, rng

    def run(self, leaves: list[MeasuredLeaf]) -> None:
        """Scales the groups of all leaves at once; halves the list where it matters.

        A leaf gets the label, or loses it from its list.
        """
        for leaf in leaves:
            leaf.loss_change = 0.0
        smaller = all(self._holds_when_smaller(base, leaves) for base in self.bases)
        sizes = (1.0, ENLARGED, ENLARGED**2) if self._is_fine() else (1.0, ENLARGED)
        for times in sizes if smaller else ():
            changes = [self._change_of_loss(x, leaves, times) for x in self.bases]
            for leaf in leaves:
                relative = max(relative for relative, _ in changes)
                leaf.loss_change = max(leaf.loss_change, relative)
            if all(stays for _, stays in changes):
                for leaf in leaves:
                    leaf.label, leaf.cosine = leaf.passed[0]
                return
        if len(leaves) > 1:
            half = len(leaves) // 2
            self.run(leaves[:half])
            self.run(leaves[half:])
        else:
            del leaves[0].passed[0]

    def _is_fine(self) -> bool:
        """Whether gradients are more than rounding errors."""
        return self.bases[0].probe.is_fine

    def _holds_when_smaller(self, base: Look, leaves: list[MeasuredLeaf]) -> bool:
        """Whether gradients are orthogonal to smaller weights, too.

        Not so where weights are clipped to a norm, say, and free of scale above it.
        """
        there = scaled(base, leaves, [np.asarray(SHRUNK)] * len(leaves))
        there.nudge(self.rng)
        for leaf in leaves:
            label, worst = leaf.passed[0]
            cosines = np.where(
                leaf.is_excused(label), np.nan, there.cosines(leaf, label)
            )
            allowed = self.allowed(leaf, self.tolerance) / np.sqrt(leaf.size(label))
            over = cosines > max(allowed, GROWN * worst)
            before = base.cosines(leaf, label)
            if np.mean(over) > FEW or np.any(cosines[over] > GROWN_FEW * before[over]):
                return False
        return True

    def _change_of_loss(
        self, base: Look, leaves: list[MeasuredLeaf], times: float
    ) -> tuple[float, bool]:
        """The relative change of the loss, and whether all is as it has to be.

        The change is small next to what a turn of the same groups, by an angle of order
        1, would make, as estimated from the gradient; and gradients are inversely
        proportional to the scale. The same may be asked of weights so many times as
        large, which have to matter as much as those ``ENLARGED`` times smaller, and to
        have next to no scale left.
        """
        start = base
        if times > 1:
            if not self._follows_gradients(base, leaves):
                return 0.0, False
            start = scaled(base, leaves, [np.asarray(times)] * len(leaves))
            before = base
            if times > ENLARGED:
                factor = np.asarray(times / ENLARGED)
                before = scaled(base, leaves, [factor] * len(leaves))
            if not all(self._vanishes(leaf, before, start, times) for leaf in leaves):
                return 0.0, False
        factors = [self._draw_factors(leaf) for leaf in leaves]
        there = scaled(start, leaves, factors)
        change = abs(there.loss - start.loss)
        stays = change <= self._allowed_change(start, leaves) and all(
            agree(
                factor * there.counted(leaf, leaf.passed[0][0]),
                start.counted(leaf, leaf.passed[0][0]),
            )
            and self._fades(leaf, base, there, factor)
            for leaf, factor in zip(leaves, factors, strict=True)
        )
        return change / abs(start.loss) if start.loss else change, bool(stays)

    def _allowed_change(
        self, look: Look, leaves: list[MeasuredLeaf], part: float = 1.0
    ) -> float:
        """Of the loss: a part of what a turn would make, and rounding."""
        turns = [_turn(leaf, look) for leaf in leaves]
        turn = max(min(turns), 1e-3 * max(turns))
        rounding = max(4e-6, look.probe.precision) * abs(look.loss)
        return 2 * self.tolerance * part * turn + rounding

    def _follows_gradients(self, base: Look, leaves: list[MeasuredLeaf]) -> bool:
        """Whether the loss changes as gradients say where groups are scaled a little.

        Not so where a scale is hidden from them. What is made of it may have reached a
        bound for larger weights, and so say nothing there.
        """
        factors = [self._draw_factors(leaf) ** SMALL for leaf in leaves]
        expected = 0.0
        for leaf, factor in zip(leaves, factors, strict=True):
            g, x = wide(base.gradients[leaf.index]), wide(base.point[leaf.index])
            expected += float(np.sum(np.real(g * x) * (factor - 1)))
        change = scaled(base, leaves, factors).loss - base.loss
        return bool(abs(change - expected) <= self._allowed_change(base, leaves, SMALL))

    def _draw_factors(self, leaf: MeasuredLeaf) -> np.ndarray:
        """A factor for each group, one of them larger than 1 at least."""
        axes = self.table[leaf.passed[0][0]] or ()
        drawn = self.rng.choice(FACTORS, geometry.group_shape(leaf.shape, axes))
        return drawn if np.any(drawn > 1) else 1 / drawn

    def _vanishes(
        self, leaf: MeasuredLeaf, base: Look, larger: Look, times: float
    ) -> bool:
        """Whether gradients are as long for larger weights, and have no radial part.

        That is, one that is smaller by as much as an epsilon makes it, or negligible:
        the larger the weights, the less is, since of a bias little is left there, too.
        """
        if not alike(base.strengths[leaf.index], larger.strengths[leaf.index]):
            return False
        label, _ = leaf.passed[0]
        counted = ~leaf.is_excused(label)
        before, after = (
            np.sum(look.radial(leaf, label), where=counted) for look in (base, larger)
        )
        part = VANISHED * self.tolerance / np.sqrt(leaf.size(label)) * ENLARGED / times
        negligible = part * np.sum(base.lengths(leaf, label))
        return bool(after <= max(FADED * before, negligible))

    def _fades(
        self, leaf: MeasuredLeaf, base: Look, there: Look, factors: np.ndarray
    ) -> bool:
        """Whether the radial part of gradients is rounding, or falls as groups grow.

        The epsilon of a normalization matters less where weights are larger; anything
        else that depends on their scale matters more, or as much.
        """
        label, worst = leaf.passed[0]
        allowed = self.allowed(leaf, FADING * self.tolerance)
        if worst <= allowed / np.sqrt(leaf.size(label)):
            return True
        before, after = (look.radial(leaf, label) for look in (base, there))
        noise = np.sum(base.rounding(leaf, label)) if self._is_fine() else 0.0
        if np.sum(before) <= ROUNDING * noise:
            return True
        larger = np.squeeze(factors, leaf.axes[label]) > 1
        larger = larger & ~leaf.is_excused(label)
        return float(np.sum(after[larger])) <= 0.5 * float(np.sum(before[larger]))


def _turn(leaf: MeasuredLeaf, look: Look) -> float:
    """What a turn of all groups, by an angle of order 1, would do to the loss."""
    label, _ = leaf.passed[0]
    return length(look.lengths(leaf, label)) / np.sqrt(leaf.size(label))
