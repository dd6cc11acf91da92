"""The words of a command line before tyro reads them: which flags there are, and what is wrong with the words."""

import dataclasses
import difflib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import UseAppendAction

VERSION = "--version"


class Known(NamedTuple):
    """A flag as it may be typed."""

    values: float = 0  # how many words follow it; infinity for any number
    choices: tuple[str, ...] = ()  # the words that may, where these are few
    required: str = ""  # the flag with what stands for its value in the help, where it must be given
    names: tuple[str, ...] = ()  # its own and all others that it has


def spelled(name: str) -> str:
    """The flag of a field, as it is typed."""
    return f"--{name.replace('_', '-')}"


def known(flags: Any) -> dict[str, Known]:
    """The flags by name. flags: a dataclass with a flag a field; a field that is such a dataclass is a group."""
    return {"--help": Known(), "-h": Known(), VERSION: Known(), **dict(_flags(flags))}


def _flags(flags: Any) -> Iterator[tuple[str, Known]]:
    hints, annotated = get_type_hints(flags), get_type_hints(flags, include_extras=True)
    for field in dataclasses.fields(flags):
        kind, notes = hints[field.name], getattr(annotated[field.name], "__metadata__", ())
        if dataclasses.is_dataclass(kind):
            yield from _flags(kind)
        elif field.default is True:
            yield spelled(f"no_{field.name}"), Known()
        elif tyro.conf.Positional not in notes:
            aliases = [alias for note in notes for alias in getattr(note, "aliases", None) or ()]
            names = (spelled(field.name), *aliases)
            for name in names:
                yield name, Known() if kind is bool else _valued(field, kind, notes, names)


def _valued(
    field: "dataclasses.Field[Any]", kind: Any, notes: Sequence[Any], names: tuple[str, ...]
) -> Known:
    repeatable = UseAppendAction in notes
    metavars = [metavar for note in notes if (metavar := getattr(note, "metavar", None))]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if not choices and metavars and metavars[0] == metavars[0].lower():
        choices = tuple(metavars[0].split("|"))
    missing = dataclasses.MISSING
    is_required = field.default is missing and field.default_factory is missing
    return Known(
        math.inf if get_origin(kind) is tuple and not repeatable else 1,
        choices,
        f"{names[0]} {(metavars or ['VALUE'])[-1]}" if is_required else "",
        names,
    )


def positionals(flags: Any) -> bool:
    """Whether words without a flag mean something."""
    hints = get_type_hints(flags, include_extras=True).values()
    return any(tyro.conf.Positional in getattr(hint, "__metadata__", ()) for hint in hints)


def wrong(words: Sequence[str], flags: Any) -> str | None:
    """What is wrong with the words: the first misspelt flag, or a stray word, or flags that must be there.

    tyro would complain first of what is missing, which with a misspelt name is the wrong thing to hear.
    """
    there = known(flags)
    if error := _misspelt(words, there):
        return error
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    if given & {"--help", "-h"}:
        return None
    needed = {found.required: found.names for found in there.values() if found.required}
    missing = [told for told, names in needed.items() if not given & {*names}]
    stray = None if positionals(flags) else _stray(words, there)
    if stray is not None:
        guess = f"did you mean {missing[0].split()[0]} {shlex.quote(stray)}?" if missing else ""
        return f"no flag comes before {stray!r}; {guess or 'a value of several words stands in quotes'}"
    return f"missing: {', '.join(missing)}; --help says more" if missing else None


def _misspelt(words: Sequence[str], there: Mapping[str, Known]) -> str | None:
    """What is wrong with the first word that looks like a flag and is none."""
    for before, word in zip(["", *words], words, strict=False):
        name = word.partition("=")[0].replace("_", "-")
        if not word.startswith("-") or word == "-" or name in there or _is_number(word):
            continue
        if there.get(before.replace("_", "-"), Known()).values:
            return f"{before} needs a value; one that begins with a dash is written {before}={word}"
        # As --temperature begins with --temp.
        begun = [flag for flag in there if len(flag) > 4 and name.startswith(flag)]
        bare = {flag.lstrip("-"): flag for flag in there}  # dashes, which all have, make no two alike
        near = begun or [
            bare[one] for one in difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.7)
        ]
        return f"there is no flag {word.partition('=')[0]}; " + (
            f"did you mean {near[0]}?" if near else "--help lists all"
        )
    return None


def _stray(words: Sequence[str], there: Mapping[str, Known]) -> str | None:
    """The first word that is neither a flag nor the value of one."""
    room: float = 0
    for word in words:
        name, equals, _ = word.partition("=")
        found = there.get(name.replace("_", "-"))
        if found is not None:
            room = 0 if equals else found.values
        elif room > 0:
            room -= 1
        else:
            return word
    return None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
