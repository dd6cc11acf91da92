"""What a comparison can say: means over items with intervals, effect sizes, many contrasts at once, and what could not
have been seen.

An item is a prompt or a question; every arm has a number for each, made of all its answers there. Items differ more
than arms do, so arms are compared item by item (paired), and all below is over items (Miller 2024, arXiv:2411.00640).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.95, 0.8  # of intervals; of the smallest difference that would have been seen
Numbers = Sequence[float | None]


class Interval(NamedTuple):
    """A mean over items and its 95 % interval, Student's; None where there are fewer than two items."""

    mean: float
    low: float | None
    high: float | None


class Contrast(NamedTuple):
    """The paired difference of two arms. None where fewer than two items have both, or all differences are alike."""

    n: int  # items
    difference: Interval
    effect: Interval | None
    """Cohen's d of the differences, their mean over their standard deviation; its interval is that of the noncentral t
    distribution (Cumming & Finch 2001)."""
    p: float | None  # two-sided, of Student's paired test
    detectable: (
        float | None
    )  # the smallest mean difference that such a test sees four times out of five, at 5 %


def mean_interval(values: Numbers) -> Interval | None:
    """Of the items that have a number; None if none has."""
    there = _there(values)
    if len(there) == 0:
        return None
    mean = float(np.mean(there))
    if len(there) == 1:
        return Interval(mean, None, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(there) - 1)) * _standard_error(there)
    return Interval(mean, mean - half, mean + half)


def contrast(values: Numbers, before: Numbers) -> Contrast | None:
    """values - before, item by item; None if no item has both."""
    pairs = zip(values, before, strict=True)
    change = [None if a is None or b is None else a - b for a, b in pairs]
    difference = mean_interval(change)
    if difference is None:
        return None
    there = _there(change)
    n, error = len(there), _standard_error(there)
    if n < 2 or error == 0:
        return Contrast(n, difference, None, None, None)
    t = difference.mean / error
    seen = stats.t.ppf((1 + LEVEL) / 2, n - 1) + stats.t.ppf(POWER, n - 1)
    return Contrast(n, difference, _effect(t, n), float(2 * stats.t.sf(abs(t), n - 1)), float(seen * error))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values, each corrected for all that are there: the chance of any false alarm stays below the level (Holm
    1979)."""
    there = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(there):
        largest = max(largest, min(1.0, p * (len(there) - rank)))
        corrected[i] = largest
    return corrected


def _effect(t: float, n: int) -> Interval:
    """Cohen's d of n paired differences with this t."""

    def bound(share: float) -> float:
        """The noncentrality at which so much lies above t."""
        reach = 10 + abs(t) * 2
        return float(optimize.brentq(lambda nc: stats.nct.sf(t, n - 1, nc) - share, t - reach, t + reach))

    low, high = (bound(share) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(t / math.sqrt(n), low / math.sqrt(n), high / math.sqrt(n))


def _there(values: Numbers) -> np.ndarray:
    return np.array([value for value in values if value is not None], np.float64)


def _standard_error(values: np.ndarray) -> float:
    """Of their mean; 0 for differences that rounding alone makes unlike."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return 0.0 if error <= 1e-12 * float(np.max(np.abs(values), initial=0.0)) else error
