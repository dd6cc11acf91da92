"""Intervals of any figure that is made of clusters of items: which are drawn anew, with all their items, many times.

Items of a cluster, such as the positions of a document or the answers to a question, are not independent; clusters
are. A figure is a function of how often each cluster counts, for many such weights at once.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from entropix.lab.statistics.intervals import LEVEL, Interval

# Weights of clusters [R, C] -> values [R], or [R, M] of several figures; NaN where there is none.
Figure = Callable[[np.ndarray], np.ndarray]

RESAMPLES = 2000
_BLOCKS = 500  # most parts that are left out in turn for the acceleration
_ROOM = 2**22  # most weights of clusters or items at once


def bootstrap(figure: Figure, n_clusters: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The figure with all clusters counted once, and its bias-corrected and accelerated interval (BCa, Efron 1987).

    The quantiles are as much further out as Student's are than the normal distribution's (Hesterberg 2015,
    arXiv:1411.5279), without which intervals of few clusters are too narrow. Below some 30 clusters of very skewed
    contributions they remain so: with 15 of exponential ones, 91 % hold the truth. Without bounds for fewer than two
    clusters, or where the figure has no value.
    """
    value, low, high = map(float, bounds(figure, n_clusters, resamples, seed))
    return Interval(value, None, None) if np.isnan(low) else Interval(value, low, high)


def bounds(
    figure: Figure, n_clusters: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, lower and upper bound of a figure, or of several [M] with the same resamples; NaN for bounds that there
    are none of."""
    [value] = figure(np.ones((1, n_clusters)))
    if n_clusters < 2:
        return value, value * np.nan, value * np.nan
    rng = np.random.default_rng(seed)
    even = np.full(n_clusters, 1 / n_clusters)
    rows = max(1, _ROOM // n_clusters)
    drawn = np.concatenate(
        [
            figure(rng.multinomial(n_clusters, even, min(rows, resamples - start)).astype(np.float64))
            for start in range(0, resamples, rows)
        ]
    )
    drawn = np.sort(drawn, axis=0)  # NaN last
    there = np.isfinite(drawn).sum(axis=0)
    below = (np.sum(drawn < value, axis=0) + np.sum(drawn == value, axis=0) / 2) / np.maximum(there, 1)
    shift = special.ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    reach = np.sqrt(n_clusters / (n_clusters - 1)) * special.stdtrit(n_clusters - 1, (1 + LEVEL) / 2)
    acceleration = _acceleration(figure, n_clusters)
    found = []
    for end in (shift - reach, shift + reach):
        share = special.ndtr(shift + end / (1 - acceleration * end))
        found.append(np.where(np.isfinite(value) & (there > 0), _quantile(drawn, share, there), np.nan))
    return value, found[0], found[1]


def cluster_mean(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over items, with an interval over the clusters that they belong to; a name or number each.

    The interval is the bootstrap-t (Efron 1979; Hall 1988): resamples say how the mean's distance to the truth, in
    standard errors, is distributed. Of means it holds the truth more often than `bootstrap`.
    """
    index, n = numbered(clusters)
    sums, counts = np.bincount(index, np.asarray(values, np.float64), n), np.bincount(index, minlength=n)
    if n < 2:
        return Interval(float(sums.sum() / counts.sum()), None, None)
    mean, low, high = mean_bounds(sums[:, None], counts[:, None].astype(np.float64), resamples, seed)
    return Interval(float(mean[0]), float(low[0]), float(high[0]))


def mean_bounds(
    sum_CM: np.ndarray, count_CM: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means [M] of values of which each cluster, of at least two, has a sum and a number, and the bounds of
    `cluster_mean`."""
    n_clusters = len(sum_CM)
    even = np.full(n_clusters, 1 / n_clusters)
    weights_RC = np.random.default_rng(seed).multinomial(n_clusters, even, resamples).astype(np.float64)
    products = (sum_CM**2, sum_CM * count_CM, count_CM**2)

    def mean_and_error(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = weights @ count_CM
        mean = weights @ sum_CM / n
        squares, mixed, counts = (weights @ product for product in products)
        spread = squares - 2 * mean * mixed + mean**2 * counts  # of sum - mean × count, over the clusters
        spread[spread <= 1e-12 * squares] = 0
        return mean, np.sqrt(spread * n_clusters / (n_clusters - 1)) / n

    [mean], [error] = mean_and_error(np.ones((1, n_clusters)))
    drawn, errors = mean_and_error(weights_RC)
    away = np.where(errors > 0, (drawn - mean) / np.where(errors > 0, errors, 1), np.nan)
    away = np.sort(away, axis=0)
    there = np.isfinite(away).sum(axis=0)
    low, high = (
        mean
        - np.where(error > 0, error, 0) * np.nan_to_num(_quantile(away, np.full_like(mean, share), there))
        for share in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
    )
    return mean, low, high


def numbered(clusters: Sequence[object] | np.ndarray) -> tuple[np.ndarray, int]:
    """The number of each item's cluster, from 0 in the order of appearance, and how many clusters there are."""
    places: dict[object, int] = {}
    index = np.array([places.setdefault(cluster, len(places)) for cluster in clusters], np.int64)
    return index, len(places)


def of_items(figure: Figure, index_N: np.ndarray) -> Figure:
    """A figure of weights of clusters, from one of weights of items [R, N]; a few rows at once, as memory allows."""
    rows = max(1, _ROOM // len(index_N))

    def by_cluster(weights_RC: np.ndarray) -> np.ndarray:
        starts = range(0, len(weights_RC), rows)
        return np.concatenate([figure(weights_RC[start : start + rows, index_N]) for start in starts])

    return by_cluster


def _acceleration(figure: Figure, n_clusters: int) -> np.ndarray:
    """How the spread of the figure changes with its value: a sixth of the skewness of what clusters contribute."""
    blocks = min(n_clusters, _BLOCKS)
    weights = np.ones((blocks, n_clusters))
    clusters = np.arange(n_clusters)
    weights[clusters % blocks, clusters] = 0
    without = figure(weights)
    there = np.isfinite(without)
    without = np.where(there, without, 0)
    mean = without.sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    change = np.where(there, mean - without, 0)
    spread = np.sum(change**2, axis=0)
    return np.sum(change**3, axis=0) / np.where(spread > 0, 6 * spread**1.5, 1)


def _quantile(drawn: np.ndarray, share: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The quantile of each column of sorted values, of which so many are there."""
    place = share * (np.maximum(there, 1) - 1)
    low = np.floor(place).astype(np.int64)
    values = [
        np.take_along_axis(drawn, np.minimum(at, np.maximum(there, 1) - 1)[None, ...], axis=0)[0]
        for at in (low, low + 1)
    ]
    return values[0] + (place - low) * (values[1] - values[0])
