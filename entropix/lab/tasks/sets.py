"""Valid-set tasks: "Name a ...", where any member is right, and seeds should find different ones.

Validity is the share of answers that are members (`score`), coverage how many different ones there are over the seeds.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropix.files import read_toml
from entropix.lab.tasks.base import DEV, SPLITS, Item, check_split, chosen, first_words, pattern_of
from entropix.presets import shipped

_ASKED = ("Name {}.", "Give me one example of {}.", "What is one example of {}?")


@dataclasses.dataclass(frozen=True)
class Sets:
    """The sets of a file, each asked for in three ways."""

    name: str
    sets: tuple[Item, ...]
    max_new_tokens: int = 32
    is_closed: bool = True

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """See `base.Task`."""
        check_split(split)
        return chosen((item for item in self.sets if item.data["split"] == split), seed, n)

    def extract(self, item: Item, text: str) -> str | None:
        """The member of any of the sets that is named first in the first line of the text, single letters aside; else
        the first sentence. Which set was asked for is not looked at: a vote that knew it would win by it."""
        found = []
        for answers, plurals in {(one.answers, one.data["plurals"]) for one in self.sets}:
            at = next((m for m in _pattern(answers, plurals).finditer(_line(text)) if len(m[1]) > 1), None)
            if at is not None:
                found.append((at.start(), -len(at[1]), _members(answers)[_plain(at[1])]))
        return min(found)[-1] if found else first_words(text)

    def member(self, item: Item, text: str) -> str | None:
        """The member of the set that is named first in the first line of the text; None if none is."""
        found = _pattern(item.answers, item.data["plurals"]).search(_line(text))
        return None if found is None else _members(item.answers)[_plain(found[1])]

    def score(self, item: Item, text: str) -> float:
        """1 if the answer is a member."""
        return float(self.member(item, text) is not None)

    def coverage(self, item: Item, texts: Sequence[str]) -> float | None:
        """Different members in the answers to one item, as a share of what could be at most: as many as there are
        answers, or members. None without answers."""
        found = {self.member(item, text) for text in texts} - {None}
        return len(found) / min(len(texts), len(item.answers)) if texts else None


def read(path: str | Path | None = None) -> Sets:
    """The sets of a TOML file, by default those in configs/tasks. Raises a ValueError that names what is wrong."""
    path = shipped("tasks/sets.toml") if path is None else Path(path)
    items = []
    for kind, values in read_toml(path).items():
        told = _checked(values, f"{path}: [{kind}]")
        members = tuple(" ".join(member.split()) for member in told["members"].split(",") if member.strip())
        data = {"split": told["split"], "plurals": told.get("plurals", False)}
        items += [
            Item(f"{kind}-{way}", asked.format(told["what"]), kind, members, data)
            for way, asked in enumerate(_ASKED)
        ]
    return Sets("sets", tuple(items))


def _line(text: str) -> str:
    """The first line with anything on it."""
    return next((line for line in text.splitlines() if line.strip()), "")


def _checked(values: Any, where: str) -> dict[str, Any]:
    kinds = {"split": str, "what": str, "members": str, "plurals": bool}
    needed = kinds.keys() - {"plurals"}
    if (
        not isinstance(values, dict)
        or not needed <= values.keys() <= kinds.keys()
        or not all(isinstance(value, kinds[name]) for name, value in values.items())
        or values["split"] not in SPLITS
    ):
        raise ValueError(
            f'{where}: expected split = "dev" or "held-out", what = "a ...", members = "one, another/by another '
            'name", and plurals = true where they may have an s'
        )
    return values


@functools.cache
def _members(answers: tuple[str, ...]) -> dict[str, str]:
    """Every name of every member, in small letters, and the member's first name."""
    return {_plain(name): member.split("/")[0] for member in answers for name in member.split("/")}


def _pattern(answers: tuple[str, ...], plurals: bool) -> re.Pattern[str]:
    """Finds the members, each by any of its names, as words of their own."""
    names = tuple(name for member in answers for name in member.split("/"))
    return pattern_of(names, r"(?<![\w-])", f"{'(?:s|es|S|ES)?' if plurals else ''}(?![\\w+#])")


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
