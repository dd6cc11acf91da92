"""Plain questions whose answers a program can check: `{"prompt": ..., "answers": [...]}` a line, and `"kind"` and
`"choices"` where there are any.

An answer is right if one of the accepted ones stands in it as words of their own, capitals aside (but for a single
letter, whose case is the answer). Of choices that the question names, the first one in the answer counts.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from entropix.files import read_text


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
    questions = []
    for number, line in enumerate(read_text(Path(path)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            prompt, answers = value["prompt"], value["answers"]
            kind, choices = str(value.get("kind", "")), tuple(map(str, value.get("choices", ())))
        except (ValueError, TypeError, KeyError, RecursionError):
            prompt = answers = None
            kind, choices = "", ()
        if not isinstance(prompt, str) or not isinstance(answers, list) or not answers or not all(answers):
            raise ValueError(
                f'{path}: line {number}: expected {{"prompt": "...", "answers": ["..."]}}, got {line[:80]}'
            )
        questions.append(Question(prompt, tuple(map(str, answers)), kind, choices))
    if not questions:
        raise ValueError(f"{path}: there is no question in this file")
    return questions
