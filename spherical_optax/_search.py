"""Searches the finest label for which a loss does not see the scale of a leaf."""

import math
from collections.abc import Sequence

import numpy as np

from spherical_optax import geometry
from spherical_optax._probe import Evaluation, Points, Probe, perturb, wide
from spherical_optax.labels import ChannelAxesTable

# Above this part of the tolerance, scale has to matter less for larger weights.
FADING = 0.2
# A gradient this small next to the largest is taken for rounding errors.
NEGLIGIBLE = 1e-6
# One of a group that is so small next to that of its leaf, as well.
NEGLIGIBLE_GROUP = 1e-3
# One that changes by so much when weights change in their last digit is, too.
NOISE = 0.5
# Small leaves are perturbed until they count for this part of what others do, but by
# so many times as much at most.
AMPLIFIED_TO, AMPLIFIED = 0.3, 1e3
# How close points are, as a power of 1/2, and whether signs are kept: until one is
# finite.
TRIALS = (*((n, False) for n in range(6)), (1, True), (3, True))
# Powers of two: weights are scaled without rounding, and where the scale does not
# matter, everything after them is rounded alike.
FACTORS = (0.5, 2.0, 4.0)
# Weights so much smaller have to be free of scale as well, but for an epsilon. What
# that adds to a cosine grows by 4, or by 16 behind a product of two outputs; twice that
# is allowed.
SHRUNK, GROWN = 0.5, 32.0
# Weights so much larger leave the epsilon of a normalization next to no part. In a deep
# network what is left of it at the start can flip units, and so turn gradients.
ENLARGED = 32.0
# An epsilon fades with the square of that; a bias or a shortcut, added to what has
# become larger, with that itself. Between both, and what part of the tolerance is 0.
FADED, VANISHED = 1 / 150, 1e-3
# Gradients are inversely proportional to the scale, up to so much of their length.
DISAGREEMENT = 0.25
# Programs whose numbers are spaced wider than this next to 1 have noisy gradients.
COARSE = 1e-4


