"""Two arms, item by item; several such contrasts at once; what could not have been seen."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import optimize, stats

from entropix.lab.statistics.intervals import LEVEL, Interval, Numbers, mean_interval, present, standard_error
from entropix.lab.statistics.shares import paired_shares

POWER = 0.8  # with which the smallest difference would have been seen
FEW = 200  # items; below, right and wrong answers get the interval of two shares instead of Student's


class Contrast(NamedTuple):
    """The paired difference of two arms. None where fewer than two items have both, or all differences are alike."""

    n: int  # items
    difference: Interval
    effect: Interval | None
    """Cohen's d of the differences, their mean over their standard deviation; its interval is that of the noncentral t
    distribution (Cumming & Finch 2001)."""
    p: float | None  # two-sided, of Student's paired test or, where `is_exact`, of the mid-p McNemar test
    # The smallest mean difference that such a test sees four times out of five, at 5 %.
    detectable: float | None
    is_exact: bool = False  # of fewer than 200 items with one right or wrong answer each; see `paired_shares`


def contrast(values: Numbers, before: Numbers, are_scores: bool = True) -> Contrast | None:
    """values - before, item by item; None if no item has both.

    are_scores: 0 and 1 may stand for wrong and right. Where all are 0 or 1 then, and items are fewer than 200, interval
    and p-value are those of two shares (`paired_shares`): Student's would be too narrow for few changes, and of no
    width without any.
    """
    pairs = [(a, b) for a, b in zip(values, before, strict=True) if a is not None and b is not None]
    difference = mean_interval([a - b for a, b in pairs])
    if difference is None:
        return None
    there = present([a - b for a, b in pairs])
    n, error = len(there), standard_error(there)
    shares = None
    if are_scores and 2 <= n < FEW and {value for pair in pairs for value in pair} <= {0, 1}:
        shares = paired_shares([bool(a) for a, _ in pairs], [bool(b) for _, b in pairs])
        difference = shares.difference
    if n < 2 or error == 0:
        return Contrast(n, difference, None, None if shares is None else shares.p, None, shares is not None)
    t = difference.mean / error
    p = float(2 * stats.t.sf(abs(t), n - 1)) if shares is None else shares.p
    sd = error * math.sqrt(n)
    return Contrast(n, difference, _effect(t, n), p, detectable(sd, n), shares is not None)


def detectable(sd: float, n: int) -> float:
    """The smallest mean difference that Student's paired test of n items sees four times out of five, at 5 %.

    sd: standard deviation of the differences of items.
    """
    return float((stats.t.ppf((1 + LEVEL) / 2, n - 1) + stats.t.ppf(POWER, n - 1)) * sd / math.sqrt(n))


def items_needed(sd: float, difference: float) -> int:
    """The fewest items, at least two, with which a mean difference of this size, not 0, is `detectable`."""
    enough = 2
    while detectable(sd, enough) > abs(difference):
        enough *= 2
    few = enough // 2
    while enough - few > 1 and enough > 2:
        middle = (few + enough) // 2
        if detectable(sd, middle) <= abs(difference):
            enough = middle
        else:
            few = middle
    return enough


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
