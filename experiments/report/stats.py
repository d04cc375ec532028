"""Means over seeds, and differences of means with their uncertainty."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """What is known of one setting: how many seeds, their mean and deviation.

    Attributes:
      n: number of seeds.
      mean: NaN without seeds.
      std: standard deviation of the population, estimated with n - 1; NaN below two.
    """

    n: int
    mean: float
    std: float


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of means, with its confidence interval and two-sided p-value.

    Attributes:
      estimate: the sum.
      low: lower end of the interval at ``CONFIDENCE``.
      high: upper end.
      p: probability of an estimate this far from 0 if the true sum were 0.
    """

    estimate: float
    low: float
    high: float
    p: float


def describe(values: Iterable[float]) -> Sample:
    """Number, mean and standard deviation; exactly 0 where all values are the same."""
    array = np.asarray(list(values), float)
    n = len(array)
    if n > 1 and array.min() == array.max():  # the mean may be rounded
        return Sample(n, float(array[0]), 0.0)
    mean = float(array.mean()) if n else math.nan
    return Sample(n, mean, float(array.std(ddof=1)) if n > 1 else math.nan)


def contrast(terms: Sequence[tuple[float, Sample]]) -> Contrast | None:
    r"""Welch's test of ``sum(c_i mean_i) = 0``; deviations need not be equal.

    The standard error is ``sqrt(sum(v_i))`` with ``v_i = c_i^2 std_i^2 / n_i``, and the
    degrees of freedom are Welch and Satterthwaite's
    ``sum(v_i)^2 / sum(v_i^2 / (n_i - 1))``. With coefficients 1 and -1 this is Welch's
    t-test.

    Args:
      terms: pairs of a coefficient, not 0, and a sample.

    Returns:
      None where nothing can be said: fewer than two seeds somewhere, or no variation
      between seeds at all.
    """
    if any(sample.n < 2 for _, sample in terms):
        return None
    estimate = sum(c * sample.mean for c, sample in terms)
    variances = [c**2 * sample.std**2 / sample.n for c, sample in terms]
    error = math.sqrt(sum(variances))
    if error == 0:
        return None
    parts = zip(variances, terms, strict=True)
    df = error**4 / sum(v**2 / (sample.n - 1) for v, (_, sample) in parts)
    t = abs(estimate) / error
    half = float(special.stdtrit(df, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(special.stdtr(df, -t))
    return Contrast(estimate, estimate - half, estimate + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: the chance of even one false alarm among all is bounded."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted
