"""Checks of arguments: every error names the argument and what is allowed."""

import math
import operator
from collections.abc import Collection
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from spherical_optax._limits import saturated_like
from spherical_optax.labels import leaves_with_paths


def check_numbers(
    *,
    positive: dict[str, Any] | None = None,
    non_negative: dict[str, Any] | None = None,
    below_one: dict[str, Any] | None = None,
    up_to_one: dict[str, Any] | None = None,
    arrays: bool = False,
) -> None:
    """Raises a ValueError for the first hyperparameter that is out of its range.

    Values are known by the argument's name. Schedules and traced values pass: what
    they will be is not known yet. With ``arrays`` a value is a number or an array of
    them, and no schedule.
    """
    _check(positive, "a number > 0", lambda x: x > 0, arrays)
    _check(non_negative, "a number >= 0", lambda x: x >= 0, arrays)
    _check(below_one, "a number in [0, 1)", lambda x: 0 <= x < 1, arrays)
    _check(up_to_one, "a number in [0, 1]", lambda x: 0 <= x <= 1, arrays)


def is_traced(value: Any) -> bool:
    """Whether a value is not known while the Python code runs."""
    return isinstance(value, jax.core.Tracer)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {sorted(choices)}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises a ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_whole(**arguments: Any) -> None:
    """Raises a ValueError for the first argument that is no whole number >= 1."""
    for name, value in arguments.items():
        if is_traced(value):
            continue
        try:
            whole = not isinstance(value, bool) and operator.index(value) >= 1
        except TypeError:
            whole = False
        if not whole:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def check_transformation(name: str, value: Any) -> None:
    """Raises a ValueError unless ``value`` is a transformation of Optax."""
    if not isinstance(value, optax.GradientTransformation):
        raise ValueError(
            f"{name} must be an optax.GradientTransformation, got {value!r}"
        )


def check_dtype(name: str, dtype: Any) -> jnp.dtype | None:
    """Returns ``dtype`` as JAX spells it; a ValueError unless None or inexact."""
    if dtype is None:
        return None
    try:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    except TypeError:
        inexact = False
    else:
        inexact = jnp.issubdtype(dtype, jnp.inexact)
    if not inexact:
        raise ValueError(f"{name} must be None or a floating point type, got {dtype!r}")
    return dtype


def needs_params(
    name: str, transformation: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that what it cannot use is an error that names it.

    That is a call without parameters, and weights that are no floating point or complex
    numbers. Updates leave in the type of the gradients that came in, or in that of the
    weights where it holds more, whatever the types of hyperparameters and accumulators.
    """
    inner = optax.with_extra_args_support(transformation)

    def init_fn(params):
        params = jax.tree.map(_as_array, params)
        for path, leaf in leaves_with_paths(params):
            if leaf is not None and not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(
                    f"{name}: the leaf {path!r} must be of floating point or complex"
                    f" numbers, got {leaf.dtype}; optax.masked leaves others out"
                )
        return inner.init(params)

    def as_wide(g, x):
        g, dtype = _as_array(g), jnp.result_type(x)
        return g.astype(dtype) if jnp.promote_types(g.dtype, dtype) == dtype else g

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                f"{name} needs the parameters: call update(updates, state, params)"
            )
        params = jax.tree.map(_as_array, params)
        updates = jax.tree.map(as_wide, updates, params)
        new_updates, state = inner.update(updates, state, params, **extra_args)
        return saturated_like(new_updates, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _as_array(x: Any) -> Any:
    """Numbers of Python and arrays of NumPy in the types that JAX has for them.

    Arrays of JAX, and what stands for one, as they are.
    """
    if hasattr(x, "dtype") and not isinstance(x, (np.ndarray, np.generic)):
        return x
    return jnp.asarray(x, jnp.result_type(x))


def _check(arguments, allowed, in_range, arrays) -> None:
    for name, value in (arguments or {}).items():
        if is_traced(value) or (callable(value) and not arrays):
            continue
        numbers = _numbers(value, arrays)
        if not all(math.isfinite(x) and in_range(x) for x in numbers):
            raise ValueError(
                f"{name} must be {allowed}, got {value!r}{_rounded(value)}"
            )


def _rounded(value: Any) -> str:
    """Advice for a number that may have been rounded to what it is."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 2:
        return ""
    return (
        ", as it was rounded to 16 bits or less: optax.inject_hyperparams needs"
        " hyperparam_dtype=jnp.float32 for such weights"
    )


def _numbers(value: Any, arrays: bool) -> list[float]:
    """The value as numbers; not a number where it is none."""
    if isinstance(value, (bool, str)):
        return [math.nan]
    try:
        return np.ravel(np.asarray(value, float)).tolist() if arrays else [float(value)]
    except (TypeError, ValueError):
        return [math.nan]
