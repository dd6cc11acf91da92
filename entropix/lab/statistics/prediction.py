"""How well a number that is known before, such as an entropy, tells right from wrong: ranking, and refusing to answer.

All scores here are larger where an answer is more likely right; give minus the entropy.
"""

from collections.abc import Sequence

import numpy as np

from entropix.lab.statistics.bootstrap import RESAMPLES, Figure, bootstrap, numbered, of_items
from entropix.lab.statistics.intervals import Interval

Values = Sequence[float] | np.ndarray
Clusters = Sequence[object] | np.ndarray
MOST_REJECTED = 0.5  # of the answers, for the prediction rejection ratio
_CUTS = 101  # shares of rejected answers between none and the most


def auroc(
    score: Values, right: Values, clusters: Clusters, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The chance that a right answer has a larger score than a wrong one (ties count half), with an interval over
    clusters. 0.5 is no knowledge; NaN if all answers are right or all are wrong.

    score, right, clusters: a number, 0 or 1, and a document (a name or a number) for each item.
    """
    score_N, right_N, index, n = _checked(score, right, clusters)
    return bootstrap(of_items(_auroc(score_N, right_N), index), n, resamples=resamples, seed=seed)


def auroc_difference(
    score: Values,
    other: Values,
    right: Values,
    clusters: Clusters,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`auroc` of a score minus that of another one on the same items."""
    score_N, right_N, index, n = _checked(score, right, clusters)
    first, second = _auroc(score_N, right_N), _auroc(_checked(other, right, clusters)[0], right_N)
    figure = of_items(lambda weights: first(weights) - second(weights), index)
    return bootstrap(figure, n, resamples=resamples, seed=seed)


def prr(
    score: Values, quality: Values, clusters: Clusters, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The prediction rejection ratio, with an interval over clusters: how much the mean quality of the answers that are
    kept rises while those with the smallest scores are rejected, up to half of them, as a share of the rise that
    rejecting the worst ones first would bring. 1 is perfect, 0 is chance; NaN if all are alike.

    The definition for any quality, a loss or a share too (Fadeeva et al. 2023, arXiv:2311.07383); up to half as in
    Vashurin et al. 2025, arXiv:2406.15627.
    """
    score_N, quality_N, index, n = _checked(score, quality, clusters, is_right=False)
    by_score, by_quality = _kept(score_N, quality_N), _kept(quality_N, quality_N)

    def ratio(weights: np.ndarray) -> np.ndarray:
        mean = weights @ quality_N / weights.sum(axis=1)
        best = by_quality(weights) - mean
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(best > 1e-12, (by_score(weights) - mean) / best, np.nan)

    return bootstrap(of_items(ratio, index), n, resamples=resamples, seed=seed)


def _auroc(score_N: np.ndarray, right_N: np.ndarray) -> Figure:
    """Of weights of items [R, N]."""
    order, starts = _groups(score_N)
    right_N = right_N[order]

    def figure(weights: np.ndarray) -> np.ndarray:
        sorted_RN = weights[:, order]
        right, wrong = sorted_RN * right_N, sorted_RN * (1 - right_N)
        if len(starts) < len(order):
            right, wrong = (np.add.reduceat(part, starts, axis=1) for part in (right, wrong))
        beaten = np.cumsum(wrong, axis=1) - wrong / 2
        pairs = right.sum(axis=1) * wrong.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, np.einsum("RN,RN->R", right, beaten) / pairs, np.nan)

    return figure


def _kept(score_N: np.ndarray, quality_N: np.ndarray) -> Figure:
    """The mean quality of kept answers, averaged over shares of rejected ones, of weights of items [R, N]. Answers of
    one score are kept or rejected by chance."""
    order, starts = _groups(-score_N)
    quality_N = quality_N[order]
    kept = 1 - np.linspace(0, MOST_REJECTED, _CUTS)

    def figure(weights: np.ndarray) -> np.ndarray:
        sorted_RN = weights[:, order]
        mass, sums = (
            np.cumsum(np.add.reduceat(part, starts, axis=1), axis=1)
            for part in (sorted_RN, sorted_RN * quality_N)
        )
        rows = zip(mass, sums, strict=True)
        means = [np.interp(kept * m[-1], np.append(0, m), np.append(0, s)) / (kept * m[-1]) for m, s in rows]
        return np.trapezoid(np.array(means), dx=1 / (_CUTS - 1), axis=1)

    return figure


def _groups(score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items by rising score, and where in this order each group of one score begins."""
    order = np.argsort(score_N, kind="stable")
    return order, np.flatnonzero(np.diff(score_N[order], prepend=np.nan) != 0)


def _checked(
    score: Values, right: Values, clusters: Clusters, is_right: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """All as arrays. Raises a ValueError for what is missing, not finite, or neither right nor wrong."""
    score_N, right_N = np.asarray(score, np.float64), np.asarray(right, np.float64)
    index, n = numbered(clusters)
    if not len(score_N) == len(right_N) == len(index) > 0:
        raise ValueError(
            f"expected a score, an outcome and a cluster for each item, at least one, got {len(score_N)}, "
            f"{len(right_N)} and {len(index)}"
        )
    if not (np.isfinite(score_N).all() and np.isfinite(right_N).all()):
        raise ValueError("expected finite scores and outcomes; leave out items that have none")
    if is_right and not np.isin(right_N, (0, 1)).all():
        raise ValueError("expected outcomes that are right (1) or wrong (0)")
    return score_N, right_N, index, n
