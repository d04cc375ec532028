"""Which weights live on spheres: a label for every leaf of a parameter tree.

A label says how the weights of a leaf fall into groups. ``CHANNEL_AXES`` turns
a label into channel axes (see :mod:`spherical_optax.geometry`). A label tree has
the structure of the parameters, or a prefix of it, with a string at each leaf.

Labels depend on paths and shapes alone, never on values: Optax calls a labelling
function with parameters at one time and with gradients at another.

This is the only module that knows how a path is spelled.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry

CHANNEL_AXES: Mapping[str, tuple[int, ...] | None] = {
    "filter": (-1,),
    "layer": (),
    "euclidean": None,
}
"""Label to channel axes; ``None`` marks weights that lie on no sphere."""

LabelTree = Any
Labels = LabelTree | Callable[[optax.Params], LabelTree]
ChannelAxesTable = Mapping[str, Sequence[int] | None]


def label_conv_filters(params: optax.Params) -> LabelTree:
    """Labels leaves of three or more axes ``"filter"``, all others ``"euclidean"``.

    That is right for a network in which a batch or instance normalization follows
    every convolution, with kernels as Flax lays them out: output channel last.

    Args:
      params: parameter tree; arrays or anything with a shape.

    Returns:
      A label tree.

    Example:
      >>> import jax.numpy as jnp
      >>> label_conv_filters({"conv": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)})
      {'bias': 'euclidean', 'conv': 'filter'}
    """
    _check_parameters(params)
    return map_with_path(
        lambda _, leaf: "filter" if ndim(leaf) >= 3 else "euclidean", params
    )


def label_by_path(
    rules: Mapping[str, str], default: str = "euclidean"
) -> Callable[[optax.Params], LabelTree]:
    r"""Labels leaves by regular expressions on their paths.

    A path reads like ``stage1/block0/conv1/kernel``: keys, indices and attribute
    names joined by slashes, the same for nested dicts, tuples, Flax and Equinox
    modules. An expression has to match all of it; the first that does, wins.

    Args:
      rules: regular expression to label, in order of precedence.
      default: label of a leaf that no expression matches.

    Returns:
      A function from a parameter tree to a label tree.

    Raises:
      ValueError: there is no mapping from expressions to labels, or one does not
        compile.

    Example:
      >>> import jax.numpy as jnp
      >>> label = label_by_path({r".*conv\d/kernel": "filter", r"head/.*": "layer"})
      >>> label({"conv1": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)},
      ...        "head": {"kernel": jnp.ones((8, 2))}})
      {'conv1': {'bias': 'euclidean', 'kernel': 'filter'}, 'head': {'kernel': 'layer'}}
    """
    if not isinstance(rules, Mapping):
        raise ValueError(
            f"rules must be a mapping from expression to label, got {rules!r}"
        )
    compiled = []
    for expression, label in rules.items():
        try:
            compiled.append((re.compile(expression), label))
        except (re.error, TypeError) as error:
            raise ValueError(
                f"rules: {expression!r} is no regular expression: {error}"
            ) from None

    def label_leaf(path: str, leaf: Any) -> str:
        del leaf
        matches = (label for rule, label in compiled if rule.fullmatch(path))
        return next(matches, default)

    def label_tree(params: optax.Params) -> LabelTree:
        _check_parameters(params)
        return map_with_path(label_leaf, params)

    return label_tree


def _check_parameters(params: Any) -> None:
    """Raises a ValueError for a count of steps, which is no tree of parameters."""
    dtype = getattr(params, "dtype", None)
    if dtype is not None and ndim(params) == 0 and jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            "labels: the function was given a count of steps, and not parameters; under"
            ' optax.inject_hyperparams it needs static_args=("labels",)'
        )


def path_string(path: Sequence[Any]) -> str:
    """Spells a key path of JAX: ``stage1/block0/conv1/kernel``.

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": [1.0]})
      >>> path_string(path)
      'a/0'
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Lists the leaves of a tree with their paths, Flax variables unwrapped.

    Example:
      >>> leaves_with_paths({"a": [1.0, 2.0]})
      [('a/0', 1.0), ('a/1', 2.0)]
    """
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    return [(path_string(path), _unwrap(leaf)) for path, leaf in found]


def paths_of_leaves(tree: Any) -> list[str]:
    """Lists the path of every array of a tree, in the order of its leaves.

    Arrays in one Flax variable have that variable's path.

    Example:
      >>> paths_of_leaves({"a": [1.0, 2.0]})
      ['a/0', 'a/1']
    """
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    return [path_string(path) for path, node in found for _ in jax.tree.leaves(node)]


def check_paths(tree: Any) -> None:
    """Raises a ValueError for two leaves with one path, as a key with a slash makes.

    Example:
      >>> check_paths({"a": {"b": 1.0}, "a/c": 2.0})
    """
    known = set()
    for path, _ in leaves_with_paths(tree):
        if path in known:
            raise ValueError(
                f"two leaves have the path {path!r}: one would be labelled as the other"
            )
        known.add(path)


def partition_by_label(
    spherical: Callable[[Sequence[int]], optax.GradientTransformation],
    euclidean: optax.GradientTransformation,
    labels: Labels | None,
    channel_axes: ChannelAxesTable | None,
) -> optax.GradientTransformationExtraArgs:
    """Applies ``spherical(axes)`` or ``euclidean`` to each leaf, as its label says.

    Args:
      spherical: from channel axes to the transformation of the leaves that have
        them.
      euclidean: transformation of the leaves that lie on no sphere.
      labels: label tree or a function that makes one from the parameters; ``None``
        means :func:`label_conv_filters`.
      channel_axes: label to channel axes; ``None`` means ``CHANNEL_AXES``.

    Returns:
      :func:`optax.partition` over the labels.

    Raises:
      ValueError: at ``init`` and ``update``, naming the path, for a leaf without a
        label, a label that is not in ``channel_axes``, an axis out of range, or two
        leaves of one path.
    """
    table = checked_table(channel_axes)
    transforms: dict[Hashable, optax.GradientTransformation] = {
        label: euclidean if axes is None else spherical(geometry.checked_axes(axes))
        for label, axes in table.items()
    }

    def resolve(tree: optax.Params) -> LabelTree:
        return _resolve(labels, tree, table)

    return optax.partition(transforms, resolve)


def checked_table(channel_axes: ChannelAxesTable | None) -> ChannelAxesTable:
    """Returns the table from label to axes; ``None`` means ``CHANNEL_AXES``.

    Raises:
      ValueError: it is no table, or the axes are not sequences of integers.
    """
    table = CHANNEL_AXES if channel_axes is None else channel_axes
    if not isinstance(table, Mapping):
        raise ValueError(
            f"channel_axes must be a mapping from label to axes, got {channel_axes!r}"
        )
    for axes in table.values():
        if axes is not None:
            geometry.checked_axes(axes)
    return table


def axes_by_path(
    labels: Labels | None, channel_axes: ChannelAxesTable | None, tree: optax.Params
) -> dict[str, Sequence[int] | None]:
    """Lists the channel axes of every leaf, ``None`` where it lies on no sphere.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"conv": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}
      >>> axes_by_path(None, None, params)
      {'bias': None, 'conv': (-1,)}
    """
    table = checked_table(channel_axes)
    found = leaves_with_paths(_resolve(labels, tree, table))
    return {path: table[label] for path, label in found}


def check_axes(tree: optax.Params, channel_axes: Sequence[int]) -> None:
    """Raises a ValueError that names the first leaf too small for the axes."""
    for path, leaf in leaves_with_paths(tree):
        if leaf is not None:
            _check_leaf_axes(path, ndim(leaf), channel_axes)


def _resolve(
    labels: Labels | None, tree: optax.Params, table: ChannelAxesTable
) -> LabelTree:
    """Spreads labels over the leaves of ``tree`` and checks every one."""
    given = label_conv_filters if labels is None else labels
    given = given(tree) if _is_function(given) else given
    check_paths(tree)
    check_paths(given)
    by_path = dict(leaves_with_paths(given))

    def label_of(path: str, leaf: Any) -> str:
        prefixes = (path.rsplit("/", n)[0] for n in range(path.count("/") + 1))
        label = next((by_path[p] for p in [*prefixes, ""] if p in by_path), None)
        if label is None:
            raise ValueError(f"labels: no label for the leaf {path!r}")
        if not isinstance(label, str) or label not in table:
            raise ValueError(
                f"labels: the label of the leaf {path!r} must be one of"
                f" {sorted(table)} (the keys of channel_axes), got {label!r}"
            )
        axes = table[label]
        if axes is not None and leaf is not None:
            _check_leaf_axes(path, ndim(leaf), axes)
        return label

    return map_with_path(label_of, tree)


def _is_function(labels: Any) -> bool:
    """Whether labels come from a function.

    A module of Equinox with a label at each leaf can be called, too.
    """
    leaves = jax.tree.leaves(labels)
    is_tree = bool(leaves) and all(isinstance(leaf, str) for leaf in leaves)
    return callable(labels) and not is_tree


def _check_leaf_axes(path: str, ndim: int, channel_axes: Sequence[int]) -> None:
    try:
        geometry.group_axes(ndim, channel_axes)
    except ValueError as error:
        raise ValueError(f"the leaf {path!r}: {error}") from None


def map_with_path(function: Callable[[str, Any], str], tree: Any) -> LabelTree:
    """Maps (path, leaf) over a tree whose Flax variables count as leaves.

    A variable of NNX is a node with one child, `value`, until it is made pure, and so
    is a box of Linen, with the names of axes, until it is taken off. So that a path is
    the same before and after, the variable itself is the leaf.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_string(path), _unwrap(leaf)),
        tree,
        is_leaf=_is_variable,
    )


def _is_variable(node: Any) -> bool:
    """Whether the node is a variable of Flax NNX, or a box of Flax Linen.

    Flax is never imported here.
    """
    kinds = [(kind.__module__, kind.__name__) for kind in type(node).__mro__]
    return any(
        module.startswith(package) and name == kind
        for module, name in kinds
        for package, kind in (("flax.nnx", "Variable"), ("flax.core", "AxisMetadata"))
    )


def _unwrap(node: Any) -> Any:
    """The array in a variable; None in one that is masked out."""
    leaves = jax.tree.leaves(node) if _is_variable(node) else [node]
    return leaves[0] if len(leaves) == 1 else None


def ndim(leaf: Any) -> int:
    """Number of axes of an array, of its abstract shape or of a Python number."""
    return len(getattr(leaf, "shape", ()))
