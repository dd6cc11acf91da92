"""Tasks of the package reasoning-gym, where it is installed (`pip install reasoning-gym`): puzzles made by programs."""

import dataclasses
import functools
import hashlib
import importlib
import re
from collections.abc import Mapping
from typing import Any

from entropix.lab.tasks.base import DEV, Item, check_split, split_of
from entropix.prompts import Message

# Far from the seeds of items: its datasets make item i of seed s the same as item 0 of seed s + i.
_EXAMPLES_SEED = 2**30
_SPARE, _MOST_TRIES = (
    4,
    64,
)  # datasets of so many times n items; how many of them without a new item end the search


@dataclasses.dataclass(frozen=True)
class Gym:
    """One of its datasets at one level, asked behind a few worked examples, which show the form of an answer.

    dataset: its name there. level: its numbers, as in `min_terms = 2`. examples: how many, as turns of the chat.
    Splits are told apart by the question itself: seeds of its datasets that are near have items in common, and small
    levels have few items at all.
    """

    dataset: str
    level: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: int = 4
    max_new_tokens: int = 32
    is_closed: bool = True

    def __post_init__(self) -> None:
        self._made(0, 1)  # a name or level that there is none of is told here

    @property
    def name(self) -> str:
        """Of the dataset and its level."""
        told = ",".join(f"{key}={value}" for key, value in self.level.items())
        return f"reasoning-gym:{self.dataset}" + (f"({told})" if told else "")

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """See `base.Task`. n must be given, as there is no end of items; of a small level there may be fewer."""
        check_split(split)
        if n is None:
            raise ValueError(f"task {self.name}: say how many items are wanted; it makes any number")
        shown = self._made(_EXAMPLES_SEED, self.examples)
        turns = [
            Message(role=role, content=str(entry[key]))
            for entry in shown
            for role, key in (("user", "question"), ("assistant", "answer"))
        ]
        known = {entry["question"] for entry in shown}
        items: list[Item] = []
        size, misses, start = max(_SPARE * n, 8), 0, seed * 1_000_003 % 2**29
        while len(items) < n and misses < _MOST_TRIES:
            before = len(items)
            for entry in self._made(start, size):
                question = str(entry["question"])
                if len(items) < n and question not in known and split_of(question) == split:
                    known.add(question)
                    items.append(self._item(question, entry, turns))
            misses = misses + 1 if len(items) == before else 0
            start += size
        return items

    def extract(self, item: Item, text: str) -> str | None:
        """What stands in <answer> marks or behind "answer is"; else the first line. Of it the last number, where the
        worked examples' and this item's answers are numbers."""
        marked = re.findall(r"(?is)<answer>(.*?)</answer>", text) or re.findall(
            r"(?i)answer(?: is|:)\s*(.+)", text
        )
        line = marked[-1] if marked else next((line for line in text.splitlines() if line.strip()), "")
        line = line.strip().rstrip(".").strip("*`\"' ")
        numbers = re.findall(r"[-−]?\d[\d,]*(?:\.\d+)?", line)
        if item.data["is_number"] and numbers:
            return numbers[-1].replace(",", "").replace("−", "-")
        return line or None

    def score(self, item: Item, text: str) -> float:
        """1 if the dataset's own scorer gives the answer full marks; what it gives for less is nothing here."""
        answer = self.extract(item, text)
        if answer is None:
            return 0.0
        entry = {key: item.data[key] for key in ("question", "answer", "metadata")}
        return float(self._dataset(0, 1).score_answer(answer, entry) >= 1)

    def _item(self, question: str, entry: Mapping[str, Any], turns: list[Message]) -> Item:
        name = hashlib.sha256(question.encode()).hexdigest()[:12]
        answer = str(entry["answer"])
        data = {**entry, "is_number": re.fullmatch(r"-?\d+(\.\d+)?", answer) is not None}
        prompt = [*turns, Message(role="user", content=question)]
        return Item(f"{self.dataset}-{name}", prompt, self.dataset, (answer,), data)

    def _made(self, seed: int, size: int) -> list[Mapping[str, Any]]:
        dataset = self._dataset(seed, size) if size else ()
        return [dataset[i] for i in range(size)]

    def _dataset(self, seed: int, size: int) -> Any:
        return _dataset(self.dataset, tuple(sorted(self.level.items())), seed, size)


@functools.lru_cache(maxsize=4)
def _dataset(name: str, level: tuple[tuple[str, Any], ...], seed: int, size: int) -> Any:
    """Raises a ValueError where the package is missing, or refuses the name or the level."""
    try:
        package = importlib.import_module("reasoning_gym")
    except ImportError:
        raise ValueError(
            "the tasks of reasoning-gym need its package: pip install 'entropix-jax[tasks]', or leave them out"
        ) from None
    try:
        return package.create_dataset(name, seed=seed, size=size, **dict(level))
    except Exception as error:  # assertions, unknown names and fields
        told = str(error) or type(error).__name__
        raise ValueError(
            f"reasoning-gym: dataset {name!r} with {dict(level) or 'its own level'}: {told}"
        ) from None
