"""Plain questions whose answers a program can check: `{"prompt": ..., "answers": [...]}` a line, and `"kind"` and
`"choices"` where there are any.

An answer is right if one of the accepted ones stands in it as words of their own, capitals aside (but for a single
letter, whose case is the answer). Of choices that the question names, the first one in the answer counts.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from entropix.checkpoint.values import is_text
from entropix.files import read_text
from entropix.showing import shown


class Question(NamedTuple):
    """One of them."""

    prompt: str
    answers: tuple[str, ...]
    kind: str = ""  # questions of a kind are alike
    choices: tuple[str, ...] = ()  # that the question names; accepted answers are among them

    def is_right(self, text: str) -> bool:
        """Whether one of the accepted answers stands in the text, and no other choice before it."""
        if self.choices:
            return self.choice(text) in self.answers
        return any(_place(answer, text) is not None for answer in self.answers)

    def choice(self, text: str) -> str | None:
        """The first of the choices that stands in the text; None if none does."""
        places = [(_place(choice, text), choice) for choice in self.choices]
        return min(((place, choice) for place, choice in places if place is not None), default=(0, None))[1]


def _place(answer: str, text: str) -> int | None:
    """Where the answer stands in the text, as words of its own."""
    flags = 0 if len(answer) == 1 else re.IGNORECASE
    found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, flags)
    return None if found is None else found.start()


def read(path: str | Path) -> list[Question]:
    """The questions in a file. Raises a ValueError that names file and line for what is none."""
    lines = enumerate(read_text(Path(path)).split("\n"), start=1)
    questions = [_question(line, f"{path}: line {number}") for number, line in lines if line.strip()]
    if not questions:
        raise ValueError(f"{path}: there is no question in this file")
    return questions


def _question(line: str, where: str) -> Question:
    """The question in a line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # none, numbers of thousands of digits, too many brackets
        value = None
    if not isinstance(value, dict):
        value = {}
    prompt, kind, choices = value.get("prompt"), value.get("kind", ""), value.get("choices", [])
    answers = _texts(value.get("answers"))
    if not is_text(prompt) or not prompt or not answers:
        raise ValueError(f'{where}: expected {{"prompt": "...", "answers": ["..."]}}, got {line[:80]}')
    if not is_text(kind):
        raise ValueError(f"{where}: kind must be a text, got {shown(kind)}")
    named = _texts(choices)
    if named is None or (named and not {*answers} <= {*named}):
        raise ValueError(
            f"{where}: choices must be a list of texts with all answers among them, got {shown(choices)}"
        )
    return Question(prompt, answers, kind, named)


def _texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts and numbers, as texts; None where it is none, or one of them is empty."""
    is_list = isinstance(value, list) and all(
        (is_text(item) and item) or (isinstance(item, int | float) and not isinstance(item, bool))
        for item in value
    )
    return tuple(map(str, value)) if is_list else None
