"""Evaluates a loss and its gradients at points around given parameters."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spherical_optax.geometry import working_dtype

Points = list[np.ndarray]

# The part of a perturbation that leaves most signs as they are.
NEAR = 0.2
# Programs whose numbers are spaced wider than this next to 1 have noisy gradients.
COARSE = 1e-4


class Evaluation(NamedTuple):
    """A point, the loss there and its gradients, one array a leaf."""

    point: Points
    loss: float
    gradients: Points


class Probe:
    """A loss as a function of the floating point leaves of its parameters.

    It is compiled, unless it looks at values in Python, with an ``if`` or a slice say.

    Attributes:
      indices: which leaves of the parameters those are.
      start: their values, float32 at least.
      precision: the spacing of numbers near 1 in the narrowest type computed in.
      is_fine: whether that is so narrow that gradients are more than rounding errors.
    """

    def __init__(self, loss_fn: Callable[..., Any], params: Any, args: Sequence[Any]):
        leaves, structure = jax.tree.flatten(params)
        self.indices = [i for i, leaf in enumerate(leaves) if _is_measurable(leaf)]
        self.start = [_as_numpy(leaves[i]) for i in self.indices]
        others = [None if i in self.indices else x for i, x in enumerate(leaves)]
        arrays, rebuild = _split_arrays((others, list(args)))

        def loss(keep_types, values, arrays):
            others, args = rebuild(arrays)
            filled = list(others)
            for i, value in zip(self.indices, values, strict=True):
                dtype = jnp.result_type(leaves[i]) if keep_types else value.dtype
                filled[i] = value.astype(dtype)
            return loss_fn(jax.tree.unflatten(structure, filled), *args)

        self._arrays = arrays
        self._shardings = [_sharding(leaves[i]) for i in self.indices]
        narrow = any(
            jnp.result_type(leaves[i]) != working_dtype(leaves[i]) for i in self.indices
        )
        self._loss, jaxpr = self._choose_types(loss, narrow)
        self.precision = _precision(jaxpr, self.start)
        self.is_fine = self.precision <= COARSE
        evaluate = jax.value_and_grad(self._loss)
        self._evaluate = evaluate if jaxpr is None else jax.jit(evaluate)

    def __call__(self, point: Points) -> Evaluation:
        """The loss and its gradients at a point."""
        # Where a number is not finite, another point is tried.
        with (
            jax.default_matmul_precision("highest"),
            jax.debug_nans(False),
            jax.debug_infs(False),
        ):
            loss, gradients = self._evaluate(self._placed(point), self._arrays)
        return Evaluation(point, float(loss), [np.asarray(g) for g in gradients])

    def evaluate_start(self) -> Evaluation:
        """The loss at the parameters themselves.

        Raises:
          ValueError: it is not finite, or not the same a second time.
        """
        first = self(self.start)
        if not math.isfinite(first.loss):
            raise ValueError(f"loss_fn must be finite at params, got {first.loss}")
        _check_equal(first.loss, self(self.start).loss, self.precision)
        return first

    def _placed(self, point: Points) -> list[Any]:
        """A point on the devices that hold the parameters, spread over them alike."""
        return [
            x if sharding is None else jax.device_put(x, sharding)
            for x, sharding in zip(point, self._shardings, strict=True)
        ]

    def _choose_types(self, loss, narrow: bool):
        """Computes in float32 where the loss allows it, else in the leaves' types."""
        for keep_types in (False, True) if narrow else (False,):
            chosen = functools.partial(loss, keep_types)
            try:
                return chosen, self._trace(chosen)
            except Exception:
                if keep_types or not narrow:
                    raise
        raise AssertionError

    def _trace(self, loss):
        """The loss as a program; None if it cannot be one, but can be evaluated."""
        try:
            return self._trace_twice(loss)
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                "loss_fn must return the same number for the same input, but it keeps"
                " arrays from one call to the next: fix its random keys"
            ) from error
        except Exception as error:
            if type(error).__name__ == "TraceContextError":  # of Flax NNX
                raise ValueError(
                    "loss_fn must return the same number for the same input, but it"
                    " changes a model that it shares with others: call"
                    " nnx.merge(..., copy=True)"
                ) from error
            if isinstance(error, (TypeError, IndexError)) and self._evaluates(loss):
                return None  # Python looks at values, with an ``if`` or a slice
            raise

    def _evaluates(self, loss) -> bool:
        """Whether it is a number outside of a program."""
        try:
            start = [jnp.asarray(x) for x in self._placed(self.start)]
            result = loss(start, self._arrays)
        except Exception:
            return False
        if any(not isinstance(x, jax.Array) for x in jax.tree.leaves(result)):
            raise ValueError(
                "loss_fn must return one real number that JAX has computed, got"
                f" {type(result).__name__}: leave out float(...), .item() and NumPy"
            )
        _check_real_number(result)
        return True

    def _trace_twice(self, loss):
        """The loss as a program; the same one if it is traced again."""
        start = self._placed(self.start)
        with jax.default_matmul_precision("highest"):
            (jaxpr, result), (again, _) = (
                jax.make_jaxpr(lambda *x: loss(*x), return_shape=True)(
                    start, self._arrays
                )
                for _ in range(2)
            )
            _check_real_number(result)
            if _text(jaxpr) != _text(again) or not _same(jaxpr.consts, again.consts):
                values = [
                    float(jax.jit(lambda *x: loss(*x))(start, self._arrays))
                    for _ in range(2)
                ]
                _check_equal(*values, precision=0.0)
        return jaxpr


