"""Thresholds for the entropix rule that make each strategy as frequent as wished, on metrics that were observed.

Absolute thresholds do not carry over from model to model: vocabularies, training and tuning shift both entropy and
varentropy. Frequencies do. The rule asks four questions of entropy H and varentropy V,

    flow      H < low_ent  and V < low_vent
    clarify   H > high_ent and V < low_vent
    explore   H < high_ent and V > high_vent
    resample  H > med_ent  and V > high_vent, unless explore

and with low_ent, med_ent <= high_ent and low_vent <= high_vent, as their names say, no two of them overlap. Every
position with V > high_vent then either explores or resamples, and high_ent alone divides them; med_ent, anywhere at or
below high_ent, changes nothing, and is set equal to it. So each frequency has one threshold: high_vent takes explore
and resample together, high_ent divides them, low_vent is raised until enough clarifies, low_ent until enough flows.

The first two frequencies can always be met, up to ties. Not so the others: clarify ends at low_vent = high_vent, and
flow has no more than the positions with H < high_ent and V < low_vent. Where both pull at low_vent, the value with the
smallest sum of misses wins.
"""

import dataclasses
from typing import Any

import numpy as np

from entropix.lab.calibration.targets import Targets, Thresholds, check_targets
from entropix.metrics import Metrics
from entropix.samplers.entropix import STRATEGIES, SWAPPED, LogitsConfig, choose

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def thresholds(entropy_n: np.ndarray, varentropy_n: np.ndarray, targets: Targets) -> Thresholds:
    """Thresholds, in order, with which the rule comes nearest to the targets on these positions.

    entropy_n, varentropy_n: H and V of n positions, finite and at least 0. Each threshold lies halfway between two
    observed values, so that none is on it. Targets are met within half a position where they can be met at all and no
    two values are equal. Raises a ValueError for targets that are no shares and for observations that are not finite.
    """
    check_targets(targets)
    if not len(entropy_n) or not (np.isfinite(entropy_n).all() and np.isfinite(varentropy_n).all()):
        raise ValueError("thresholds need at least one position, and every entropy and varentropy finite")
    n = len(entropy_n)
    wild = targets.explore + targets.resample
    high_vent = _cut(varentropy_n, n - wild * n)
    is_wild_n = varentropy_n > high_vent
    if is_wild_n.any():
        high_ent = _cut(entropy_n[is_wild_n], is_wild_n.sum() * targets.explore / wild)
    else:  # nothing explores or resamples: high_ent need only tell clarify from flow
        high_ent = _cut(entropy_n, n - targets.clarify * n)
    low_vent = _low_vent(entropy_n, varentropy_n, high_ent, high_vent, targets)
    low_ent = min(_cut(entropy_n[varentropy_n < low_vent], targets.flow * n), high_ent)
    return Thresholds(low_ent, low_vent, high_ent, high_ent, high_vent)


def _low_vent(
    entropy_n: np.ndarray, varentropy_n: np.ndarray, high_ent: float, high_vent: float, targets: Targets
) -> float:
    """The cut up to high_vent with the smallest sum of clarify's miss and of what flow must lack; the lowest such."""
    n = len(entropy_n)
    order = np.argsort(varentropy_n, kind="stable")
    sorted_n, high_n = varentropy_n[order], entropy_n[order] > high_ent
    cut_c, below_c = _cuts(sorted_n)
    cut_c, below_c = cut_c[cut_c <= high_vent], below_c[cut_c <= high_vent]
    clarify_c = np.concatenate([[0], np.cumsum(high_n)])[below_c]
    calm_c = np.concatenate([[0], np.cumsum(entropy_n[order] < high_ent)])[below_c]
    miss_c = np.abs(clarify_c - targets.clarify * n) + np.maximum(targets.flow * n - calm_c, 0)
    return float(cut_c[np.argmin(miss_c)])


def _cut(values: np.ndarray, wanted: float) -> float:
    """A cut with as nearly `wanted` of the values below it as ties allow, the lower one where two are as near."""
    cut_c, below_c = _cuts(np.sort(values))
    return float(cut_c[np.argmin(np.abs(below_c - wanted))])


def _cuts(sorted_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(every cut that divides these values differently, how many are below it).

    Cuts lie halfway between neighbours, below the least value halfway to 0, and 1 above the largest.
    """
    values_u, first_u = np.unique(np.asarray(sorted_n, np.float64), return_index=True)
    edges = np.concatenate([[0.0], values_u, values_u[-1:] + 2 if len(values_u) else [2.0]])
    return (edges[:-1] + edges[1:]) / 2, np.append(first_u, len(sorted_n))


def occupancy(metrics: Metrics, cfg: LogitsConfig, rule: str = "entropix") -> dict[str, float]:
    """Share of the positions, by strategy, under the rule as the sampler applies it. metrics: arrays `[n]`.

    rule: the name of a rule that has an order of thresholds of its own; all others have that of entropix.
    """
    strategy_n = np.asarray(choose(metrics, cfg, SWAPPED.get(rule, False)))
    counts = np.bincount(strategy_n, minlength=len(STRATEGIES))
    return {name: float(count) / len(strategy_n) for name, count in zip(STRATEGIES, counts, strict=True)}


def quantiles(metrics: Metrics) -> dict[str, list[float]]:
    """By metric, its values at `QUANTILES`, interpolated between neighbours."""
    return {
        name: np.quantile(np.asarray(values), QUANTILES).tolist()
        for name, values in metrics._asdict().items()
    }


def apply(fitted: Thresholds, cfg: LogitsConfig) -> LogitsConfig:
    """The config with these thresholds, to six significant digits, which is what a preset holds."""
    rounded: dict[str, Any] = {name: float(f"{value:.6g}") for name, value in fitted._asdict().items()}
    return dataclasses.replace(cfg, **rounded)


def notes(achieved: dict[str, float], targets: Targets, n: int) -> list[str]:
    """A sentence for each target that was missed by more than one position or a thousandth of all."""
    missed = [
        name for name, wanted in targets._asdict().items() if abs(achieved[name] - wanted) > max(1 / n, 1e-3)
    ]
    reasons = dict.fromkeys(Targets._fields, "equal values leave no cut in between")
    if achieved["clarify"] > targets.clarify or achieved["flow"] < targets.flow:
        reasons["flow"] = reasons["clarify"] = "flow needs a higher low_vent_thresh than clarify"
    if achieved["clarify"] < targets.clarify:
        reasons["clarify"] = (
            "too few positions have high entropy and less varentropy than explore and resample"
        )
    return [
        f"{name} was to be {getattr(targets, name):.1%} and is {achieved[name]:.1%}: {reasons[name]}"
        for name in missed
    ]
