"""Settings of a study: a TOML file, and another one with what is to be different."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import UsageError

Settings = Mapping[str, Any]
_SMALL = "small"


def read_settings(path: Path, given: Path | None, *, small: bool) -> dict[str, Any]:
    """The settings of a study.

    Args:
      path: its own file; the table ``small`` has what is different in little.
      given: a file with some of the same names, whose values win.
      small: whether to take those in little.

    Raises:
      UsageError: the other file cannot be read, or has a name or a type of value that
        the study's own has not.
    """
    settings = tomllib.loads(path.read_text())
    in_little = settings.pop(_SMALL)
    if small:
        settings |= in_little
    if given is not None:
        settings |= _checked(_read(given), settings, given)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from None


def _checked(
    found: dict[str, Any], known: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    for name, value in found.items():
        if name not in known:
            raise UsageError(
                f"--config {path}: unknown setting {name!r}; known: {', '.join(known)}"
            )
        wanted = type(known[name])
        number = wanted is float and type(value) is int
        if type(value) is not wanted and not number:
            raise UsageError(
                f"--config {path}: {name} must be like {known[name]!r}, got {value!r}"
            )
        if value in (0, [], {}, "") and known[name]:
            raise UsageError(f"--config {path}: {name} must not be {value!r}")
    return found
