"""How often something happens, as it is written on the command line."""

from typing import NamedTuple

from experiments.errors import UsageError
from experiments.values import parse_duration


class Period(NamedTuple):
    """Once in so many epochs, or so many seconds; never where both are None."""

    epochs: int | None = None
    seconds: float | None = None


def parse_period(option: str, text: str) -> Period:
    """Reads ``5`` (epochs), ``10m`` or ``never``.

    Raises:
      UsageError: it is nothing of the sort; the message names ``option``.
    """
    if text == "never":
        return Period()
    if text.isdecimal() and int(text) > 0:
        return Period(epochs=int(text))
    try:
        if text[-1:].isdecimal():
            raise UsageError("without a unit, it is no time")
        return Period(seconds=parse_duration(option, text))
    except UsageError:
        raise UsageError(
            f"{option} must be a number of epochs like 5, a time like 90s, 10m or 1.5h,"
            f" or never, got {text!r}"
        ) from None
