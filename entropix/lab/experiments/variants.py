"""Variants of a sampler: every combination of values that some of its numbers may have."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropix import samplers
from entropix.samplers import ResolvedSampler

if TYPE_CHECKING:
    from entropix.lab.experiments.engine import Variant


def expand(
    sampler: ResolvedSampler, axes: Mapping[str, Sequence[Any]], where: str = "--grid"
) -> "list[Variant]":
    """Every combination for a sampler, the last number varying fastest, labelled by its values.

    where: how errors begin. Raises a ValueError for a value out of range and for a number that the rule does not have.
    """
    from entropix.lab.experiments.engine import Variant

    samplers.check_names(axes, sampler.rule, where)
    variants = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        label = " ".join(f"{name}={value}" for name, value in changes.items())
        variants.append(Variant(label, sampler.changed(changes, f"{where} {label}")))
    boldest = max((variant.sampler.numbers for variant in variants), key=lambda cfg: cfg.dry_multiplier)
    samplers.check_guard(axes, boldest, where)
    return variants
