"""Shares of right answers, of one arm and of two on the same items, with intervals that hold for few items too."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from entropix.lab.statistics.intervals import LEVEL, Interval

_NODES = 200  # quantiles of the share of changed items over which its posterior is averaged


class PairedShares(NamedTuple):
    """Two arms that were right or wrong on the same items, once each."""

    gained: int  # items that only the first arm has right
    lost: int  # items that only the second has right
    difference: Interval  # of the shares of right items, with the credible interval
    p: float  # two-sided, of the mid-p McNemar test; 1 where no item changed


def share_interval(right: int, n: int) -> Interval:
    """The share of `right` out of n independent items, with Wilson's interval (1927)."""
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"expected from 0 to {n} right items out of at least one, got {right} of {n}")
    found = stats.binomtest(right, n).proportion_ci(LEVEL, method="wilson")
    return Interval(right / n, float(found.low), float(found.high))


def paired_shares(right: Sequence[bool], before: Sequence[bool]) -> PairedShares:
    """The difference of two shares over the same items, at least one.

    The interval is Bayesian: the share of items that changed, and the share of gains among these, have the priors
    Beta(1/2, 1/2) (Jeffreys); it cuts off 2.5 % of the difference's posterior on both sides. The test is McNemar's
    (1947) with the mid-p-value, whose false alarms stay near 5 % and hardly ever above (Fagerland et al. 2013,
    doi:10.1186/1471-2288-13-91), where the exact test's are far below.
    """
    a, b = np.asarray(right, bool), np.asarray(before, bool)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"expected as many items of both arms, at least one, got {a.size} and {b.size}")
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    low, high = _credible(gained, lost, a.size)
    changed = gained + lost
    tail = stats.binom.cdf(min(gained, lost), changed, 0.5)
    p = 1.0 if gained == lost else float(2 * tail - stats.binom.pmf(min(gained, lost), changed, 0.5))
    mean = (gained - lost) / a.size  # beyond the interval where all that changed did so one way
    return PairedShares(gained, lost, Interval(mean, min(low, mean), max(high, mean)), p)


def _credible(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The bounds of the posterior of (share changed) × (2 × share gained of these - 1)."""
    changed = gained + lost
    nodes = (np.arange(_NODES) + 0.5) / _NODES
    share = special.betaincinv(changed + 0.5, n - changed + 0.5, nodes)

    def excess(x: float, mass: float) -> float:
        """How much more than this mass lies below x."""
        return (
            float(special.betainc(gained + 0.5, lost + 0.5, np.clip((x / share + 1) / 2, 0, 1)).mean()) - mass
        )

    low, high = (
        float(optimize.brentq(excess, -1, 1, args=(mass,), xtol=1e-5))
        for mass in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    )
    return low, high
