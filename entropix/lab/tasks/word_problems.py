"""Word problems of a JSONL file in the manner of GSM8K: `{"question": ..., "answer": "... #### 42"}` a line.

The file is the user's own: nothing is downloaded.
"""

import dataclasses
import json
import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

from entropix.checkpoint.values import is_text
from entropix.files import read_text
from entropix.lab.tasks.base import DEV, Item, check_split, chosen, split_of

_NUMBER = r"[-−]?\$?\d[\d,]*(?:\.\d+)?|[-−]?\$?\.\d+"
_ASKED = "{}\nThink step by step, and end with the answer as a number after ####."


@dataclasses.dataclass(frozen=True)
class WordProblems:
    """The problems of a file for each split."""

    name: str
    dev: tuple[Item, ...]
    held_out: tuple[Item, ...]
    max_new_tokens: int = 256
    is_closed: bool = True

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """See `base.Task`."""
        check_split(split)
        return chosen(self.dev if split == DEV else self.held_out, seed, n)

    def extract(self, item: Item, text: str) -> str | None:
        """The number after ####; without this mark, the one after "answer is"; else the last number."""
        return final_number(text)

    def score(self, item: Item, text: str) -> float:
        """1 if the number is that of the file."""
        return float(final_number(text) == item.answers[0])


def final_number(text: str) -> str | None:
    """The number that a text ends in, as it is plainly written: no commas, no zeros behind the point."""
    for before in (r"####\s*", r"(?i:answer(?: is|:))[^\d\n]{0,20}?", ""):
        found = re.findall(rf"{before}({_NUMBER})", text)
        if found:
            return _plain(found[-1])
    return None


def read(dev: str | Path, held_out: str | Path | None = None, *, name: str = "word-problems") -> WordProblems:
    """Of two files, or of one that is divided. Raises a ValueError that names file and line for what is no problem, and
    for a problem that is in both."""
    items = _items(Path(dev))
    if held_out is None:
        mine = tuple(item for item in items if split_of(item.id) == DEV)
        return WordProblems(name, mine, tuple(item for item in items if split_of(item.id) != DEV))
    others = _items(Path(held_out))
    if both := {item.id for item in items} & {item.id for item in others}:
        raise ValueError(f"{held_out}: {min(both)[:80]!r} is in {dev} too; remove it from one of the two")
    return WordProblems(name, tuple(items), tuple(others))


def _items(path: Path) -> list[Item]:
    items = {}
    for n, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            question, answer = value["question"], value["answer"]
            number = final_number(str(answer)) if is_text(question) and question else None
        except (ValueError, TypeError, KeyError, RecursionError):
            number = None
        if number is None:
            raise ValueError(
                f'{path}: line {n}: expected {{"question": "...", "answer": "... #### 42"}}, got {line[:80]}'
            )
        items[question] = Item(question, _ASKED.format(question), path.stem, (number,))
    if not items:
        raise ValueError(f"{path}: there is no problem in this file")
    return list(items.values())


def _plain(number: str) -> str | None:
    try:
        value = Decimal(number.replace(",", "").replace("$", "").replace("−", "-"))
    except InvalidOperation:
        return None
    return f"{value.normalize() + 0:f}"
