"""Plain questions: tables of facts, small sums and words that a program makes, and files of one's own."""

import dataclasses
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from entropix.files import read_toml
from entropix.lab import questions
from entropix.lab.questions import Question
from entropix.lab.tasks import generated
from entropix.lab.tasks.base import DEV, Item, check_split, chosen, first_words, pattern_of, split_of
from entropix.presets import shipped


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions with accepted answers, of some kinds or of all."""

    name: str
    dev: tuple[Item, ...]
    held_out: tuple[Item, ...]
    max_new_tokens: int = 32
    is_closed: bool = True

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """See `base.Task`."""
        check_split(split)
        return chosen(self.dev if split == DEV else self.held_out, seed, n)

    def extract(self, item: Item, text: str) -> str | None:
        """The first choice that stands in the text, where the question has choices; else the first answer that any
        question of its kind has, unless the question itself names it; else the first sentence. Which answer is right
        is not looked at: a vote that knew it would win by it."""
        if "choices" in item.data:
            return _question(item).choice(text) or first_words(text)
        asked = set(self._named(item.kind, str(item.prompt)))
        found = (name for name in self._named(item.kind, text) if name not in asked)
        return next(found, None) or first_words(text)

    def _named(self, kind: str, text: str) -> Iterator[str]:
        """The answers of a kind that stand in the text, in order, each by its first accepted name."""
        names = self._names.get(kind, {})
        for found in pattern_of(tuple(names)).finditer(text) if names else ():
            yield names[_plain(found[0])]

    @cached_property
    def _names(self) -> dict[str, dict[str, str]]:
        """By kind, the first accepted name of every answer, by each of its names."""
        found: dict[str, dict[str, str]] = {}
        for item in (*self.dev, *self.held_out):
            for name in item.answers:
                found.setdefault(item.kind, {}).setdefault(_plain(name), item.answers[0])
        return found

    def score(self, item: Item, text: str) -> float:
        """1 if an accepted answer stands in the text as words of its own; see `lab.questions`."""
        return float(_question(item).is_right(text))


def _plain(name: str) -> str:
    return name if len(name) == 1 else name.casefold()


def shipped_questions(name: str = "questions", *tables: str, kinds: tuple[str, ...] = ()) -> Questions:
    """Those of tables in configs/tasks, and of `generated.TABLES`.

    kinds: only these. Raises a ValueError for one that there is none of.
    """
    items = [item for table in tables for item in _of_table(table)]
    there = sorted({item.kind for item in items})
    if unknown := sorted({*kinds} - {*there}):
        raise ValueError(
            f"task {name}: no questions of the kind {unknown[0]!r}; there are {', '.join(there)}"
        )
    kept = [item for item in items if not kinds or item.kind in kinds]
    splits = [split_of(item.data["fact"]) for item in kept]
    dev, held_out = (
        tuple(item for item, split in zip(kept, splits, strict=True) if (split == DEV) is wanted)
        for wanted in (True, False)
    )
    return Questions(name, dev, held_out)


def questions_of_files(name: str, dev: str | Path, held_out: str | Path | None = None) -> Questions:
    """Those of two files, or of one that is divided; see `lab.questions`. Raises a ValueError for a question that is in
    both."""
    items = [_item(question, question.kind or Path(dev).stem) for question in questions.read(dev)]
    if held_out is None:
        mine = [item for item in items if split_of(item.id) == DEV]
        return Questions(name, tuple(mine), tuple(item for item in items if split_of(item.id) != DEV))
    others = [_item(question, question.kind or Path(held_out).stem) for question in questions.read(held_out)]
    if both := {item.prompt for item in items} & {item.prompt for item in others}:
        raise ValueError(
            f"{held_out}: {min(map(str, both))!r} is in {dev} too; remove it from one of the two"
        )
    return Questions(name, tuple(items), tuple(others))


def _of_table(table: str) -> Iterator[Item]:
    if table in generated.TABLES:
        for made in generated.questions(generated.TABLES[table]):
            yield _item(made, made.kind, f"{made.kind}: {made.prompt}")
        return
    path = shipped(f"tasks/{table}.toml")
    for kind, values in read_toml(path).items():
        choices = tuple(values.get("choices", ()))
        for line in values["rows"].strip().splitlines():
            key, colon, rest = line.partition(": ")
            answers = tuple(answer.strip() for answer in rest.split(" | "))
            if not colon or not all(answers):
                raise ValueError(f"{path}: [{kind}]: expected `key: answer | answer`, got {line!r}")
            fact = f"{kind}: {key}"
            if "ask" in values:
                yield _item(Question(values["ask"].format(key), answers, kind, choices), kind, fact)
            if "back" in values:
                asked = Question(values["back"].format(answers[0]), (key,), f"{kind}-back")
                yield _item(asked, asked.kind, fact)


def _item(question: Question, kind: str, fact: str = "") -> Item:
    name = hashlib.sha256(question.prompt.encode()).hexdigest()[:12]
    data: dict[str, Any] = {"fact": fact or question.prompt}
    if question.choices:
        data["choices"] = list(question.choices)
    return Item(f"{kind}-{name}", question.prompt, kind, question.answers, data)


def _question(item: Item) -> Question:
    return Question(str(item.prompt), item.answers, item.kind, tuple(item.data.get("choices", ())))
