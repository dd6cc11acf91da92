"""The rules by name: those of this package, those that installed packages offer, and those that a program registers."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterable

from entropix.samplers.adaptive import DYNAMIC_TEMPERATURE, EDT, GREEDY_THRESHOLD, MIROSTAT, XTC
from entropix.samplers.base import Sampler
from entropix.samplers.baselines import GREEDY, MIN_P, TEMPERATURE, TOP_K, TOP_P
from entropix.samplers.controls import ENTROPIX_LOGITS, PLACEBO
from entropix.samplers.entropix import ENTROPIX, ENTROPIX_TORCH
from entropix.samplers.numbers import DRY, RuleConfig
from entropix.samplers.truncation import EPSILON, ETA, P_LESS, TOP_H, TOP_N_SIGMA, TYPICAL
from entropix.showing import suggestions

ENTRY_POINTS = "entropix.samplers"  # the group in which installed packages offer rules
_NAMED = 3  # rules in an error: enough to show where a number belongs

# fmt: off
BUILT_IN = (
    ENTROPIX, ENTROPIX_TORCH, ENTROPIX_LOGITS, PLACEBO,
    GREEDY, TEMPERATURE, TOP_K, TOP_P, MIN_P,
    TYPICAL, EPSILON, ETA, TOP_N_SIGMA, P_LESS, TOP_H,
    DYNAMIC_TEMPERATURE, EDT, MIROSTAT, XTC, GREEDY_THRESHOLD,
)
# fmt: on
SAMPLERS = {sampler.name: sampler for sampler in BUILT_IN}


def register(sampler: Sampler) -> Sampler:
    """Makes a rule known by its name; returns it. Raises a ValueError if the name is taken or it is no rule."""
    check_rule(sampler, "register")
    if sampler.name in SAMPLERS:
        raise ValueError(f"there is a sampler {sampler.name!r} already; choose another name")
    SAMPLERS[sampler.name] = sampler
    return sampler


def get(name: str) -> Sampler:
    """The rule of that name; a ValueError suggests the nearest known one and lists all."""
    if name not in SAMPLERS:
        _load_installed()
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}{suggestions(name, SAMPLERS)}")
    return SAMPLERS[name]


def summaries() -> dict[str, str]:
    """A line about each rule, by name."""
    _load_installed()
    return {name: sampler.summary for name, sampler in SAMPLERS.items()}


def check_rule(sampler: Sampler, where: str) -> None:
    """Raises a ValueError unless this is a `Sampler` whose parts are what they should be."""
    if not isinstance(sampler, Sampler):
        raise ValueError(f"{where}: expected a Sampler, got {type(sampler).__name__}")
    if not (isinstance(sampler.config, type) and issubclass(sampler.config, RuleConfig)):
        raise ValueError(f"{where}: the config of {sampler.name!r} must be a subclass of RuleConfig")
    if "__dataclass_params__" not in vars(sampler.config):
        raise ValueError(f"{where}: {sampler.config.__name__} needs the decorator @rule_config")


@functools.cache
def _load_installed() -> None:
    """Registers what installed packages offer, once."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = "a package" if entry.dist is None else entry.dist.name
        try:
            sampler = entry.load()
            # It may be there since a call that another package's error ended.
            if SAMPLERS.get(getattr(sampler, "name", "")) is not sampler:
                register(sampler)
        except Exception as error:
            raise ValueError(
                f"{package} offers a sampler {entry.name!r} that does not load: {error}"
            ) from error


# ----- whose number is it? ----------------------------------------------------------------------------------


def parameters(config: type[RuleConfig]) -> list[dataclasses.Field[object]]:
    """The fields of a rule's numbers, its own first and those of the guard last."""
    shared = {field.name for field in dataclasses.fields(RuleConfig)}
    fields = dataclasses.fields(config)
    return [f for f in fields if f.name not in shared] + [f for f in fields if f.name in shared]


def users(name: str) -> list[str]:
    """The rules that have a number, those with the fewest strategies first."""
    simplest_first = sorted(SAMPLERS.values(), key=lambda sampler: len(sampler.strategies))
    return [s.name for s in simplest_first if any(f.name == name for f in dataclasses.fields(s.config))]


def check_names(
    names: Iterable[str], sampler: Sampler, source: str, spell: Callable[[str], str] = str
) -> None:
    """Raises a ValueError for the first number that the rule does not have, but others do.

    source: how the error begins. spell: a number's name as users type it there.
    """
    own = {field.name for field in dataclasses.fields(sampler.config)}
    for name in names:
        if name not in own and (others := users(name)):
            raise ValueError(
                f"{source}: {spell(name)} has no effect with {sampler.name}; it is used by {_few(others)}, "
                "see docs/samplers.md"
            )


def check_guard(
    names: Iterable[str], cfg: RuleConfig, source: str, spell: Callable[[str], str] = str
) -> None:
    """Raises a ValueError for the first number of a penalty that is off."""
    for name in names:
        if name in DRY and cfg.dry_multiplier == 0:
            needed = spell("dry_multiplier")
            raise ValueError(f"{source}: {spell(name)} has no effect while {needed} is 0; set that too")


def _few(names: list[str]) -> str:
    """A sentence's list of the first names, and how many more there are."""
    shown, more = names[:_NAMED], len(names) - _NAMED
    *some, last = [*shown, f"{more} more"] if more > 0 else shown
    return f"{', '.join(some)} and {last}" if some else last
