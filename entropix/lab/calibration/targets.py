"""How often each strategy shall be used: what a calibration aims at."""

import math
from typing import NamedTuple

from entropix.samplers import ResolvedSampler


class Thresholds(NamedTuple):
    """The five of an entropix rule by the names of its numbers: bits and bits²."""

    low_ent_thresh: float
    low_vent_thresh: float
    med_ent_thresh: float
    high_ent_thresh: float
    high_vent_thresh: float


class Targets(NamedTuple):
    """Wished frequencies of strategies, as shares of all positions; adaptive gets the rest."""

    flow: float = 0.30
    clarify: float = 0.05
    explore: float = 0.10
    resample: float = 0.10


def check_targets(targets: Targets) -> None:
    """Raises a ValueError unless these are shares of one whole."""
    for name, share in targets._asdict().items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be a share between 0 and 1, got {share}")
    if (total := math.fsum(targets)) > 1 + 1e-9:
        raise ValueError(
            f"flow, clarify, explore and resample must not sum to more than 1, got {total:g}; adaptive takes the rest"
        )


def check_thresholds(sampler: ResolvedSampler) -> None:
    """Raises a ValueError unless the rule has the five thresholds."""
    if missing := [name for name in Thresholds._fields if not hasattr(sampler.numbers, name)]:
        raise ValueError(
            f"{sampler.label}: a calibration fits the five thresholds of entropix and its like, but {sampler.name} has "
            f"no {missing[0]}"
        )
