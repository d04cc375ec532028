"""Compiling before the clock runs, and only once what several runs have in common."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax

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
    options = dict(options or {})
    if jax.default_backend() == "gpu":
        options["xla_gpu_deterministic_ops"] = True  # the same bits in every run
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    kept = _kept.get()
    if kept is None:
        return lowered.compile(options)
    name = _name_of(lowered, options)
    if name not in kept:
        kept[name] = lowered.compile(options)
    return kept[name]


def _name_of(lowered: jax.stages.Lowered, options: Mapping[str, Any]) -> str:
    """The same for two functions that are the same program of the same trees."""
    trees = (str(lowered.in_tree), str(lowered.out_tree))
    said = repr((lowered.as_text(), trees, sorted(options.items())))
    return hashlib.sha256(said.encode()).hexdigest()
