"""What a user names, resolved once: a rule with its numbers, which travels to whoever draws, writes or compares."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropix import config, presets
from entropix.config import LOOKING, TRACED, BacktrackConfig, BranchConfig
from entropix.files import read_toml
from entropix.samplers import registry, rule_files
from entropix.samplers.base import Sampler
from entropix.samplers.numbers import RuleConfig
from entropix.samplers.repetition import guarded, is_on
from entropix.samplers.rule_files import RuleFile


@dataclass(frozen=True)
class ResolvedSampler:
    """A rule with its numbers, checked."""

    label: str  # what the user called it
    rule: Sampler
    numbers: Any  # of the rule: a `rule.config`
    source: RuleFile | None = None  # of a rule in a file of somebody's own
    branching: BranchConfig | None = None  # how it looks ahead, of a preset that says so
    backtracking: BacktrackConfig | None = None  # and back

    @property
    def name(self) -> str:
        """The rule's own name."""
        return self.rule.name

    @property
    def sampler(self) -> Sampler:
        """The rule, guarded against repetition if the numbers ask for it."""
        return self.on(())

    def on(self, special: Iterable[int]) -> Sampler:
        """The same on a model where these tokens end a text or mark a turn."""
        if not is_on(self.numbers):
            return self.rule
        ids = tuple(sorted(set(special)))
        return guarded(self.rule, ids) if ids else guarded(self.rule)

    @property
    def looking(self) -> dict[str, Any]:
        """How it looks ahead and back, by the field of `GenerateConfig`, where that is its own."""
        return {name: own for name in LOOKING if (own := getattr(self, name)) is not None}

    @property
    def fixed(self) -> tuple[Any, ...]:
        """What the rows of one batch have in common: all but numbers that compile nothing."""
        numbers = [(f.name, f.metadata["kind"]) for f in dataclasses.fields(self.numbers)]
        static = [getattr(self.numbers, name) for name, kind in numbers if kind != TRACED]
        return self.sampler, self.branching, self.backtracking, *static

    def as_toml(self) -> Iterator[str]:
        """The lines of a preset with all its numbers, which gives the same tokens."""
        named = self.name if self.source is None else f"{self.source.file}:{self.source.object}"
        yield f"sampler = {json.dumps(named)}"
        for name, value in dataclasses.asdict(self.numbers).items():
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
        yield from self.looking_as_toml()

    def looking_as_toml(self) -> Iterator[str]:
        """The tables at the end of a preset that say how it looks ahead and back."""
        for name, own in self.looking.items():
            yield f"[{name}]"
            for field, value in dataclasses.asdict(own).items():
                yield f"{field} = {json.dumps(value, ensure_ascii=False)}"

    def changed(self, changes: Mapping[str, Any], where: str = "sampler config") -> "ResolvedSampler":
        """The same with some numbers replaced. Raises a ValueError that begins with `where` for what is wrong."""
        registry.check_names(changes, self.rule, where)
        values = dataclasses.asdict(self.numbers) | dict(changes)
        return dataclasses.replace(self, numbers=config.from_mapping(type(self.numbers), values, where))


def resolve(
    named: "str | Sampler | ResolvedSampler",
    changes: Mapping[str, Any] | RuleConfig | None = None,
    folder: Path = Path(),
) -> ResolvedSampler:
    """The rule and the numbers that are meant by

    - the name of a preset in configs/samplers or of a rule, whose numbers then are the usual ones;
    - a `.toml` file, whose entry `sampler` names the rule and whose other entries are numbers of it; tables `branching`
      and `backtracking`, if there are, say how it looks ahead and back;
    - a rule in a Python file, `my_rule.py:RULE`;
    - a rule itself, or what was resolved already.

    changes: numbers that replace these, or all of them. folder: what names of files are relative to. Raises a
    ValueError that says what is wrong.
    """
    found = _resolve(named, folder)
    if changes is None:
        return found
    if isinstance(changes, Mapping):
        return found.changed(changes)
    if not isinstance(changes, found.rule.config):
        expected, given = found.rule.config.__name__, type(changes).__name__
        raise ValueError(f"sampler config: {found.name} takes a {expected} or a mapping, got a {given}")
    config.check(changes, "sampler config")
    return dataclasses.replace(found, numbers=changes)


