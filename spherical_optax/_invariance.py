"""Which weights live on spheres, measured on the loss itself."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

import jax
import numpy as np
import optax

from spherical_optax._checks import check_numbers, is_traced
from spherical_optax._look import MeasuredLeaf
from spherical_optax._probe import Probe
from spherical_optax._search import Search
from spherical_optax.labels import (
    ChannelAxesTable,
    LabelTree,
    check_paths,
    checked_table,
    map_with_path,
    paths_of_leaves,
)


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


@overload
def detect_invariance(
    loss_fn: Callable[..., Any],
    params: optax.Params,
    *args: Any,
    explain: Literal[False] = False,
    channel_axes: ChannelAxesTable | None = None,
    tolerance: float = 5e-2,
    seed: int = 0,
) -> LabelTree: ...


@overload
def detect_invariance(
    loss_fn: Callable[..., Any],
    params: optax.Params,
    *args: Any,
    explain: Literal[True],
    channel_axes: ChannelAxesTable | None = None,
    tolerance: float = 5e-2,
    seed: int = 0,
) -> tuple[LabelTree, InvarianceTable]: ...


def detect_invariance(
    loss_fn: Callable[..., Any],
    params: optax.Params,
    *args: Any,
    explain: bool = False,
    channel_axes: ChannelAxesTable | None = None,
    tolerance: float = 5e-2,
    seed: int = 0,
) -> Any:
    r"""Measures which groups of weights have no scale, and labels them so.

    A loss does not depend on the scale of a group exactly when its gradient is
    orthogonal to the group (Euler). At several points around ``params``, with every
    leaf perturbed, and small ones by as much as an initializer would give, each group
    is asked for

    .. math::
      \frac{|\langle g, x\rangle|}{|g|\,|x|} \le \frac{\text{tolerance}}{\sqrt{d}}

    where :math:`d` is the size of the group and :math:`1 / \sqrt d` the cosine that two
    random vectors have. What passes is confirmed: half as large it has to pass as well,
    but for what an ``epsilon`` adds; then all its groups are scaled by random factors,
    and the loss has to stay, and gradients to shrink as the weights grow. A cosine
    above a fifth of what is allowed has to shrink with them, as one does that is due to
    the ``epsilon`` inside of a normalization. Where the loss or gradients do not stay,
    as in deep networks in which an ``epsilon`` flips units, the same is asked of
    weights 32 and 1,024 times as large, if their cosine falls as it does for an
    ``epsilon``: a bias or a shortcut makes it fall more slowly. The loss has to follow
    its gradients there: a scale behind a ``stop_gradient`` is one. In the same way a
    few groups that are not orthogonal far from ``params``, and are close to them, are
    left to the others, as behind a unit that is almost dead there. Of the labels that
    hold, the finest wins: ``"filter"`` before ``"layer"``; a leaf for which none holds
    is ``"euclidean"``.

    Args:
      loss_fn: ``loss_fn(params, *args)`` returns a real number; any function of any
        tree, that JAX can differentiate. In a network with batch normalization it has
        to normalize by the batch, as in training.
      params: parameters; leaves that are no floating point arrays, or hold infinite
        numbers, are left as they are and labelled ``"euclidean"``.
      *args: a small batch, other state, anything else that ``loss_fn`` takes.
      explain: whether to return a table of what was measured, too.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``. A label for
        which a group would be a single weight is not tried.
      tolerance: how much of the cosine of random vectors, and twice as much of the
        change of the loss that they would make, is put down to rounding and to the
        ``epsilon`` inside of normalizations. In programs that compute in a type of 16
        bits the noise of the gradients is measured, and allowed on top.
      seed: of the random numbers.

    Returns:
      A label tree, as ``labels`` of any optimizer; with ``explain`` also an
      ``InvarianceTable``, which has a row ``(path, label, worst_cosine,
      worst_loss_change, known)`` for each leaf and prints well.

    Raises:
      ValueError: ``params`` or ``args`` have no numbers, being shapes or traced;
        ``loss_fn`` is no function, or returns no real number, or one that is not
        finite at ``params`` or anywhere near, or not the same when called again; two
        leaves have one path; ``channel_axes`` has no label for weights on no sphere,
        or names an axis of a leaf twice; ``seed`` is no integer of at least 0.

    Warns:
      UserWarning: once, naming the leaves that no gradient reaches close to ``params``,
        those of dead units for instance, or none above the noise of rounding. Nothing
        can be said of them; they are labelled ``"euclidean"``. Biases right before a
        batch normalization, which subtracts them, are among those. A leaf of which some
        groups are dead is labelled by the others.

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
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    if not callable(loss_fn):
        raise ValueError(f"loss_fn must be a function, got {loss_fn!r}")
    check_paths(params)
    _check_concrete(params, args)
    probe = Probe(loss_fn, params, args)
    paths = paths_of_leaves(params)
    leaves = [
        MeasuredLeaf(n, paths[i], x.shape, table)
        for n, (i, x) in enumerate(zip(probe.indices, probe.start, strict=True))
    ]
    if leaves:
        probe.evaluate_start()
        Search(probe, leaves, table, tolerance, np.random.default_rng(seed)).run()
    _warn_of_unknown([leaf.path for leaf in leaves if not leaf.known], flat)
    found: dict[str, list[MeasuredLeaf]] = {path: [] for path in paths}
    for leaf in leaves:
        found[leaf.path].append(leaf)
    rows = [_row(path, measured, flat) for path, measured in found.items()]
    by_path = {row.path: row.label for row in rows}
    labels = map_with_path(lambda path, _: by_path.get(path, flat), params)
    return (labels, InvarianceTable(rows)) if explain else labels


def _check_concrete(params: Any, args: Any) -> None:
    """Raises a ValueError where an array has no numbers."""
    for leaf in jax.tree.leaves((params, args)):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(f"params and args must be arrays with numbers, got {leaf}")
        if is_traced(leaf):
            raise ValueError(
                "detect_invariance must be called outside of jax.jit, jax.grad and the"
                f" like, got {leaf}"
            )


def _row(path: str, leaves: list[MeasuredLeaf], flat: str) -> InvarianceRow:
    """The row of a path: of one array, or of several in one Flax variable.

    These have one label, so that it has to hold for each of them.
    """
    labels = {flat if leaf.label is None else leaf.label for leaf in leaves}
    label = labels.pop() if len(labels) == 1 else flat
    cosine = _worst([leaf.cosine for leaf in leaves])
    loss_change = _worst([leaf.loss_change for leaf in leaves])
    known = all(leaf.known for leaf in leaves)
    return InvarianceRow(path, label, cosine, loss_change, known)


def _worst(numbers: list[float]) -> float:
    """The largest that was measured."""
    return float(np.fmax.reduce(numbers, initial=math.nan))


def _warn_of_unknown(paths: list[str], flat: str) -> None:
    if paths:
        warnings.warn(
            f"no gradient reaches {', '.join(paths)}: none, or none above the noise of"
            " rounding. Whether they have a scale is unknown, and they are labelled"
            f" {flat!r}",
            stacklevel=3,
        )
