"""Protocols as TOML files: what is asked, of which arms, and which differences shall count, all said beforehand.

    seeds = [0, 1]                # or how many, counted from 0
    system = "Be brief."          # before every prompt; left out: none

    [[tasks]]
    task = "questions"            # as docs/tasks.md has them, with what they take
    n = 60                        # items; left out: all of the split
    seed = 0                      # of the choice of items
    split = "held-out"
    max_new_tokens = 24           # left out: what the task says

    [[arms]]
    name = "mine"
    sampler = "min-p"             # a preset, a .toml file, or a rule of yours: "my_rule.py:RULE"
    temp = 0.7                    # a number of the sampler's config
    votes = 5                     # the most frequent answer of five
    votes_above = 3.0             # but only where a token of the first had more bits of entropy; else the first alone
    first = "greedy"              # the arm whose answer is the first, and has no vote; left out: the first vote
    branching = { paths = 4 }     # fields of `BranchConfig`
    backtracking = { tokens = 4 } # and of `BacktrackConfig`
    frequencies_of = "other"      # for placebo: strategies as often as another arm had them, and its numbers
    best_of = 8                   # also cot, self_consistency and the others, as in grids

    [[contrasts]]                 # Holm's correction is over these; everything else is exploratory
    arm = "mine"
    minus = "greedy"

    [signal]                      # of the part signal, see `signal.SignalPlan`
    [forks]                       # of the part forks, see `forks.ForksPlan`

Files are looked for beside the protocol's own.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from entropix import config, files, samplers
from entropix.checkpoint.loading import Model
from entropix.config import MAX_INT32, GenerateConfig
from entropix.cot import plan
from entropix.generation import encode_prompt
from entropix.lab import tasks
from entropix.lab.evaluation.forks_plan import ForksPlan
from entropix.lab.evaluation.signal_plan import SignalPlan
from entropix.lab.experiments.engine import Variant
from entropix.lab.tasks import Item, Task
from entropix.samplers.controls import PLACEBO
from entropix.showing import shown, suggestion, visible

_KEYS = ("seeds", "system", "tasks", "arms", "contrasts", "signal", "forks")
_FILES = ("dev", "held_out", "path")  # what tasks take that names a file
VOTES_APART = 1_000_003  # from the seed of an answer to that of the next one it is put to the vote with
MOST_VOTES = 64
_LONGEST = 100  # characters of a name
_GREEDY = "greedy"  # the rule that draws nothing
Section = TypeVar("Section")


@dataclass(frozen=True)
class Asked:
    """A task, and what of it is asked."""

    label: str
    task: Task
    items: tuple[Item, ...]
    seed: int
    split: str
    max_new_tokens: int


@dataclass(frozen=True)
class Arm:
    """One way to answer."""

    variant: Variant
    votes: int = 1
    frequencies_of: str | None = None
    votes_above: float = 0.0  # bits: a vote only where a token of the first answer had more; 0 is always
    first: str | None = None  # the arm of the first answer, if that is no vote

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.variant.label

    @property
    def draws(self) -> bool:
        """Whether seeds make a difference; else one answer stands for all of them."""
        return self.variant.sampler.name != _GREEDY

    def described(self) -> dict[str, Any]:
        """What its answers depend on, as JSON has it."""
        told = {**self.variant.described(), "votes": self.votes, "frequencies_of": self.frequencies_of}
        told |= {"votes_above": self.votes_above} if self.votes_above else {}
        return told | ({"first": self.first} if self.first else {})


@dataclass(frozen=True)
class Protocol:
    """A whole evaluation, checked as far as that goes without a model."""

    seeds: tuple[int, ...]
    system: str | None
    tasks: tuple[Asked, ...]
    arms: tuple[Arm, ...]
    contrasts: tuple[tuple[str, str], ...]
    signal: SignalPlan = field(default_factory=SignalPlan)
    forks: ForksPlan = field(default_factory=ForksPlan)

    def described(self) -> dict[str, Any]:
        """All that the results depend on but the model, as JSON has it."""
        return {
            "seeds": list(self.seeds),
            "system": self.system,
            "tasks": [
                {
                    **{name: getattr(asked, name) for name in ("label", "seed", "split", "max_new_tokens")},
                    "n": len(asked.items),
                    "items": tasks.digest(asked.items),
                }
                for asked in self.tasks
            ],
            "arms": [arm.described() for arm in self.arms],
            "contrasts": [list(pair) for pair in self.contrasts],
            "signal": self.signal.described(),
            "forks": dataclasses.asdict(self.forks),
        }

    @property
    def digest(self) -> str:
        """The sha256 of `described`; it stands in every result."""
        return hashlib.sha256(json.dumps(self.described(), sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Protocol:
    """The protocol in a file. Raises a ValueError that names the file and the key for whatever is wrong in it."""
    values = files.read_toml(path)
    _check_keys(values, _KEYS, str(path))
    system = values.get("system")
    if not isinstance(system, str | None):
        raise ValueError(f"{path}: system must be a text, got {shown(system)}")
    seeds = _seeds(values.get("seeds", 1), str(path))
    asked = [_asked(table, path, where) for where, table in _tables(values, "tasks", path)]
    arms = [_arm(table, path.parent, where) for where, table in _tables(values, "arms", path)]
    for what, names in (("task", [each.label for each in asked]), ("arm", [arm.name for arm in arms])):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{path}: two {what}s are called {min(twice)!r}; give one of them another name")
    protocol = Protocol(
        seeds=seeds,
        system=system,
        tasks=tuple(asked),
        arms=tuple(arms),
        contrasts=tuple(
            _contrast(table, [arm.name for arm in arms], where)
            for where, table in _tables(values, "contrasts", path, ())
        ),
        signal=_section(SignalPlan, values.get("signal", {}), f"{path}: signal").beside(path.parent),
        forks=_section(ForksPlan, values.get("forks", {}), f"{path}: forks"),
    )
    protocol.signal.documents()
    _check_frequencies(protocol, path)
    _check_first(protocol, path)
    protocol = dataclasses.replace(
        protocol, arms=tuple(_with_numbers(arm, protocol) for arm in protocol.arms)
    )
    if not any(each.task.is_closed for each in protocol.tasks):
        if protocol.contrasts:
            raise ValueError(
                f"{path}: contrasts are of right answers, but no task has any; add one or drop them"
            )
        if voting := [arm.name for arm in protocol.arms if arm.votes > 1]:
            raise ValueError(
                f"{path}: arm {voting[0]!r} votes among right answers, but no task has any; add one or drop its votes"
            )
    return protocol


def encoded(model: Model, protocol: Protocol, item: Item) -> list[int]:
    """The token ids of an item. A conversation has its own beginning, and no system message before it."""
    system = protocol.system if isinstance(item.prompt, str) else None
    return encode_prompt(model, item.prompt, system=system)


def _tables(
    values: Mapping[str, Any], name: str, path: Path, default: Any = None
) -> list[tuple[str, dict[str, Any]]]:
    """(where it stands, a copy of it) of each table of an array of tables."""
    found = values.get(name, default)
    if found is None or not isinstance(found, list | tuple) or (default is None and not found):
        raise ValueError(f"{path}: expected {name} as tables, [[{name}]] and their entries below it")
    if wrong := [each for each in found if not isinstance(each, dict)]:
        raise ValueError(f"{path}: {name} must be tables, [[{name}]], got {shown(wrong[0])}")
    return [(f"{path}: {name}, number {number}", dict(each)) for number, each in enumerate(found, start=1)]


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value <= VOTES_APART:
        value = range(value)
    seeds = config.from_mapping(GenerateConfig, {"seeds": value}, where).seeds
    if not seeds or len({*seeds}) < len(seeds) or max(seeds) >= VOTES_APART:
        raise ValueError(f"{where}: seeds must be at least one, all different, below {VOTES_APART}")
    return seeds


def _asked(table: dict[str, Any], path: Path, where: str) -> Asked:
    """The task that a table means, with its items."""
    n, seed = table.pop("n", None), table.pop("seed", 0)
    split, label = table.pop("split", tasks.DEV), table.pop("name", None)
    most = table.pop("max_new_tokens", None)
    for name, value, least in (("n", n, 1), ("seed", seed, 0), ("max_new_tokens", most, 1)):
        is_count = type(value) is int and least <= value <= MAX_INT32
        if not is_count and (value is not None or name == "seed"):
            raise ValueError(
                f"{where}: {name} must be a whole number of at least {least}, got {shown(value)}"
            )
    if label is not None:
        _check_name(label, where)
    table |= {name: str(path.parent / table[name]) for name in _FILES if isinstance(table.get(name), str)}
    try:
        task = tasks.resolve(table, path.parent)
        items = task.items(seed, n, split)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not items:
        raise ValueError(f"{where}: there are no items in the split {split!r}; choose the other one")
    return Asked(label or task.name, task, tuple(items), seed, split, most or task.max_new_tokens)


def _check_name(name: Any, where: str) -> None:
    """Raises a ValueError for a name that does not stand on one short line."""
    if not isinstance(name, str) or not name or len(name) > _LONGEST or "\n" in name or visible(name) != name:
        raise ValueError(
            f'{where}: expected an entry like name = "a name", of one line and at most {_LONGEST} characters, got '
            f"{shown(name)}"
        )


def _arm(table: dict[str, Any], folder: Path, where: str) -> Arm:
    """The arm that a table means."""
    name, sampler = table.pop("name", None), table.pop("sampler", None)
    _check_name(name, where)
    if not isinstance(sampler, str):
        raise ValueError(f'{where}: expected an entry like sampler = "min-p", got {shown(sampler)}')
    votes, source = table.pop("votes", 1), table.pop("frequencies_of", None)
    if type(votes) is not int or not 1 <= votes <= MOST_VOTES:
        raise ValueError(f"{where}: votes must be between 1 and {MOST_VOTES}, got {shown(votes)}")
    above = table.pop("votes_above", 0.0)
    if type(above) not in (int, float) or not 0 <= above < math.inf or (above and votes == 1):
        raise ValueError(
            f"{where}: votes_above must be bits of entropy, at least 0, beside votes of at least 2; got {shown(above)}"
        )
    if votes > 1 and sampler == _GREEDY:
        raise ValueError(f"{where}: greedy draws nothing, so that its votes are all the same; drop votes")
    first = table.pop("first", None)
    if not isinstance(first, str | None) or (first and not above):
        raise ValueError(f"{where}: first must be the name of an arm, beside votes_above; got {shown(first)}")
    if not isinstance(source, str | None):
        raise ValueError(f"{where}: frequencies_of must be the name of an arm, got {shown(source)}")
    looking = {key: table.pop(key) for key in config.LOOKING if key in table}
    paths = {key: table.pop(key) for key in [*table] if key in plan.KINDS}
    if source is not None and table:
        raise ValueError(f"{where}: frequencies_of brings that arm's numbers too; drop {next(iter(table))}")
    try:
        resolved = samplers.resolve(sampler, folder=folder).changed(table)
        samplers.check_guard(table, resolved.numbers, "sampler config")
        resolved = dataclasses.replace(resolved, **config.read_looking(looking))
        variant = Variant(name, resolved, plan.read(paths))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Arm(variant, votes, source, float(above), first)


def _contrast(table: dict[str, Any], arms: list[str], where: str) -> tuple[str, str]:
    _check_keys(table, ("arm", "minus"), where)
    pair = table.get("arm"), table.get("minus")
    for name in pair:
        if name not in arms:
            raise ValueError(f"{where}: there is no arm {shown(name)}{suggestion(str(name), arms)}")
    if pair[0] == pair[1]:
        raise ValueError(f"{where}: {pair[0]!r} minus itself is nothing; name two arms")
    return str(pair[0]), str(pair[1])


def _section(cls: type[Section], values: Any, where: str) -> Section:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a table, got {shown(values)}")
    return config.from_mapping(cls, values, where)


def _check_frequencies(protocol: Protocol, path: Path) -> None:
    """Raises a ValueError for a placebo of something that has no strategies to draw."""
    arms = {arm.name: arm for arm in protocol.arms}
    for arm in protocol.arms:
        if arm.frequencies_of is None:
            continue
        source = arms.get(arm.frequencies_of)
        where = f"{path}: arm {arm.name!r}"
        if arm.variant.sampler.rule is not PLACEBO:
            raise ValueError(
                f"{where}: frequencies_of is for the sampler placebo, not for {arm.variant.sampler.name}"
            )
        if source is None:
            raise ValueError(
                f"{where}: there is no arm {arm.frequencies_of!r}{suggestion(arm.frequencies_of, arms)}"
            )
        if source.first is not None:
            raise ValueError(
                f"{where}: only some answers of {source.name!r} are its own; name an arm without first"
            )
        if source.frequencies_of is not None or source.variant.sampler.rule.strategies != PLACEBO.strategies:
            names = ", ".join(PLACEBO.strategies)
            raise ValueError(
                f"{where}: {source.name!r} does not choose among {names}; name an arm of entropix"
            )


def _check_first(protocol: Protocol, path: Path) -> None:
    """Raises a ValueError for a first answer that is none of an arm, or one that is not there in time."""
    arms = {arm.name: arm for arm in protocol.arms}
    for arm in protocol.arms:
        if arm.first is None:
            continue
        where = f"{path}: arm {arm.name!r}"
        if arm.first not in arms:
            raise ValueError(f"{where}: there is no arm {arm.first!r}{suggestion(arm.first, arms)}")
        first = arms[arm.first]
        if first.votes > 1 or first.frequencies_of is not None:
            raise ValueError(f"{where}: {arm.first!r} is a vote or a placebo; name an arm of single answers")
        if first.variant == dataclasses.replace(arm.variant, label=arm.first):
            raise ValueError(
                f"{where}: an answer of {arm.first!r} is its own first vote already; leave out first"
            )


def _with_numbers(arm: Arm, protocol: Protocol) -> Arm:
    """A placebo of an arm does what it does with that arm's numbers, and looks ahead and back as that arm does."""
    if arm.frequencies_of is None:
        return arm
    [source] = [other for other in protocol.arms if other.name == arm.frequencies_of]
    sampler, theirs = arm.variant.sampler, source.variant.sampler.numbers
    own = {entry.name for entry in dataclasses.fields(sampler.numbers)}
    numbers = {name: value for name, value in dataclasses.asdict(theirs).items() if name in own}
    looking: Any = source.variant.sampler.looking | sampler.looking
    sampler = dataclasses.replace(sampler.changed(numbers), **looking)
    return dataclasses.replace(arm, variant=dataclasses.replace(arm.variant, sampler=sampler))


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: unknown key {shown(key)}{suggestion(key, known)}")
