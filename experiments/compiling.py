"""Compiling before the clock runs, and only once what several runs have in common."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax

# Which parts of a program a CPU leaves to the library YNNPACK: sums, as it does anyhow,
# but not convolutions, which XLA's own way does in two thirds of the time.
_FOR_CONVOLUTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
}

_kept: ContextVar[dict[str, jax.stages.Compiled] | None] = ContextVar(
    "kept", default=None
)


@contextlib.contextmanager
def compiling_once() -> Iterator[None]:
    """Within its context a program that was compiled before is not compiled again."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def compile_ahead(
    function: Callable[..., Any],
    *args: Any,
    donate: int | Sequence[int] = (),
    options: Mapping[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Compiles a function for the shapes of ``args``, so that no timing has it.

    Args:
      function: a pure function of arrays.
      *args: arguments of the shapes and types that it will be called with.
      donate: positions of arguments whose buffers the call may reuse.
      options: of the compiler.
    """
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    options = {**_options_for(lowered), **(options or {})}
    kept = _kept.get()
    if kept is None:
        return lowered.compile(options)
    name = _name_of(lowered, options)
    if name not in kept:
        kept[name] = lowered.compile(options)
    return kept[name]


def _options_for(lowered: jax.stages.Lowered) -> dict[str, Any]:
    """What the compiler is told, by platform."""
    backend = jax.default_backend()
    if backend == "gpu":
        return {"xla_gpu_deterministic_ops": True}  # the same bits in every run
    if backend == "cpu" and "stablehlo.convolution" in lowered.as_text():
        return {k: v for k, v in _FOR_CONVOLUTIONS.items() if _is_known(k, v)}
    return {}


@functools.cache
def _is_known(option: str, value: str) -> bool:
    """Whether this version of XLA takes an option, of which it promises nothing."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile({option: value})
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True


def _name_of(lowered: jax.stages.Lowered, options: Mapping[str, Any]) -> str:
    """The same for two functions that are the same program of the same trees."""
    trees = (str(lowered.in_tree), str(lowered.out_tree))
    said = repr((lowered.as_text(), trees, sorted(options.items())))
    return hashlib.sha256(said.encode()).hexdigest()