class MeasuredLeaf:
    """What is known of one leaf while it is measured.

    Attributes:
      candidates: the labels that may hold, the finest first.
      alive: at how many points a gradient reached it.
      dead: whether close to the start its gradient is exactly zero.
      noise: of its gradient, relative.
      known: False where no gradient reached it.
      passed: labels that gradients allow and that are yet to be confirmed, with the
        worst cosine.
      label: the one that was confirmed.
    """

    def __init__(self, path: str, shape: tuple[int, ...], table: ChannelAxesTable):
        self.path, self.shape = path, shape
        try:
            self.candidates = _candidates(shape, table)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self.alive, self.dead, self.noise, self.known = 0, False, 0.0, False
        self.passed: list[tuple[str, float]] = []
        self.label: str | None = None
        self.cosine = self.loss_change = math.nan


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
        first = self._evaluate_nearby()
        nudged = [self._nudge(first)]
        self._measure_noise(first, nudged[0])
        second = self._evaluate_nearby(self._amplification(first))
        near = self._evaluate_nearby(near=True)
        for evaluation in (second, near):
            nudged.append(self._nudge(evaluation))
            if self.probe.precision > COARSE:
                self._measure_noise(evaluation, nudged[-1])
        self.bases = [first, second]
        points = list(zip((first, second, near), nudged, strict=True))
        everywhere = range(len(self.leaves))
        cosines = [self._cosines(*point, everywhere) for point in points]
        alive = [self._alive(evaluation) for evaluation, _ in points]
        for i, leaf in enumerate(self.leaves):
            leaf.dead = not np.any(near.gradients[i])
            leaf.alive = sum(reached[i] for reached in alive)
            self._judge(leaf, [found[i] for found in cosines])
        while waiting := [x for x in self.leaves if x.passed and x.label is None]:
            self._confirm(waiting)

    def _evaluate_nearby(
        self, amplification: Sequence[float] | None = None, near: bool = False
    ) -> Evaluation:
        """A random point at which the loss and its gradients are finite.

        Ever closer, and last with the signs of the start: some have to be positive.
        """
        for halvings, keep_signs in TRIALS:
            strength = 0.5**halvings
            point = perturb(
                self.probe.start, self.rng, strength, amplification, near, keep_signs
            )
            evaluation = self.probe(point)
            finite = all(np.all(np.isfinite(g)) for g in evaluation.gradients)
            if finite and math.isfinite(evaluation.loss):
                return evaluation
        raise ValueError(
            "loss_fn must be finite near params: neither it nor its gradients were, at"
            " any of the points that were tried. Parameters that may not be moved can"
            " be passed through args"
        )

    def _nudge(self, evaluation: Evaluation) -> Evaluation:
        """Where the weights are changed by their rounding."""
        spacing = self.probe.precision
        return self.probe(
            [
                (x * (1 + 2 * spacing * self.rng.standard_normal(x.shape))).astype(
                    x.dtype
                )
                for x in evaluation.point
            ]
        )

    def _measure_noise(self, evaluation: Evaluation, nudged: Evaluation) -> None:
        """How much the gradients of leaves change with the rounding of weights."""
        for leaf, g, other in zip(
            self.leaves, evaluation.gradients, nudged.gradients, strict=True
        ):
            if np.any(g):
                change = _length(wide(other) - wide(g)) / _length(g)
                leaf.noise = max(leaf.noise, change)

    def _is_noise(self, leaf: MeasuredLeaf) -> bool:
        """Whether a gradient is rounding errors; in 16 bits most are, to a part."""
        return self.probe.precision <= COARSE and leaf.noise >= NOISE

    def _amplification(self, evaluation: Evaluation) -> list[float] | None:
        """By how much to perturb small leaves more, so that their size hides nothing.

        Until they count for a part of what the leaf that counts most does. A leaf
        without gradient, or with nothing but rounding errors, is left alone, and so is
        a program whose rounding errors are large.
        """
        if self.probe.precision > COARSE:
            return None
        strengths = [_strength(g, x) for g, x in _pairs(evaluation)]
        wanted = AMPLIFIED_TO * max(strengths)
        return [
            min(max(wanted / strength, 1.0), AMPLIFIED)
            if strength > NEGLIGIBLE * wanted and not self._is_noise(leaf)
            else 1.0
            for leaf, strength in zip(self.leaves, strengths, strict=True)
        ]

    def _alive(self, evaluation: Evaluation) -> list[bool]:
        """Which leaves a gradient reaches at a point."""
        strengths = [_strength(g, x) for g, x in _pairs(evaluation)]
        least = NEGLIGIBLE * max(strengths)
        return [
            strength > least and not self._is_noise(leaf)
            for leaf, strength in zip(self.leaves, strengths, strict=True)
        ]

    def _cosines(
        self, evaluation: Evaluation, nudged: Evaluation, chosen: Sequence[int]
    ) -> dict[int, dict[str, np.ndarray]]:
        """The cosine of every group of some leaves; NaN where there is no gradient.

        Or nothing but rounding errors, as told from a ``nudged`` point. Not in 16 bits,
        where most are, to a part.
        """
        fine = self.probe.precision <= COARSE
        pairs = _pairs(evaluation)
        strengths = [_strength(g, x) for g, x in pairs]
        cosines: dict[int, dict[str, np.ndarray]] = {i: {} for i in chosen}
        for i in chosen:
            leaf, (g, x) = self.leaves[i], pairs[i]
            least = max(NEGLIGIBLE * max(strengths), NEGLIGIBLE_GROUP * strengths[i])
            for label in leaf.candidates:
                axes = _group_axes(leaf.shape, self.table[label])
                slopes = _lengths(g, axes)
                lengths = slopes * _lengths(x, axes)
                seen = lengths > least
                if fine:
                    change = _lengths(wide(nudged.gradients[i]) - g, axes)
                    seen &= change < NOISE * slopes
                with np.errstate(divide="ignore", invalid="ignore"):
                    cosines[i][label] = np.where(
                        seen, _radial(g, x, axes) / lengths, np.nan
                    )
        return cosines

    def _judge(self, leaf: MeasuredLeaf, results: list[dict[str, np.ndarray]]) -> None:
        """Keeps the labels for which no group's gradient has a radial part.

        Some group must have been seen at two points at least.
        """
        if leaf.dead or not leaf.alive:
            return
        leaf.known = not leaf.candidates
        for label in leaf.candidates:
            cosines = np.stack([result[label] for result in results])
            known = ~np.isnan(cosines)
            if not known.any():
                continue
            worst = float(np.nanmax(cosines))
            leaf.cosine = worst if math.isnan(leaf.cosine) else min(leaf.cosine, worst)
            size = math.prod(leaf.shape) / cosines[0].size
            orthogonal = worst <= self._allowed(leaf, self.tolerance) / math.sqrt(size)
            seen = np.max(np.sum(known, axis=0)) >= 2
            if orthogonal and seen:
                leaf.passed.append((label, worst))
            leaf.known |= bool(seen or not orthogonal)

    def _allowed(self, leaf: MeasuredLeaf, tolerance: float) -> float:
        """The part of the cosine of random vectors that a leaf may have."""
        noise = leaf.noise if self.probe.precision > COARSE else 0.0
        return min(tolerance + 3 * noise, 0.5)

    def _confirm(self, leaves: list[MeasuredLeaf]) -> None:
        """Scales the groups of all leaves at once; halves the list where it matters."""
        for leaf in leaves:
            leaf.loss_change = 0.0
        smaller = all(self._holds_when_smaller(base, leaves) for base in self.bases)
        for enlarge in (False, True) if smaller else ():
            changes = [self._change_of_loss(x, leaves, enlarge) for x in self.bases]
            for leaf in leaves:
                relative = max(relative for relative, _ in changes)
                leaf.loss_change = max(leaf.loss_change, relative)
            if all(stays for _, stays in changes):
                for leaf in leaves:
                    leaf.label, leaf.cosine = leaf.passed[0]
                return
        if len(leaves) > 1:
            half = len(leaves) // 2
            self._confirm(leaves[:half])
            self._confirm(leaves[half:])
        else:
            del leaves[0].passed[0]

    def _holds_when_smaller(self, base: Evaluation, leaves: list[MeasuredLeaf]) -> bool:
        """Whether gradients are orthogonal to smaller weights, too.

        Not so where weights are clipped to a norm, say, and free of scale above it.
        """
        chosen = [i for i, leaf in enumerate(self.leaves) if leaf in leaves]
        there = self._scaled(base, dict.fromkeys(chosen, np.asarray(SHRUNK)))
        cosines = self._cosines(there, self._nudge(there), chosen)
        for i in chosen:
            leaf = self.leaves[i]
            label, worst = leaf.passed[0]
            found = cosines[i][label]
            size = math.prod(leaf.shape) / found.size
            allowed = self._allowed(leaf, self.tolerance) / math.sqrt(size)
            if np.nanmax(found, initial=0.0) > max(allowed, GROWN * worst):
                return False
        return True

    def _change_of_loss(
        self, base: Evaluation, leaves: list[MeasuredLeaf], enlarge: bool
    ) -> tuple[float, bool]:
        """The relative change of the loss, and whether all is as it has to be.

        The change is small next to what a turn of the same groups, by an angle of order
        1, would make, as estimated from the gradient; and gradients are inversely
        proportional to the scale. With ``enlarge`` the same is asked of larger weights,
        which have to matter as much as at the base, and to have next to no scale left.
        """
        chosen = [i for i, leaf in enumerate(self.leaves) if leaf in leaves]
        start = base
        if enlarge:
            start = self._scaled(base, dict.fromkeys(chosen, np.asarray(ENLARGED)))
            if not all(self._vanishes(self.leaves[i], base, start, i) for i in chosen):
                return 0.0, False
        factors, turns = {}, []
        for i in chosen:
            axes = self.table[self.leaves[i].passed[0][0]] or ()
            groups = geometry.group_shape(self.leaves[i].shape, axes)
            drawn = self.rng.choice(FACTORS, groups)
            factors[i] = drawn if np.any(drawn > 1) else 1 / drawn
            inside = geometry.group_axes(len(groups), axes)
            lengths = _lengths(start.gradients[i], inside) * _lengths(
                start.point[i], inside
            )
            size = geometry.group_size(self.leaves[i].shape, axes)
            turns.append(_length(lengths) / math.sqrt(size))
        there = self._scaled(start, factors)
        change = abs(there.loss - start.loss)
        turn = max(min(turns), 1e-3 * max(turns))
        rounding = max(4e-6, self.probe.precision) * abs(start.loss)
        stays = change <= 2 * self.tolerance * turn + rounding and all(
            _agree(factors[i] * wide(there.gradients[i]), wide(start.gradients[i]))
            and self._fades(self.leaves[i], base, there, i, factors[i])
            for i in chosen
        )
        return change / abs(start.loss) if start.loss else change, bool(stays)

    def _vanishes(
        self, leaf: MeasuredLeaf, base: Evaluation, larger: Evaluation, i: int
    ) -> bool:
        """Whether gradients are as long for larger weights, and have no radial part.

        That is, one that is negligible, or smaller by as much as an epsilon makes it.
        """
        axes = _group_axes(leaf.shape, self.table[leaf.passed[0][0]])
        (g, x), (g_there, x_there) = _pair(base, i), _pair(larger, i)
        if not _alike(_strength(g, x), _strength(g_there, x_there)):
            return False
        before, after = (
            np.sum(_radial(g, x, axes)),
            np.sum(_radial(g_there, x_there, axes)),
        )
        lengths = _lengths(g, axes) * _lengths(x, axes)
        size = math.prod(leaf.shape) / lengths.size
        negligible = VANISHED * self.tolerance / math.sqrt(size) * np.sum(lengths)
        return after <= max(FADED * before, negligible)

    def _scaled(self, base: Evaluation, factors: dict[int, np.ndarray]) -> Evaluation:
        """The loss where the groups of some leaves are scaled."""
        point: Points = list(base.point)
        for i, factor in factors.items():
            point[i] = (point[i] * factor).astype(point[i].dtype)
        return self.probe(point)

    def _fades(
        self,
        leaf: MeasuredLeaf,
        base: Evaluation,
        there: Evaluation,
        i: int,
        factors: np.ndarray,
    ) -> bool:
        """Whether the radial part of gradients is negligible, or falls as groups grow.

        The epsilon of a normalization matters less where weights are larger; anything
        else that depends on their scale matters more, or as much.
        """
        label, worst = leaf.passed[0]
        axes = _group_axes(leaf.shape, self.table[label])
        size = math.prod(leaf.shape) / factors.size
        if worst <= self._allowed(leaf, FADING * self.tolerance) / math.sqrt(size):
            return True
        before, after = (_radial(*_pair(e, i), axes) for e in (base, there))
        larger = np.squeeze(factors, axes) > 1
        return float(np.sum(after[larger])) <= 0.5 * float(np.sum(before[larger]))


