"""Means over items, with intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of intervals
Numbers = Sequence[float | None]


class Interval(NamedTuple):
    """A figure and its 95 % interval; None where there are too few items for one."""

    mean: float
    low: float | None
    high: float | None

    def within(self, low: float, high: float) -> "Interval":
        """The same without what the figure cannot be: a share is not above 1, whatever Student says of a few items."""
        if self.low is None or self.high is None:
            return self
        ends = min(self.mean, max(self.low, low)), max(self.mean, min(self.high, high))
        return Interval(self.mean, *ends)


def halves(found: Interval | None) -> tuple[float, float]:
    """(below, above): how far an interval reaches from its mean, not always its middle; 0 where there is none."""
    if found is None or found.low is None or found.high is None:
        return 0.0, 0.0
    return found.mean - found.low, found.high - found.mean


def is_apart(change: Interval) -> bool:
    """Whether the interval of a difference leaves zero out."""
    return change.low is not None and change.high is not None and (change.low > 0 or change.high < 0)


def mean_interval(values: Numbers) -> Interval | None:
    """The mean of the items that have a number, and Student's interval; None if none has."""
    there = present(values)
    if len(there) == 0:
        return None
    mean = float(np.mean(there))
    if len(there) == 1:
        return Interval(mean, None, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(there) - 1)) * standard_error(there)
    return Interval(mean, mean - half, mean + half)


def present(values: Numbers) -> np.ndarray:
    """The numbers that are there."""
    return np.array([value for value in values if value is not None], np.float64)


def standard_error(values: np.ndarray) -> float:
    """Of their mean; 0 for differences that rounding alone makes unlike."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return 0.0 if error <= 1e-12 * float(np.max(np.abs(values), initial=0.0)) else error
