"""Searches the finest label for which a loss does not see the scale of a leaf."""

import math
from collections.abc import Sequence

import numpy as np

from spherical_optax._confirmation import ENLARGED, FEW, Confirmation
from spherical_optax._look import NEGLIGIBLE, Look, MeasuredLeaf, scaled
from spherical_optax._probe import Probe, perturb
from spherical_optax.labels import ChannelAxesTable

# Small leaves are perturbed until they count for this part of what others do, but by
# so many times as much at most.
AMPLIFIED_TO, AMPLIFIED = 0.3, 1e3
# How close points are, as a power of 1/2, and whether signs are kept: until one is
# finite.
TRIALS = (*((n, False) for n in range(6)), (1, True), (3, True))
# That a few groups have a scale, and only far from the start, may be an epsilon:
# then it fades with the square of their size, to this part where that is as large
# as what is normalized. A bias fades with their size, 32 here.
FADED_FEW = 1 / 50


class Search:
    """Finds the finest label that holds for each leaf."""

    def __init__(
        self,
        probe: Probe,
        leaves: list[MeasuredLeaf],
        table: ChannelAxesTable,
        tolerance: float,
        rng: np.random.Generator,
    ):
        self.probe, self.leaves, self.table, self.rng = probe, leaves, table, rng
        self.tolerance = tolerance

    def run(self) -> None:
        """Tests gradients at every point, then the loss, then coarser labels.

        The first point is far from the start; at the second small leaves, biases for
        instance, are perturbed until they count as much as others do; the third is so
        close that a unit that is dead at the start is dead there.
        """
        first = self._look_nearby()
        first.nudge(self.rng)
        self._measure_noise(first)
        second = self._look_nearby(self._amplification(first))
        near = self._look_nearby(near=True)
        for look in (second, near):
            look.nudge(self.rng)
            if not self.probe.is_fine:
                self._measure_noise(look)
        looks = (first, second, near)
        for leaf in self.leaves:
            leaf.dead = not np.any(near.gradients[leaf.index])
            leaf.alive = sum(look.is_alive(leaf) for look in looks)
            self._judge(leaf, looks)
        confirmation = Confirmation(
            (first, second), self._allowed, self.table, self.tolerance, self.rng
        )
        while waiting := [x for x in self.leaves if x.passed and x.label is None]:
            confirmation.run(waiting)

    def _look_nearby(
        self, amplification: Sequence[float] | None = None, near: bool = False
    ) -> Look:
        """A random point at which the loss and its gradients are finite.

        Ever closer, and last with the signs of the start: some have to be positive.
        """
        start = self.probe.start
        for halvings, keep_signs in TRIALS:
            strength = 0.5**halvings
            point = perturb(start, self.rng, strength, amplification, near, keep_signs)
            look = Look(self.probe, point)
            if look.is_finite():
                return look
        raise ValueError(
            "loss_fn must be finite near params: neither it nor its gradients were, at"
            " any of the points that were tried. Parameters that may not be moved can"
            " be passed through args"
        )

    def _measure_noise(self, look: Look) -> None:
        """How much the gradients of leaves change with the rounding of weights."""
        for leaf in self.leaves:
            leaf.noise = max(leaf.noise, look.noise(leaf))

    def _amplification(self, look: Look) -> list[float] | None:
        """By how much to perturb small leaves more, so that their size hides nothing.

        Until they count for a part of what the leaf that counts most does. A leaf
        without gradient, or with nothing but rounding errors, is left alone, and so is
        a program whose rounding errors are large.
        """
        if not self.probe.is_fine:
            return None
        wanted = AMPLIFIED_TO * max(look.strengths)
        return [
            min(max(wanted / strength, 1.0), AMPLIFIED)
            if strength > NEGLIGIBLE * wanted and not look.is_noise(leaf)
            else 1.0
            for leaf, strength in zip(self.leaves, look.strengths, strict=True)
        ]

    def _judge(self, leaf: MeasuredLeaf, looks: Sequence[Look]) -> None:
        """Keeps the labels for which no group's gradient has a radial part.

        Some group must have been seen at two points at least.
        """
        if leaf.dead or not leaf.alive:
            return
        leaf.known = not leaf.candidates
        for label in leaf.candidates:
            allowed = self._allowed(leaf, self.tolerance) / math.sqrt(leaf.size(label))
            cosines = np.stack([look.cosines(leaf, label) for look in looks])
            cosines = self._without_epsilon(leaf, label, looks, cosines, allowed)
            known = ~np.isnan(cosines)
            if not known.any():
                continue
            worst = float(np.nanmax(cosines))
            leaf.cosine = worst if math.isnan(leaf.cosine) else min(leaf.cosine, worst)
            seen = np.max(np.sum(known, axis=0)) >= 2
            if worst <= allowed and seen:
                leaf.passed.append((label, worst))
            leaf.known |= bool(seen or worst > allowed)

    def _without_epsilon(
        self,
        leaf: MeasuredLeaf,
        label: str,
        looks: Sequence[Look],
        cosines: np.ndarray,
        allowed: float,
    ) -> np.ndarray:
        """Leaves out groups that have a scale far from the start, by an epsilon alone.

        What comes before a normalization may hardly vary there: a unit that is almost
        dead, seen by one filter of a depthwise convolution. Close to the start no group
        has a scale then, far from it a few, and none of larger weights.
        """
        radial = cosines > allowed
        few = np.mean(radial, axis=tuple(range(1, radial.ndim))) <= FEW
        if not radial.any() or radial[-1].any() or not few.all():
            return cosines
        if not self.probe.is_fine:
            return cosines
        kept, cosines, excused = cosines, cosines.copy(), np.any(radial, axis=0)
        for look, groups, kept_ones in zip(looks, radial, cosines, strict=True):
            if groups.any() and not self._is_epsilon(leaf, label, look, groups):
                return kept
            kept_ones[groups] = np.nan
        leaf.excused[label] = excused
        return cosines

    def _is_epsilon(
        self, leaf: MeasuredLeaf, label: str, look: Look, groups: np.ndarray
    ) -> bool:
        """Whether an epsilon explains that some groups have a scale: larger have none.

        What hardly varies next to the epsilon has to become much larger first.
        """
        allowed = self._allowed(leaf, self.tolerance) / math.sqrt(leaf.size(label))
        left, waiting = look.radial(leaf, label), groups
        ignored = groups | np.isnan(look.cosines(leaf, label))
        for times in (ENLARGED, ENLARGED**2, ENLARGED**3):
            larger = scaled(look, [leaf], [np.asarray(times)])
            larger.nudge(self.rng)
            before, left = left, larger.radial(leaf, label)
            waiting = waiting & (left > FADED_FEW * before)
            others = np.where(ignored, np.nan, larger.cosines(leaf, label))
            if np.nanmax(others, initial=0.0) > allowed:
                return False
            if not waiting.any():
                return True
        return False

    def _allowed(self, leaf: MeasuredLeaf, tolerance: float) -> float:
        """The part of the cosine of random vectors that a leaf may have."""
        noise = 0.0 if self.probe.is_fine else leaf.noise
        return min(tolerance + 3 * noise, 0.5)
