"""What an experiment can say: means, shares and differences over items with intervals, effect sizes, many contrasts at
once, what could not have been seen, and how well a number predicts right answers.

An item is a prompt or a question; every arm has a number for each, made of all its answers there. Items differ more
than arms do, so arms are compared item by item (paired), and all of this is over items, or over clusters of them that
are not independent, such as the positions of a document (Miller 2024, arXiv:2411.00640).
"""

from entropix.lab.statistics.bootstrap import bootstrap, cluster_mean
from entropix.lab.statistics.contrasts import Contrast, contrast, detectable, holm, items_needed
from entropix.lab.statistics.distributions import TotalVariation, total_variation
from entropix.lab.statistics.intervals import Interval, Numbers, halves, is_apart, mean_interval
from entropix.lab.statistics.nested import Gain, bends, nested_gains
from entropix.lab.statistics.prediction import auroc, auroc_difference, prr
from entropix.lab.statistics.shares import PairedShares, paired_shares, share_interval
from entropix.lab.statistics.variance import Variance, variance

__all__ = [
    "Contrast",
    "Gain",
    "Interval",
    "Numbers",
    "PairedShares",
    "TotalVariation",
    "Variance",
    "auroc",
    "auroc_difference",
    "bends",
    "bootstrap",
    "cluster_mean",
    "contrast",
    "detectable",
    "halves",
    "holm",
    "is_apart",
    "items_needed",
    "mean_interval",
    "nested_gains",
    "paired_shares",
    "prr",
    "share_interval",
    "total_variation",
    "variance",
]
