"""Plain questions whose answers a program can check: `{"prompt": ..., "answers": [...]}` a line.

An answer is right if one of the accepted ones stands in it as words of their own, capitals aside (but for a single
letter, whose case is the answer).
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

    def is_right(self, text: str) -> bool:
        """Whether one of the accepted answers stands in the text."""
        return any(
            re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, 0 if len(answer) == 1 else re.IGNORECASE)
            for answer in self.answers
        )


def read(path: str | Path) -> list[Question]:
    """The questions in a file. Raises a ValueError that names file and line for what is none."""
    questions = []
    for number, line in enumerate(read_text(Path(path)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            prompt, answers = value["prompt"], value["answers"]
        except (ValueError, TypeError, KeyError, RecursionError):
            prompt = answers = None
        if not isinstance(prompt, str) or not isinstance(answers, list) or not answers or not all(answers):
            raise ValueError(
                f'{path}: line {number}: expected {{"prompt": "...", "answers": ["..."]}}, got {line[:80]}'
            )
        questions.append(Question(prompt, tuple(map(str, answers))))
    if not questions:
        raise ValueError(f"{path}: there is no question in this file")
    return questions
