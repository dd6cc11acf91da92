"""The contract of a task, and how items are divided: numbers are chosen on the development split, and what they are
worth is measured once on the held-out one."""

import functools
import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from entropix.prompts import PromptText

DEV, HELD_OUT = "dev", "held-out"
SPLITS = (DEV, HELD_OUT)
_PARTS, _DEV_PARTS = 7, 3  # of what there is, so much is for development


class Item(NamedTuple):
    """One thing to be asked."""

    id: str  # its own within the task, whatever the seed
    prompt: PromptText
    kind: str = ""  # items of a kind are alike; figures are told by kind
    answers: tuple[str, ...] = ()  # that are right, where these can be listed
    data: Mapping[str, Any] = {}  # what else scoring needs, as JSON has it


@runtime_checkable
class Task(Protocol):
    """What every task has. All of it is a function of its arguments alone."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """In which an answer should have ended."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether answers are right or wrong; else `score` is None and the text itself is measured."""
        ...

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """n items, or all of them, or as many as there are, in an order that the seed chooses.

        split: "dev" or "held-out", which have no item in common, whatever the seeds.
        """
        ...

    def extract(self, item: Item, text: str) -> str | None:
        """The answer in a text, such that texts with the same answer have the same one; None if there is none.

        It does not look at which answer is right: a vote that knew would win by that.
        """
        ...

    def score(self, item: Item, text: str) -> float | None:
        """How right the text is, from 0 to 1; None where nothing is right or wrong."""
        ...


def split_of(key: str) -> str:
    """The split of what is called so, for ever: by its hash, 3 of 7 are for development."""
    return SPLITS[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _PARTS >= _DEV_PARTS]


def check_split(split: str) -> None:
    """Raises a ValueError for a split that there is none of."""
    if split not in SPLITS:
        raise ValueError(f"expected a split that is {' or '.join(SPLITS)}, got {split!r}")


def chosen(items: Iterable[Item], seed: int, n: int | None) -> list[Item]:
    """n of the items, or all, in an order that the seed chooses and in which kinds take turns: as many of each as there
    are, and the same first ones for every n."""
    by_kind: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_kind[item.kind].append(item)
    rng = random.Random(f"entropix tasks {seed}")
    kinds = sorted(by_kind)
    rng.shuffle(kinds)
    for kind in kinds:
        rng.shuffle(by_kind[kind])
    turns = max(map(len, by_kind.values()), default=0)
    ordered = [by_kind[kind][turn] for turn in range(turns) for kind in kinds if turn < len(by_kind[kind])]
    return ordered if n is None else ordered[:n]


def digest(items: Sequence[Item]) -> str:
    """The sha256 of all that the items are, in any order: of two runs it tells whether they asked the same."""
    lines = sorted(
        json.dumps([item.id, item.prompt, item.kind, item.answers, dict(item.data)], sort_keys=True)
        for item in items
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.cache
def pattern_of(names: tuple[str, ...], before: str = r"(?<!\w)", after: str = r"(?!\w)") -> re.Pattern[str]:
    """Finds names, its only group, between these patterns: longer ones first, capitals aside, but that a single letter
    is found as it is written alone."""
    longest = sorted(names, key=len, reverse=True)
    words = "|".join(re.escape(name) for name in longest if len(name) > 1)
    letters = "|".join(re.escape(name) for name in longest if len(name) == 1)
    either = "|".join([*([f"(?i:{words})"] if words else []), *([letters] if letters else [])])
    return re.compile(f"{before}({either}){after}")


def first_words(text: str) -> str | None:
    """The first sentence of a text in small letters, without marks at its ends: its answer, where nothing better is
    known; None for an empty one."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    sentence = line.strip()
    for mark in (". ", "! ", "? "):
        sentence = sentence.partition(mark)[0]
    return " ".join(sentence.casefold().split()).strip(" .,;:!?\"'*`()") or None


def listed(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(" ".join(part.split()) for part in text.split(","))
