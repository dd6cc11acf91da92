"""Where a rule's numbers are searched: ranges and scales that follow from the rule's own dataclass."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

from entropix.config import TRACED
from entropix.samplers import ResolvedSampler, RuleConfig

_GUARD = frozenset(field.name for field in dataclasses.fields(RuleConfig))
# By unit: up to where, at most, numbers of the rules mean anything.
_MOST = {"bits": 12.0, "bits²": 20.0, "probability": 1.0, "ratio": 1.0, "tokens": 200.0}
_TEMPERATURES = (0.1, 2.0)
# The least bits and bits² of a threshold. Most tokens have little of either: evenly over all bits, half of the
# candidates would flow nearly everywhere, and answer as greedily as each other.
_LEAST = {"bits": 0.05, "bits²": 0.05}
_FACTOR = 2.0  # other numbers go from 0 to so many times their default, at least to 1


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


def ranges(sampler: ResolvedSampler, free: Sequence[str] = ()) -> list[Range]:
    """Of every number that compiles nothing but those of the guard against repetition, or of those named.

    Raises a ValueError for a name that is none of these.
    """
    kinds = get_type_hints(type(sampler.numbers))
    fields = {f.name: f for f in dataclasses.fields(sampler.numbers) if f.metadata["kind"] == TRACED}
    if unknown := [name for name in free if name not in fields]:
        raise ValueError(
            f"--free {unknown[0]}: {sampler.name} has no such number; it has {', '.join(fields)}"
        )
    names = free or [name for name in fields if name not in _GUARD]
    if not names:
        raise ValueError(f"{sampler.name} has no number to choose")
    return [_range(name, fields[name].metadata, kinds[name], sampler) for name in names]


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
