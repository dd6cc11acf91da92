"""Where a rule's numbers are searched: ranges and scales that follow from the rule's own dataclass; and those of how it
looks ahead and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from entropix.config import LOOKING, STATIC, TRACED, BacktrackConfig, BranchConfig
from entropix.samplers import ResolvedSampler, RuleConfig

_GUARD = frozenset(field.name for field in dataclasses.fields(RuleConfig))
_OF_SHAPES = frozenset({"max_top_k"})  # static numbers that only say how far another one may go
# By unit: up to where, at most, numbers of the rules mean anything.
_MOST = {"bits": 12.0, "bits²": 20.0, "probability": 1.0, "ratio": 1.0, "tokens": 200.0}
_TEMPERATURES = (0.1, 2.0)
# The least bits and bits² of a threshold. Most tokens have little of either: evenly over all bits, half of the
# candidates would flow nearly everywhere, and answer as greedily as each other.
_LEAST = {"bits": 0.05, "bits²": 0.05}
_FACTOR = 2.0  # other numbers go from 0 to so many times their default, at least to 1
ALL = "numbers"  # of the rule: what is free by default


class Range(NamedTuple):
    """Of one number."""

    name: str
    low: float
    high: float
    is_int: bool = False
    is_log: bool = False

    def clipped(self, value: float) -> float:
        """The value, or the end of the range that is nearest to it."""
        return min(max(value, self.low), self.high)


# What is searched of looking ahead and back, where it is asked for. Each number of paths and each depth is a program of
# its own, so there are few. The largest entropy stands for 0, at which nothing forks but by strategy.
_LOOKING = {
    "branching": (
        Range("branching.paths", 1, 4, is_int=True),
        Range("branching.depth", 1, 8, is_int=True, is_log=True),
        Range("branching.entropy", 0.5, _MOST["bits"], is_log=True),
    ),
    "backtracking": (Range("backtracking.tokens", 0, 4, is_int=True),),
}


def ranges(sampler: ResolvedSampler, free: Sequence[str] = ()) -> list[Range]:
    """Of what is named: numbers of the rule, `branching.depth` and the like, or all of `numbers` (the rule's but those
    of the guard against repetition), `branching` or `backtracking`. By default, `numbers`.

    Raises a ValueError for a name that is none of these.
    """
    kinds = get_type_hints(type(sampler.numbers))
    fields = {f.name: f for f in dataclasses.fields(sampler.numbers) if _is_free(f, kinds[f.name])}
    looking = {one.name: one for several in _LOOKING.values() for one in several}
    groups = {ALL: [name for name in fields if name not in _GUARD]}
    groups |= {name: [one.name for one in several] for name, several in _LOOKING.items()}
    names = list(dict.fromkeys(one for name in free or [ALL] for one in groups.get(name, [name])))
    if unknown := [name for name in names if name not in fields and name not in looking]:
        raise ValueError(
            f"--free {unknown[0]}: {sampler.name} has no such number; it has {', '.join(fields)}; and there are "
            f"{', '.join(looking)}"
        )
    if not names:
        raise ValueError(f"{sampler.name} has no number to choose")
    _check_looking(sampler, names)
    return [
        looking[name] if name in looking else _range(name, fields[name].metadata, kinds[name], sampler)
        for name in names
    ]


def _check_looking(sampler: ResolvedSampler, names: Sequence[str]) -> None:
    """Raises a ValueError where looking ahead or back would never happen, whatever the numbers."""
    ahead = sampler.branching or BranchConfig()
    back = sampler.backtracking or BacktrackConfig()
    own = {*sampler.rule.strategies}
    if "backtracking.tokens" in names and not own & {*back.strategies}:
        raise ValueError(
            f"--free backtracking: {sampler.name} never does {' or '.join(back.strategies)}, where tokens would be "
            "taken back; leave it out"
        )
    branching = [name for name in names if name.startswith("branching.")]
    if branching and "branching.paths" not in names and not ahead.is_on:
        raise ValueError(f"--free {branching[0]} changes nothing without branching; add branching.paths")
    somewhere = ahead.entropy or ahead.margin or own & {*ahead.strategies} or "branching.entropy" in names
    if branching and not somewhere:
        raise ValueError(
            f"--free {branching[0]}: {sampler.name} never does {' or '.join(ahead.strategies)}, where it would fork; "
            "add branching.entropy"
        )


def values(sampler: ResolvedSampler, space: Sequence[Range]) -> dict[str, float]:
    """What these numbers are in a sampler, or the ends of their ranges that are nearest to that."""
    found = {}
    for one in space:
        group, _, name = one.name.rpartition(".")
        own = (getattr(sampler, group) or LOOKING[group]()) if group else sampler.numbers
        value = getattr(own, name)
        if one.name == "branching.paths" and not own.is_on:
            value = 1
        found[one.name] = one.high if one.name == "branching.entropy" and not value else one.clipped(value)
    return found


def with_values(
    sampler: ResolvedSampler, space: Sequence[Range], found: Mapping[str, float]
) -> ResolvedSampler:
    """The sampler with these numbers. Raises a ValueError for what the rule refuses."""
    ints = {one.name for one in space if one.is_int}
    whole: dict[str, Any] = {name: int(value) if name in ints else value for name, value in found.items()}
    looking: dict[str, Any] = {}
    for group, usual in ((name, kind()) for name, kind in LOOKING.items()):
        own = {key.partition(".")[2]: whole.pop(key) for key in [*whole] if key.startswith(f"{group}.")}
        if own.get("entropy") == _MOST["bits"]:
            own["entropy"] = 0.0
        if own:
            cfg = dataclasses.replace(getattr(sampler, group) or usual, **own)
            # What is off is spelled in one way, so that it shares a batch.
            spelled = None if getattr(sampler, group) is None else usual
            looking[group] = cfg if cfg.is_on else spelled
    return dataclasses.replace(sampler.changed(whole), **looking)


def _is_free(field: "dataclasses.Field[Any]", kind: type) -> bool:
    """Whether a number of a rule can be searched: it is traced, or counts something and is compiled in."""
    if field.metadata["kind"] == STATIC:
        return kind is int and field.name not in _OF_SHAPES
    return bool(field.metadata["kind"] == TRACED)


def _range(name: str, told: Any, kind: type, sampler: ResolvedSampler) -> Range:
    default = float(getattr(sampler.rule.config(), name))
    low, high = max(told["low"], 0.0), told["high"]
    if name == "temp":
        return Range(name, *_TEMPERATURES, is_log=True)
    most = _MOST.get(told["unit"], max(1.0, _FACTOR * default))
    if name == "top_k":
        most = getattr(sampler.numbers, "max_top_k", most)
    high = min(high, most)
    is_int = kind is int
    low = max(low, 1.0) if is_int else max(low, _LEAST.get(told["unit"], low))
    return Range(name, low, high, is_int, is_log=is_int or told["unit"] in _LEAST)