def common(several: Sequence[ResolvedSampler]) -> ResolvedSampler:
    """Whose program serves all of these: the first, or the first with a guard. Raises a ValueError where they differ in
    more than numbers that compile nothing."""
    first = next((one for one in several if is_on(one.numbers)), several[0])
    for one in several:
        if one.rule != first.rule:
            raise ValueError(f"rows of one batch have one rule, got {first.name} and {one.name}")
        for field in dataclasses.fields(one.numbers):
            name = field.name
            if field.metadata["kind"] == TRACED:
                continue
            values = getattr(first.numbers, name), getattr(one.numbers, name)
            if values[0] != values[1]:
                raise ValueError(
                    f"rows of one batch have the same {name}, which is part of their program, got "
                    f"{values[0]!r} and {values[1]!r}"
                )
    return first


def recorded(
    name: str, numbers: Mapping[str, Any], source: Mapping[str, str] | None = None
) -> ResolvedSampler:
    """What a trace or a grid's results say that was used: numbers that only other rules have are left out.

    Raises a ValueError for a rule whose file is gone or has changed.
    """
    came_from = None if source is None else _rule_file(source)
    rule = registry.get(name) if came_from is None else rule_files.load_recorded(came_from)
    own = {field.name for field in dataclasses.fields(rule.config)}
    values = {field: value for field, value in numbers.items() if field in own or not registry.users(field)}
    values.setdefault("repetition_special", 1.0)  # before there was this number, they were lowered
    return ResolvedSampler(name, rule, config.from_mapping(rule.config, values, "sampler_config"), came_from)


def _rule_file(source: Mapping[str, str]) -> RuleFile:
    if missing := [field for field in RuleFile._fields if not isinstance(source.get(field), str)]:
        raise ValueError(f"the source of a rule needs {missing[0]!r}, a text; got {dict(source)!r}")
    return RuleFile(**{field: source[field] for field in RuleFile._fields})


def names() -> list[str]:
    """All presets, those of rules among them."""
    return sorted({*presets.preset_names("samplers"), *registry.summaries()})


def about(name: str) -> str:
    """A line about a preset: what its rule does or, where several presets share that rule, what sets this one apart."""
    rules = registry.summaries()
    return rules[name] if name in rules else presets.preset_comment(name)


def _resolve(named: "str | Sampler | ResolvedSampler", folder: Path) -> ResolvedSampler:
    if isinstance(named, ResolvedSampler):
        return named
    if not isinstance(named, str):
        registry.check_rule(named, "sampler")
        rule_files.check_free(named, "sampler")
        source = None if named in registry.BUILT_IN else rule_files.source_of(named)
        return ResolvedSampler(named.name, named, named.config(), source)
    if named.endswith(".toml"):
        return _from_toml(named, folder / named)
    if rule_files.is_rule_file(named):
        rule, source = rule_files.load(named, folder)
        return ResolvedSampler(named, rule, rule.config(), source)
    if named in presets.preset_names("samplers"):
        return _from_toml(named, presets.preset_path("samplers", named))
    if named in registry.summaries():
        rule = registry.get(named)
        return ResolvedSampler(named, rule, rule.config())
    raise ValueError(presets.unknown("samplers", named, names()))


def _from_toml(label: str, path: Path) -> ResolvedSampler:
    """The rule that a file names, with the file's numbers."""
    values = read_toml(path)
    named = values.pop("sampler", None)
    if not isinstance(named, str):
        raise ValueError(f'{path}: expected an entry like sampler = "entropix", got {named!r}')
    if rule_files.is_rule_file(named):
        found = _resolve(named, path.parent)
    else:
        try:
            rule = registry.get(named)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found = ResolvedSampler(label, rule, rule.config())
    usual = found.numbers
    looking = {name: values.pop(name) for name in LOOKING if name in values}
    values = {name: value for name, value in values.items() if not _is_idle(name, value, found.rule)}
    found = dataclasses.replace(found.changed(values, str(path)), label=label)
    given = [name for name in values if getattr(found.numbers, name) != getattr(usual, name)]
    registry.check_guard(given, found.numbers, str(path))
    return dataclasses.replace(found, **config.read_looking(looking, str(path)))


def _is_idle(name: str, value: Any, rule: Sampler) -> bool:
    """Whether a number of other rules is what it usually is: older files may list it."""
    return name not in {field.name for field in dataclasses.fields(rule.config)} and any(
        getattr(registry.SAMPLERS[user].config, name) == value for user in registry.users(name)
    )
