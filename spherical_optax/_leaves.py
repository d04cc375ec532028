"""What is done leaf by leaf, and traced once for all leaves of one shape."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_KEPT = 256  # functions of one kind that stay compiled, the last that were asked for


def leaf_function(function: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    """Of a function of a leaf and of hyperparameters: from these to one of a leaf.

    That one is compiled apart. It depends on the hyperparameters alone, so that an
    optimizer that is made again, as :func:`optax.inject_hyperparams` does at each step,
    compiles nothing anew. Arrays among them become arguments; all else (numbers of
    Python, axes, flags) is known when it is traced, so that ``1 - b1`` is rounded once.

    Example:
      >>> import jax.numpy as jnp
      >>> @leaf_function
      ... def decayed(x, *, b1):
      ...     return (1 - b1) * x
      >>> decayed(b1=0.75)(jnp.ones(2))
      Array([0.25, 0.25], dtype=float32)
      >>> decayed(b1=0.75) is decayed(b1=0.75)
      True
    """

    @functools.lru_cache(_KEPT)
    def compiled(*known: tuple[str, type, Any]) -> Callable[..., Any]:
        values = {name: value for name, _, value in known}
        return jax.jit(functools.partial(function, **values))

    @functools.wraps(function)
    def of_a_leaf(**hyperparameters: Any) -> Callable[..., Any]:
        arrays = {
            name: value
            for name, value in hyperparameters.items()
            if isinstance(value, jax.Array | np.ndarray)
        }
        # With types, since 1 and True are one key.
        known = (
            (name, type(value), value)
            for name, value in hyperparameters.items()
            if name not in arrays
        )
        found = compiled(*known)
        return functools.partial(found, **arrays) if arrays else found

    return of_a_leaf


def map_leaves(outputs: int, function: Callable, tree, *rest) -> tuple:
    """:func:`jax.tree.map` of a function that returns a tuple: a tuple of trees."""
    leaves, structure = jax.tree.flatten(tree)
    columns = [structure.flatten_up_to(other) for other in rest]
    results = [function(*leaf) for leaf in zip(leaves, *columns, strict=True)]
    by_output = zip(*results, strict=True) if results else [()] * outputs
    return tuple(structure.unflatten(column) for column in by_output)
