"""How much of the spread of answers is between items and how much within them: how many seeds are enough."""

import math
from typing import NamedTuple

import numpy as np

_ADDED = 0.05  # of the standard error: what the seeds may add to it at most where they are enough


class Variance(NamedTuple):
    """The parts of the variance of one answer's figure, and what they make of the mean over items and seeds."""

    n_items: int
    between: float  # variance of items' true means; 0 where the seeds explain all of it
    within: float  # variance of the answers to one item
    error: float  # standard error of the mean over all items, as it is
    error_with_more_seeds: float  # what would be left of it with any number of seeds: items are what lacks
    # The fewest whose part in the error is at most a twentieth; None if items are all alike.
    enough_seeds: int | None


def variance(values_by_item: list[list[float]]) -> Variance:
    """Of items with several answers each, at least two items and two answers to one of them (one-way random effects by
    analysis of variance, for unequal numbers of answers too)."""
    rows = [np.asarray(row, np.float64) for row in values_by_item if len(row)]
    counts = np.array([len(row) for row in rows], np.float64)
    n, total = len(rows), counts.sum()
    if n < 2 or total <= n:
        raise ValueError(
            f"expected at least two items, and several answers to one, got {int(total)} answers to {n} items"
        )
    within = float(sum(np.sum((row - row.mean()) ** 2) for row in rows) / (total - n))
    means = np.array([row.mean() for row in rows])
    grand = float((counts * means).sum() / total)
    spread = float((counts * (means - grand) ** 2).sum() / (n - 1))
    effective = (total - (counts**2).sum() / total) / (n - 1)  # answers of an item, as far as they are equal
    between = max(0.0, (spread - within) / effective)
    enough = None
    if between > 0:
        enough = max(1, math.ceil(within / (between * ((1 + _ADDED) ** 2 - 1))))
    return Variance(
        n_items=n,
        between=between,
        within=within,
        error=math.sqrt((between + within * float(np.mean(1 / counts))) / n),
        error_with_more_seeds=math.sqrt(between / n),
        enough_seeds=enough,
    )
