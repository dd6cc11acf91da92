"""Variants of a sampler: every combination of values that some of its numbers may have, and arms of several paths."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entropix import samplers
from entropix.cot import plan
from entropix.samplers import ResolvedSampler
from entropix.showing import suggestion

if TYPE_CHECKING:
    from entropix.lab.experiments.engine import Variant


MOST_VARIANTS = 10_000  # of one sampler


def expand(
    sampler: ResolvedSampler, axes: Mapping[str, Sequence[Any]], where: str = "--grid"
) -> "list[Variant]":
    """Every combination for a sampler, the last number varying fastest, labelled by its values.

    where: how errors begin. Raises a ValueError for a value out of range and for a number that the rule does not have.
    """
    from entropix.lab.experiments.engine import Variant

    samplers.check_names(axes, sampler.rule, where)
    if (n := math.prod(map(len, axes.values()))) > MOST_VARIANTS:
        raise ValueError(f"{where}: {n} combinations are more than {MOST_VARIANTS}; give fewer values")
    variants = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        label = " ".join(f"{name}={value}" for name, value in changes.items())
        variants.append(Variant(label, sampler.changed(changes, f"{where} {label}")))
    boldest = max((variant.sampler.numbers for variant in variants), key=lambda cfg: cfg.dry_multiplier)
    samplers.check_guard(axes, boldest, where)
    return variants


def with_paths(variants: "Sequence[Variant]", axes: Mapping[str, Sequence[Any]]) -> "list[Variant]":
    """Every variant with every combination of settings of several paths (`plan.KINDS`), labelled by them too."""
    if not axes:
        return list(variants)
    found = []
    for variant, values in itertools.product(variants, itertools.product(*axes.values())):
        asked = dict(zip(axes, values, strict=True))
        label = " ".join([variant.label, *(f"{name}={value}" for name, value in asked.items())]).strip()
        found.append(dataclasses.replace(variant, label=label, plan=plan.read(asked)))
    return found


def named(text: str) -> "Variant":
    """What a text like `min-p`, `entropix+cot=4` or `top-p+best_of=8+select=majority` means, which is its label too.

    Raises a ValueError that says what is wrong with it.
    """
    from entropix.lab.experiments.engine import Variant

    name, *settings = re.split(r"\+(?=[\w-]+=)", text)
    asked: dict[str, Any] = {}
    for setting in settings:
        spelled, _, value = setting.partition("=")
        key = spelled.replace("-", "_")
        if key not in plan.KINDS:
            hint = suggestion(key, plan.KINDS)
            raise ValueError(
                f"{text}: {spelled!r} is no setting of several paths{hint}; numbers go into a TOML file"
            )
        if key in asked:
            raise ValueError(f"{text}: {spelled} is there twice; drop one of them")
        try:
            asked[key] = plan.KINDS[key](value)
        except ValueError:
            raise ValueError(f"{text}: {spelled} must be a number, got {value!r}") from None
    sampler = samplers.resolve(name)
    try:
        return Variant(text, sampler, plan.read(asked))
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