def _pairs(evaluation: Evaluation) -> list[tuple[np.ndarray, np.ndarray]]:
    """Gradient and weights of every leaf."""
    return [_pair(evaluation, i) for i in range(len(evaluation.point))]


def _pair(evaluation: Evaluation, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and weights of one leaf."""
    return wide(evaluation.gradients[i]), wide(evaluation.point[i])


def _radial(g: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The absolute value of <g, x>, group by group."""
    return np.abs(np.sum(np.real(g * x), axes))


def _strength(g: np.ndarray, x: np.ndarray) -> float:
    """What a relative change of a whole leaf would do to the loss."""
    return _length(g) * _length(x)


def _length(x: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(wide(x))))


def _lengths(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt(np.sum(np.abs(wide(x)) ** 2, axes))


def _agree(g: np.ndarray, expected: np.ndarray) -> bool:
    """Whether gradients agree, slice by slice of the last axis."""

    def lengths(x):
        return np.linalg.norm(x.reshape(-1, x.shape[-1] if x.ndim else 1), axis=0)

    usual = np.sqrt(np.mean(lengths(expected) ** 2))
    allowed = DISAGREEMENT * lengths(expected) + DISAGREEMENT / 5 * usual
    return bool(np.all(lengths(g - expected) <= allowed))


def _alike(first: float, second: float) -> bool:
    """Whether two lengths are the same up to a factor of 4."""
    return first <= 4 * second and second <= 4 * first


def _candidates(shape: tuple[int, ...], table: ChannelAxesTable) -> list[str]:
    """The labels that may hold for a leaf, the finest first.

    Not those for which a leaf has too few axes, or groups of a single weight: there
    orthogonal to the weights means no gradient at all.
    """
    sizes = {}
    for label, axes in table.items():
        if axes is None or any(not -len(shape) <= n < len(shape) for n in axes):
            continue
        size = geometry.group_size(shape, axes)
        if size >= 2:
            sizes[label] = size
    return sorted(sizes, key=lambda label: sizes[label])


def _group_axes(shape: tuple[int, ...], axes: Sequence[int] | None) -> tuple[int, ...]:
    return geometry.group_axes(len(shape), axes or ())
