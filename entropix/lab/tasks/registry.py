"""Tasks by name, with numbers of their own, or from a Python file: `my_task.py:TASK`."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from entropix.config import MAX_INT32
from entropix.lab.tasks import question_tasks, sets, word_problems
from entropix.lab.tasks.base import Task
from entropix.lab.tasks.gym import Gym
from entropix.lab.tasks.instructions import Instructions
from entropix.lab.tasks.openings import Openings
from entropix.lab.tasks.own import OwnTask
from entropix.samplers import rule_files
from entropix.showing import shown, suggestion, suggestions


def _questions(dev: str | None = None, held_out: str | None = None, kinds: tuple[str, ...] = ()) -> Task:
    if dev is None and held_out is not None:
        raise ValueError("task questions: held_out goes with dev, the file of development items; give both")
    if dev is not None and kinds:
        raise ValueError(
            "task questions: kinds are of the shipped questions, not of files; drop kinds or dev"
        )
    if dev is not None:
        return question_tasks.questions_of_files(f"questions:{dev}", dev, held_out)
    return question_tasks.shipped_questions("questions", "facts", "generated", kinds=tuple(kinds))


def _other_questions(kinds: tuple[str, ...] = ()) -> Task:
    return question_tasks.shipped_questions(
        "other-questions", "other-facts", "other-generated", kinds=tuple(kinds)
    )


def _fresh_questions(kinds: tuple[str, ...] = ()) -> Task:
    return question_tasks.shipped_questions("fresh-questions", "fresh-facts", kinds=tuple(kinds))


def _instructions(kinds: tuple[str, ...] = ()) -> Task:
    return Instructions(kinds=tuple(kinds)) if kinds else Instructions()


def _gym(dataset: str, examples: int = 4, max_new_tokens: int = 32, **level: Any) -> Task:
    return Gym(dataset, level, examples, max_new_tokens)


# By name: what makes it, and what stands behind the colon in NAME:VALUE.
_MAKERS: dict[str, tuple[Callable[..., Task], str]] = {
    "questions": (_questions, "dev"),
    "other-questions": (_other_questions, ""),
    "fresh-questions": (_fresh_questions, ""),
    "sets": (sets.read, "path"),
    "instructions": (_instructions, ""),
    "open": (Openings, ""),
    "word-problems": (word_problems.read, "dev"),
    "reasoning-gym": (_gym, "dataset"),
}

_MOST_EXAMPLES = 64


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_FILE = ("the name of a file", _is_text)
# What tasks take, by name: how it is called in a sentence, and the check.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "dev": _FILE,
    "held_out": _FILE,
    "path": _FILE,
    "dataset": ("the name of a dataset", _is_text),
    "kinds": ("a list of texts", lambda value: isinstance(value, list | tuple) and all(map(_is_text, value))),
    "examples": (
        f"a whole number from 0 to {_MOST_EXAMPLES}",
        lambda value: _is_count(value, 0, _MOST_EXAMPLES),
    ),
    "max_new_tokens": ("a whole number of at least 1", lambda value: _is_count(value, 1, MAX_INT32)),
}


def known() -> list[str]:
    """The names of tasks."""
    return list(_MAKERS)


def resolve(named: str | Mapping[str, Any] | Task, folder: Path = Path()) -> Task:
    """The task that is meant: a name, NAME:FILE, reasoning-gym:DATASET, FILE.py:NAME, a table with `task` and what it
    takes, or a task itself. Raises a ValueError that says what there is.

    folder: what files of one's own tasks are relative to.
    """
    if isinstance(named, str):
        if rule_files.is_rule_file(named):
            return _of_file(named, folder)
        named = _table(named)
    if not isinstance(named, Mapping):
        return named
    values = dict(named)
    name = values.pop("task", None)
    if isinstance(name, str) and rule_files.is_rule_file(name) and not values:
        return _of_file(name, folder)
    if not isinstance(name, str) or name not in _MAKERS:
        hint = suggestions(name if isinstance(name, str) else "", _MAKERS)
        raise ValueError(f"unknown task {shown(name)}{hint}, or give a file of yours, FILE.py:NAME")
    make = _MAKERS[name][0]
    _check(values, make, f"task {name}")
    return make(**values)


def _check(values: Mapping[str, Any], make: Callable[..., Task], where: str) -> None:
    """Raises a ValueError for a key that the maker of a task does not take, one that is missing, or one of another
    type."""
    takes = inspect.signature(make).parameters.values()
    own = {one.name: one for one in takes if one.kind is not one.VAR_KEYWORD and one.name in _KINDS}
    takes_others = any(one.kind is one.VAR_KEYWORD for one in takes)
    for key, value in values.items():
        if key not in own and not takes_others:
            raise ValueError(f"{where}: unknown key {shown(key)}{suggestion(key, own)}")
        expected, is_right = _KINDS[key] if key in own else ("", lambda value: True)
        if not is_right(value):
            raise ValueError(f"{where}: {key} must be {expected}, got {shown(value)}")
    if missing := [key for key, one in own.items() if one.default is one.empty and key not in values]:
        raise ValueError(f"{where}: {missing[0]} is missing, {_KINDS[missing[0]][0]}")


def _table(named: str) -> dict[str, Any]:
    name, colon, value = named.partition(":")
    if not colon:
        return {"task": name}
    key = _MAKERS.get(name, (None, "value"))[1]
    if not key:
        raise ValueError(f"task {name} takes nothing behind a colon, got {named!r}")
    return {"task": name, key: value}


def _of_file(named: str, folder: Path) -> Task:
    """The task in a file. Raises a ValueError for one that lacks what tasks have."""
    found, _ = rule_files.load_object(named, Task, "task", folder)
    return OwnTask(found, named)
