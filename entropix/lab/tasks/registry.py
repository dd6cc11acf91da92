"""Tasks by name, with numbers of their own, or from a Python file: `my_task.py:TASK`."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from entropix.lab.tasks import question_tasks, sets, word_problems
from entropix.lab.tasks.base import Task
from entropix.lab.tasks.gym import Gym
from entropix.lab.tasks.instructions import Instructions
from entropix.lab.tasks.openings import Openings
from entropix.samplers import rule_files


def _questions(dev: str | None = None, held_out: str | None = None, kinds: tuple[str, ...] = ()) -> Task:
    if dev is not None:
        return question_tasks.questions_of_files(f"questions:{dev}", dev, held_out)
    return question_tasks.shipped_questions("questions", "facts", "generated", kinds=tuple(kinds))


def _other_questions(kinds: tuple[str, ...] = ()) -> Task:
    return question_tasks.shipped_questions(
        "other-questions", "other-facts", "other-generated", kinds=tuple(kinds)
    )


def _instructions(kinds: tuple[str, ...] = ()) -> Task:
    return Instructions(kinds=tuple(kinds)) if kinds else Instructions()


def _gym(dataset: str, examples: int = 4, max_new_tokens: int = 32, **level: Any) -> Task:
    return Gym(dataset, level, examples, max_new_tokens)


# By name: what makes it, and what stands behind the colon in NAME:VALUE.
_MAKERS: dict[str, tuple[Callable[..., Task], str]] = {
    "questions": (_questions, "dev"),
    "other-questions": (_other_questions, ""),
    "sets": (sets.read, "path"),
    "instructions": (_instructions, ""),
    "open": (Openings, ""),
    "word-problems": (word_problems.read, "dev"),
    "reasoning-gym": (_gym, "dataset"),
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
    if name not in _MAKERS:
        near = difflib.get_close_matches(str(name), _MAKERS, n=1)
        hint = f"did you mean {near[0]!r}? There are" if near else "there are"
        raise ValueError(
            f"unknown task {name!r}; {hint} {', '.join(_MAKERS)}, or give a file of yours, FILE.py:NAME"
        )
    try:
        return _MAKERS[name][0](**values)
    except TypeError as error:
        raise ValueError(f"task {name}: {error}") from None


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
    for part, expected in (("name", str), ("max_new_tokens", int), ("is_closed", bool)):
        if not isinstance(getattr(found, part), expected):
            raise ValueError(
                f"{named}: {part} must be of the type {expected.__name__}, got {getattr(found, part)!r}"
            )
    return found
