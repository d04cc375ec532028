"""Which weights live on spheres, measured on the loss itself."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import optax

from spherical_optax import geometry
from spherical_optax._checks import check_numbers
from spherical_optax._probe import Evaluation, Points, Probe, perturb
from spherical_optax.labels import (
    ChannelAxesTable,
    LabelTree,
    checked_table,
    map_with_path,
    paths_of_leaves,
)

# How many points gradients are taken at, and at how many of them losses are compared.
POINTS, COMPARED = 3, 2
# A gradient this small next to the largest is taken for rounding errors.
NEGLIGIBLE = 1e-6
# Powers of two: weights are scaled without rounding, and where the scale does not
# matter, everything after them is rounded alike.
FACTORS = (0.5, 2.0, 4.0)
# Gradients are inversely proportional to the scale, up to so much of their length.
DISAGREEMENT = 0.25
# Programs whose numbers are spaced wider than this next to 1 have noisy gradients.
COARSE = 1e-4


class InvarianceRow(NamedTuple):
    """What was measured of one leaf.

    Attributes:
      path: where the leaf is.
      label: what it is labelled.
      worst_cosine: the largest cosine between gradient and weights of a group, over
        groups and points, for the groups of its label; for a leaf on no sphere, for
        the label that came closest; NaN if nothing was measured.
      worst_loss_change: the largest relative change of the loss when groups were
        scaled, all leaves with the same outcome together; NaN if none were.
      known: False for a leaf that no gradient reached.
    """

    path: str
    label: str
    worst_cosine: float
    worst_loss_change: float
    known: bool


class InvarianceTable(Sequence[InvarianceRow]):
    """What was measured, one row a leaf; prints as a table."""

    def __init__(self, rows: Sequence[InvarianceRow]):
        self.rows = tuple(rows)

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[InvarianceRow]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"InvarianceTable({list(self.rows)})"

    def __str__(self) -> str:
        cells = [["path", "label", "worst cosine", "worst loss change"]]
        for row in self.rows:
            label = row.label if row.known else f"{row.label} (unknown)"
            numbers = (row.worst_cosine, row.worst_loss_change)
            shown = ["-" if math.isnan(x) else f"{x:.1e}" for x in numbers]
            cells.append([row.path, label, *shown])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        left, right = widths[:2], widths[2:]
        lines = [
            "  ".join(
                [cell.ljust(n) for cell, n in zip(line[:2], left, strict=True)]
                + [cell.rjust(n) for cell, n in zip(line[2:], right, strict=True)]
            ).rstrip()
            for line in cells
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


class _Leaf:
    """What is known of one leaf while it is measured."""

    def __init__(self, path: str, shape: tuple[int, ...], candidates: list[str]):
        self.path, self.shape, self.candidates = path, shape, candidates
        self.alive = 0  # points at which a gradient reached it
        self.noise = 0.0  # of its gradient, relative
        self.known = False
        self.passed: list[tuple[str, float]] = []  # labels yet to be confirmed
        self.label: str | None = None
        self.cosine = self.loss_change = math.nan


@overload
def detect_invariance(
    loss_fn: Callable[..., Any],
    params: optax.Params,
    *args: Any,
    explain: Literal[False] = False,
    channel_axes: ChannelAxesTable | None = None,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> LabelTree: ...


@overload
def detect_invariance(
    loss_fn: Callable[..., Any],
    params: optax.Params,
    *args: Any,
    explain: Literal[True],
    channel_axes: ChannelAxesTable | None = None,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> tuple[LabelTree, InvarianceTable]: ...


def detect_invariance(
    loss_fn: Callable[..., Any],
    params: optax.Params,
    *args: Any,
    explain: bool = False,
    channel_axes: ChannelAxesTable | None = None,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> Any:
    r"""Measures which groups of weights have no scale, and labels them so.

    A loss does not depend on the scale of a group exactly when its gradient is
    orthogonal to the group (Euler). At several points around ``params``, with every
    leaf perturbed, each group is asked for

    .. math::
      \frac{|\langle g, x\rangle|}{|g|\,|x|} \le \frac{\text{tolerance}}{\sqrt{d}}

    where :math:`d` is the size of the group and :math:`1 / \sqrt d` the cosine that two
    random vectors have. What passes is confirmed: all its groups are scaled by random
    factors, and the loss has to stay, and gradients to shrink as the weights grow. Of
    the labels that hold, the finest wins:
    ``"filter"`` before ``"layer"``; a leaf for which none holds is ``"euclidean"``.

    Args:
      loss_fn: ``loss_fn(params, *args)`` returns a real number; any function of any
        tree, that JAX can differentiate. In a network with batch normalization it has
        to normalize by the batch, as in training.
      params: parameters; leaves that are no floating point arrays are left as they
        are and labelled ``"euclidean"``.
      *args: a small batch, other state, anything else that ``loss_fn`` takes.
      explain: whether to return a table of what was measured, too.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``. A label for
        which a group would be a single weight is not tried.
      tolerance: how much of the cosine of random vectors, and a tenth of how much of
        the change of the loss that they would make, is put down to rounding and to the
        ``epsilon`` inside of normalizations. In programs that compute in a type of 16
        bits the noise of the gradients is measured, and allowed on top.
      seed: of the random numbers.

    Returns:
      A label tree, as ``labels`` of any optimizer; with ``explain`` also an
      ``InvarianceTable``, which has a row ``(path, label, worst_cosine,
      worst_loss_change, known)`` for each leaf and prints well.

    Raises:
      ValueError: the loss is no real number, is not finite at ``params`` or anywhere
        near, or is not the same when called again; ``channel_axes`` has no label for
        weights on no sphere.

    Warns:
      UserWarning: once, naming the leaves that no gradient reaches. Nothing can be
        said of them; they are labelled ``"euclidean"``. Biases right before a batch
        normalization, which subtracts them, are among those.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import spherical_optax as so
      >>> def loss_fn(params, x):
      ...     y = x @ params["dense"]["kernel"]
      ...     y = (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5)  # batch norm
      ...     return jnp.mean((jax.nn.relu(y) @ params["head"]["kernel"] - 1) ** 2)
      >>> k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
      >>> params = {"dense": {"kernel": jax.random.normal(k1, (8, 16))},
      ...           "head": {"kernel": jax.random.normal(k2, (16, 1))}}
      >>> x = jax.random.normal(k3, (32, 8))
      >>> labels, table = so.detect_invariance(loss_fn, params, x, explain=True)
      >>> labels
      {'dense': {'kernel': 'filter'}, 'head': {'kernel': 'euclidean'}}
      >>> optimizer = so.adamsrt(1e-3, labels=labels)
    """
    table = checked_table(channel_axes)
    flat = next((label for label, axes in table.items() if axes is None), None)
    if flat is None:
        raise ValueError(
            "channel_axes must have a label with axes None, for weights on no sphere"
        )
    check_numbers(positive={"tolerance": tolerance})
    probe = Probe(loss_fn, params, args)
    paths = paths_of_leaves(params)
    leaves = [
        _Leaf(paths[i], x.shape, _candidates(x.shape, table))
        for i, x in zip(probe.indices, probe.start, strict=True)
    ]
    if leaves:
        probe.evaluate_start()
        search = _Search(probe, leaves, table, tolerance, np.random.default_rng(seed))
        search.run()
    _warn_of_unknown([leaf.path for leaf in leaves if not leaf.known], flat)
    found = {leaf.path: leaf for leaf in leaves}
    rows = [_row(path, found.get(path), flat) for path in dict.fromkeys(paths)]
    by_path = {row.path: row.label for row in rows}
    labels = map_with_path(lambda path, _: by_path.get(path, flat), params)
    return (labels, InvarianceTable(rows)) if explain else labels


class _Search:
    """Finds the finest label that holds for each leaf."""

    def __init__(
        self,
        probe: Probe,
        leaves: list[_Leaf],
        table: ChannelAxesTable,
        tolerance: float,
        rng: np.random.Generator,
    ):
        self.probe, self.leaves, self.table, self.rng = probe, leaves, table, rng
        self.tolerance = tolerance
        self.bases: list[Evaluation] = []

    def run(self) -> None:
        """Tests gradients at every point, then the loss, then coarser labels."""
        tests = [dict.fromkeys(leaf.candidates) for leaf in self.leaves]
        measured: list[dict[str, list]] = [{label: [] for label in t} for t in tests]
        for _ in range(POINTS):
            evaluation = self._evaluate_nearby()
            if len(self.bases) < COMPARED:
                self.bases.append(evaluation)
            self._measure(evaluation, measured)
            if self.probe.precision > COARSE:
                self._measure_noise(evaluation)
        for leaf, results in zip(self.leaves, measured, strict=True):
            self._judge(leaf, results)
        while waiting := [x for x in self.leaves if x.passed and x.label is None]:
            self._confirm(waiting)

    def _evaluate_nearby(self) -> Evaluation:
        """A random point at which the loss and its gradients are finite."""
        for halvings in range(6):
            point = perturb(self.probe.start, self.rng, 0.5**halvings)
            evaluation = self.probe(point)
            finite = all(np.all(np.isfinite(g)) for g in evaluation.gradients)
            if finite and math.isfinite(evaluation.loss):
                return evaluation
        raise ValueError(
            "loss_fn must be finite near params: neither it nor its gradients were, at"
            " any of the points that were tried"
        )

    def _measure_noise(self, evaluation: Evaluation) -> None:
        """How much gradients change where the weights change by their rounding."""
        spacing = self.probe.precision
        nudged = self.probe(
            [
                (x * (1 + 2 * spacing * self.rng.standard_normal(x.shape))).astype(
                    x.dtype
                )
                for x in evaluation.point
            ]
        )
        for leaf, g, other in zip(
            self.leaves, evaluation.gradients, nudged.gradients, strict=True
        ):
            if np.any(g):
                leaf.noise = max(leaf.noise, _length(other - g) / _length(g))

    def _measure(self, evaluation: Evaluation, measured: list[dict[str, list]]) -> None:
        """Adds the cosine of every group at a point; NaN where there is no gradient."""
        products = [
            [np.abs(g).astype(float), np.abs(x).astype(float), np.real(g * x)]
            for g, x in zip(evaluation.gradients, evaluation.point, strict=True)
        ]
        strengths = [math.sqrt(np.sum(g**2) * np.sum(x**2)) for g, x, _ in products]
        least = NEGLIGIBLE * max(strengths)
        for leaf, (g, x, gx), strength, results in zip(
            self.leaves, products, strengths, measured, strict=True
        ):
            leaf.alive += strength > least
            for label, found in results.items():
                axes = _group_axes(leaf.shape, self.table[label])
                lengths = np.sqrt(np.sum(g**2, axes) * np.sum(x**2, axes))
                radial = np.abs(np.sum(gx, axes, dtype=float))
                with np.errstate(divide="ignore", invalid="ignore"):
                    found.append(np.where(lengths > least, radial / lengths, np.nan))

    def _judge(self, leaf: _Leaf, results: dict[str, list]) -> None:
        """Keeps the labels for which no group's gradient has a radial part.

        Half of the groups must have been seen at two points at least.
        """
        leaf.known = leaf.alive > 0 and not leaf.candidates
        for label in leaf.candidates:
            cosines = np.stack(results[label])
            known = ~np.isnan(cosines)
            if not known.any():
                continue
            worst = float(np.nanmax(cosines))
            leaf.cosine = worst if math.isnan(leaf.cosine) else min(leaf.cosine, worst)
            size = math.prod(leaf.shape) / cosines[0].size
            allowed = min(self.tolerance + 3 * leaf.noise, 0.5)
            orthogonal = worst <= allowed / math.sqrt(size)
            seen = np.mean(np.sum(known, axis=0) >= 2) >= 0.5
            if orthogonal and seen:
                leaf.passed.append((label, worst))
            leaf.known |= bool(seen or not orthogonal)

    def _confirm(self, leaves: list[_Leaf]) -> None:
        """Scales the groups of all leaves at once; halves the list where it matters."""
        changes = [self._change_of_loss(base, leaves) for base in self.bases]
        for leaf in leaves:
            leaf.loss_change = max(relative for relative, _ in changes)
        if all(stays for _, stays in changes):
            for leaf in leaves:
                leaf.label, leaf.cosine = leaf.passed[0]
        elif len(leaves) > 1:
            half = len(leaves) // 2
            self._confirm(leaves[:half])
            self._confirm(leaves[half:])
        else:
            del leaves[0].passed[0]

    def _change_of_loss(
        self, base: Evaluation, leaves: list[_Leaf]
    ) -> tuple[float, bool]:
        """The relative change of the loss, and whether all is as it has to be.

        The change is small next to what a turn of the same groups, by an angle of order
        1, would make, as estimated from the gradient; and gradients are inversely
        proportional to the scale.
        """
        point: Points = list(base.point)
        scaled: dict[int, np.ndarray] = {}
        turns = []
        for i, leaf in enumerate(self.leaves):
            if leaf not in leaves:
                continue
            axes = _group_axes(leaf.shape, self.table[leaf.passed[0][0]])
            x, g = base.point[i], base.gradients[i]
            groups = np.sum(np.abs(x), axes, keepdims=True).shape
            scaled[i] = self.rng.choice(FACTORS, groups).astype(np.real(x).dtype)
            point[i] = x * scaled[i]
            lengths = np.sum(np.abs(g) ** 2, axes) * np.sum(np.abs(x) ** 2, axes)
            size = math.prod(leaf.shape) / math.prod(groups)
            turns.append(math.sqrt(float(np.sum(lengths)) / size))
        there = self.probe(point)
        change = abs(there.loss - base.loss)
        turn = max(min(turns), 1e-3 * max(turns))
        rounding = max(4e-6, self.probe.precision) * abs(base.loss)
        stays = change <= 10 * self.tolerance * turn + rounding and all(
            _agree(factors * there.gradients[i], base.gradients[i])
            for i, factors in scaled.items()
        )
        return change / abs(base.loss) if base.loss else change, bool(stays)


def _length(x: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(x)))


def _agree(g: np.ndarray, expected: np.ndarray) -> bool:
    """Whether gradients agree, slice by slice of the last axis."""

    def lengths(x):
        return np.linalg.norm(x.reshape(-1, x.shape[-1] if x.ndim else 1), axis=0)

    usual = np.sqrt(np.mean(lengths(expected) ** 2))
    allowed = DISAGREEMENT * lengths(expected) + DISAGREEMENT / 5 * usual
    return bool(np.all(lengths(g - expected) <= allowed))


def _candidates(shape: tuple[int, ...], table: ChannelAxesTable) -> list[str]:
    """The labels that may hold for a leaf, the finest first.

    Not those for which a leaf has too few axes, or groups of a single weight: there
    orthogonal to the weights means no gradient at all.
    """
    sizes = {}
    for label, axes in table.items():
        if axes is None:
            continue
        try:
            size = geometry.group_size(shape, axes)
        except ValueError:
            continue
        if size >= 2:
            sizes[label] = size
    return sorted(sizes, key=lambda label: sizes[label])


def _group_axes(shape: tuple[int, ...], axes: Sequence[int] | None) -> tuple[int, ...]:
    return geometry.group_axes(len(shape), axes or ())


def _row(path: str, leaf: _Leaf | None, flat: str) -> InvarianceRow:
    if leaf is None:
        return InvarianceRow(path, flat, math.nan, math.nan, True)
    return InvarianceRow(
        path, leaf.label or flat, leaf.cosine, leaf.loss_change, leaf.known
    )


def _warn_of_unknown(paths: list[str], flat: str) -> None:
    if paths:
        warnings.warn(
            f"no gradient reaches {', '.join(paths)}: whether they have a scale is"
            f" unknown, and they are labelled {flat!r}",
            stacklevel=3,
        )
