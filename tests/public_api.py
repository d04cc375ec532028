"""The public names, with signatures and fields, as text.

``python tests/public_api.py`` writes it to ``public_api.txt``, with which
``test_package.py`` compares the library: a change of the interface is a decision.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import spherical_optax as so

STORED = Path(__file__).with_name("public_api.txt")


def described() -> str:
    """A line a name, in the order of their names."""
    return "".join(f"{line}\n" for line in sorted(_lines(so, "")))


def _lines(module: ModuleType, prefix: str) -> Iterator[str]:
    for name in _names(module):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            yield f"{prefix}{name}: module"
            yield from _lines(thing, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}{_described(thing)}"


def _names(module: ModuleType) -> list[str]:
    """``__all__``, or else the public functions that the module itself defines."""
    if hasattr(module, "__all__"):
        return module.__all__
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(thing)
        and thing.__module__ == module.__name__
    ]


def _described(thing: Any) -> str:
    if not callable(thing):
        return f": {type(thing).__name__} = {thing!r}"
    signature = inspect.signature(thing)
    # Types are written differently by different versions; names and defaults are not.
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    text = str(inspect.Signature(parameters))
    return re.sub(r" at 0x\w+", "", text)


if __name__ == "__main__":
    STORED.write_text(described())
