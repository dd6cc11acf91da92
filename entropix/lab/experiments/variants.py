"""Variants of a sampler: every combination of values that some of its numbers may have."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from entropix import config, presets
from entropix.config import SamplerConfig

if TYPE_CHECKING:
    from entropix.lab.experiments.engine import Variant


def expand(sampler: str, axes: Mapping[str, Sequence[Any]], where: str = "--grid") -> "list[Variant]":
    """Every combination of a preset or TOML file, the last field varying fastest, labelled by its values.

    where: how errors begin. Raises a ValueError for a value out of range and for a field that the rule ignores.
    """
    from entropix import samplers
    from entropix.lab.experiments.engine import Variant
    from entropix.samplers import knobs

    rule, numbers = presets.read_preset(sampler)
    knobs.check_preset(sampler)
    variants = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        label = " ".join(f"{name}={value}" for name, value in changes.items())
        cfg = config.from_mapping(SamplerConfig, asdict(numbers) | changes, f"{where} {label}")
        variants.append(Variant(label, rule, cfg))
    boldest = max((variant.config for variant in variants), key=lambda cfg: cfg.dry_multiplier)
    knobs.check_used(axes, samplers.get(rule), boldest, where)
    return variants
