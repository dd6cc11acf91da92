"""What each part of a rule brings: the rule as it is, and without one part after the other, on held-out items.

A strategy of the entropix rule is left out by acting as `adaptive` does wherever it would have come; what numbers do is
left out by the values at which they do nothing. All answer the same items with the same seeds, so every difference is
paired.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from entropix.checkpoint.loading import Model
from entropix.lab.calibration import objective
from entropix.lab.calibration.objective import MEASURES, Asked, Figures
from entropix.lab.statistics import Contrast, holm, is_apart
from entropix.lab.telling import numbers
from entropix.samplers import ResolvedSampler
from entropix.samplers.entropix import SWAPPED, Strategy, act, choose
from entropix.tables import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each of these numbers has to be for the part to do nothing. `max_top_k` stands for that number's value.
_WITHOUT: dict[str, dict[str, Any]] = {
    "pauses": {"clarifier": ""},
    "attention": dict.fromkeys(
        (
            *(
                "helv_attn_ent_coef",
                "lehv_interaction_strength_coef",
                "hehv_attn_ent_coef",
                "hehv_attn_vent_coef",
            ),
            *("ada_temp_attn", "ada_temp_agree", "ada_top_p", "ada_top_k_int", "ada_top_k_agree"),
        ),
        0.0,
    ),
    "temperature from doubt": {"ada_temp_logits": 0.0},
    "warmer strategies": dict.fromkeys(
        ("helv_attn_ent_offset", "lehv_interaction_strength_offset", "hehv_attn_vent_offset"), 1.0
    ),
    "best of several draws": {"n_adaptive_samples": 1},
    "top-k": {"top_k": "max_top_k", "ada_top_k_int": 0.0, "ada_top_k_agree": 0.0},
    "top-p": {"top_p": 1.0, "ada_top_p": 0.0, "hehv_attn_ent_coef": 0.0},
    "min-p": {"min_p": 0.0, "ada_min_p": 0.0},
}


class Part(NamedTuple):
    """A part of the rule, and what is lost without it."""

    name: str
    without: Figures
    brought: dict[str, Contrast | None]  # by measure, the whole rule less without the part


class Ablation(NamedTuple):
    """All parts of a rule, and what was left alone because it does nothing as it is."""

    sampler: ResolvedSampler
    whole: Figures
    parts: list[Part]
    idle: list[str]


def variants(sampler: ResolvedSampler) -> tuple[dict[str, ResolvedSampler], list[str]]:
    """(the rule without each of its parts, by the part's name; parts whose numbers do nothing already)."""
    values = dataclasses.asdict(sampler.numbers)
    found: dict[str, ResolvedSampler] = {}
    idle = []
    if sampler.name in SWAPPED:
        for strategy in list(Strategy)[:-1]:
            step = partial(_step_without, left_out=strategy, swapped=SWAPPED[sampler.name])
            rule = sampler.rule._replace(step=step)
            found[strategy.name.lower()] = dataclasses.replace(sampler, rule=rule)
    for name, neutral in _WITHOUT.items():
        changes = {n: values[v] if v == "max_top_k" else v for n, v in neutral.items() if n in values}
        if any(values[n] != value for n, value in changes.items()):
            found[name] = sampler.changed(changes)
        elif changes:
            idle.append(name)
    return found, idle


def _step_without(key_B: Any, state: Any, seen: Any, cfg: Any, *, left_out: Strategy, swapped: bool) -> Any:
    """`samplers.entropix.step` that acts as adaptive where it would have acted by this strategy."""
    strategy_B = choose(seen.metrics, cfg, swapped)
    return act(key_B, state, seen, cfg, jnp.where(strategy_B == left_out, Strategy.ADAPTIVE, strategy_B))


def ablate(
    model: Model,
    sampler: ResolvedSampler,
    asked: Sequence[Asked],
    seeds: Sequence[int],
    batch: int,
    advance: Callable[[int, str], None] = lambda n, what: None,
) -> Ablation:
    """The rule and each of its variants on these items. advance: how many more answers have come, and of what."""

    def measured(one: ResolvedSampler, name: str) -> Figures:
        [given] = objective.answer(model, [one], asked, seeds, batch, lambda n, _: advance(n, name))
        return objective.figures(asked, given)

    without, idle = variants(sampler)
    whole = measured(sampler, "the whole rule")
    parts = []
    for name, one in without.items():
        found = measured(one, f"without {name}")
        parts.append(Part(name, found, objective.differences(whole, found)))
    return Ablation(sampler, whole, parts, idle)


# ----- what is said -----------------------------------------------------------------------------------------------


def rows(found: Ablation) -> Iterator[dict[str, Any]]:
    """A row a part, for a table: what the part brings, with intervals, and p-values corrected for all parts (Holm)."""
    corrected = {
        what: holm([one and one.p for one in (part.brought[what] for part in found.parts)])
        for what in MEASURES
    }
    none = dict.fromkeys(MEASURES)
    yield {"part": "the whole rule", **none, **found.whole.measures}
    for i, part in enumerate(found.parts):
        row: dict[str, Any] = {"part": part.name, **none, **part.without.measures}
        for what, one in part.brought.items():
            if one is not None:
                low, high = one.difference.low, one.difference.high
                row |= {f"{what}_brought": one.difference.mean, f"{what}_low": low, f"{what}_high": high}
                row |= {f"{what}_p": corrected[what][i], f"{what}_detectable": one.detectable}
        yield row


def report(found: Ablation) -> Iterator[str]:
    """Lines of text."""
    whats = list(found.whole.measures)
    heads = ["without", *whats, *(f"brings {what}" for what in whats)]
    table = [heads, ["nothing", *_cells(found.whole, whats), *([""] * len(whats))]]
    for part in found.parts:
        brought = (part.brought[what] for what in whats)
        told = (numbers(one and one.difference, sign="+") for one in brought)
        table.append([part.name, *_cells(part.without, whats), *told])
    yield f"{found.sampler.label}, and without each of its parts: shares, and what the part brings"
    yield from aligned(table)
    if found.idle:
        yield f"left alone, as they do nothing with these numbers: {', '.join(found.idle)}"
    rights = [one.detectable for part in found.parts if (one := part.brought["right"]) and one.detectable]
    if rights:
        yield f"seen four times out of five: a difference of right answers of {max(rights):.3f}"


def draw(found: Ablation) -> "Figure":
    """What each part brings, with intervals of 95 %."""
    from entropix.lab import lanes
    from entropix.report import figures

    whats = list(found.whole.measures)
    figure = figures.new(1.2 + 0.35 * len(found.parts))
    [sides] = figure.subplots(1, len(whats), squeeze=False)
    for axes, what in zip(sides, whats, strict=True):
        lanes.lanes(axes, [part.name if axes is sides[0] else "" for part in found.parts])
        axes.axvline(0, color=lanes.MUTED, linewidth=0.8)
        for lane, part in enumerate(found.parts):
            change = (one := part.brought[what]) and one.difference
            lanes.interval(axes, change, lane, is_filled=change is not None and is_apart(change))
        axes.set_xlabel(f"{MEASURES[what]} that the part brings")
    return figure


def _cells(figures: Figures, whats: Sequence[str]) -> list[str]:
    return [f"{figures.measures[what]:.3f}" for what in whats]