def perturb(
    start: Points,
    rng: np.random.Generator,
    strength: float = 1.0,
    amplification: Sequence[float] | None = None,
    near: bool = False,
    keep_signs: bool = False,
) -> Points:
    """Draws a point around ``start``: at strength 1, half of each leaf is noise.

    Noise is as large as the leaf, and ``near`` the start a part of that, so that most
    signs are kept. Where a leaf is small or zero, as biases and last layers are at
    initialization, noise is what an initializer would give, near or not, times the
    amplification of the leaf, so that no dependence hides behind a zero. To keep signs
    each number other than zero is multiplied by one that is positive.
    """
    amplification = [1.0] * len(start) if amplification is None else amplification

    def leaf(x: np.ndarray, factor: float) -> np.ndarray:
        noise = rng.standard_normal(x.shape, np.float32)
        if np.iscomplexobj(x):
            noise = noise + 1j * rng.standard_normal(x.shape, np.float32)
        rms = math.sqrt(float(np.mean(np.abs(wide(x)) ** 2)))
        usual = 0.5 if x.ndim < 2 else math.sqrt(x.shape[-1] / x.size)
        small = rms < usual / 2
        angle = math.pi / 4 * strength * (NEAR if near and not small else 1.0)
        scale = math.sin(angle) * (factor * usual if small else max(rms, usual))
        moved = math.cos(angle) * x + scale * noise
        if keep_signs or _is_constant(x):
            moved = np.where(x == 0, moved, x * np.exp(math.sin(angle) * noise.real))
        return moved.astype(x.dtype)

    return [leaf(x, factor) for x, factor in zip(start, amplification, strict=True)]


def _is_constant(x: np.ndarray) -> bool:
    """Whether all numbers are the same one, as scales are at initialization."""
    return bool(np.all(x == x.flat[0]))


def wide(x: np.ndarray) -> np.ndarray:
    """The array in double precision: squares of small or large numbers are in range."""
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _is_traceable(leaf: Any) -> bool:
    """Whether it is an array of numbers or keys: no text, and no number of NumPy.

    Those are as good as Python's, and may be a size or an index.
    """
    return isinstance(leaf, jax.Array) or (
        isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUMm"
    )


def _is_measurable(leaf: Any) -> bool:
    """Whether it is an array of weights: no mask, infinite where nothing passes."""
    return (
        _is_array(leaf)
        and jnp.issubdtype(leaf.dtype, jnp.inexact)
        and leaf.size > 0
        and not jnp.any(jnp.isinf(leaf))
    )


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jnp.asarray(leaf, working_dtype(leaf)))


def _sharding(leaf: Any) -> Any:
    """Where an array lies, if somebody has put it there."""
    return leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None


def _split_arrays(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, and how to put them back among everything else."""
    leaves, structure = jax.tree.flatten(tree)
    where = [i for i, leaf in enumerate(leaves) if _is_traceable(leaf)]

    def rebuild(arrays):
        filled = list(leaves)
        for i, array in zip(where, arrays, strict=True):
            filled[i] = array
        return jax.tree.unflatten(structure, filled)

    return [leaves[i] for i in where], rebuild


def _check_real_number(result: Any) -> None:
    leaves = jax.tree.leaves(result)
    alone = len(leaves) == 1 and leaves[0] is result
    if alone and result.shape == () and jnp.issubdtype(result.dtype, jnp.floating):
        return
    if alone:
        got = f"an array of shape {result.shape} and type {result.dtype}"
    else:
        got = f"a {type(result).__name__} of {len(leaves)} arrays"
    raise ValueError(f"loss_fn must return one real number, got {got}")


def _check_equal(first: float, second: float, precision: float) -> None:
    if abs(first - second) > 64 * precision * max(abs(first), abs(second)):
        raise ValueError(
            "loss_fn must return the same number for the same input, got"
            f" {first} and {second}: fix its random keys"
        )


def _text(jaxpr: Any) -> str:
    """A program as text, without addresses in memory."""
    return re.sub("0x[0-9a-f]+", "", str(jaxpr))


def _same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two lists hold the same arrays."""

    def value(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return np.asarray(jax.random.key_data(x))
        return np.asarray(x)

    return len(first) == len(second) and all(
        a is b or np.array_equal(value(a), value(b))
        for a, b in zip(first, second, strict=True)
    )


def _precision(jaxpr: Any, start: Points) -> float:
    """The largest spacing near 1 among the types that a program computes in."""
    dtypes = {np.dtype(x.dtype) for x in start}
    dtypes |= set() if jaxpr is None else set(_dtypes(jaxpr.jaxpr))
    inexact = [t for t in dtypes if jnp.issubdtype(t, jnp.inexact)]
    return max((float(jnp.finfo(t).eps) for t in inexact), default=0.0)


def _dtypes(jaxpr: Any):
    """The types of all results in a program and the programs within."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "dtype", np.dtype(bool))
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _dtypes(inner)
