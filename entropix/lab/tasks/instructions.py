"""Instructions that a program can check: "answer in capitals", "exactly three items", "do not use the letter e"."""

import dataclasses
import json
import re
from collections.abc import Callable

from entropix.lab.tasks.base import DEV, Item, check_split, chosen, first_words, listed, split_of

_TOPICS = listed(
    """the sea, a dog, the moon, winter, a friend, music, bread, a garden, rain, a train, the city, a book,
    coffee, the forest, a king, football, the sun, a dream, the night, a river, school, a cat, the
    desert, love, an old house, a bicycle, the future, a bird, chocolate, a doctor, a robot, the wind, a
    birthday, the mountains, a ship, time, a farmer, the stars, a storm, breakfast"""
)
_WORDS = listed("always, because, together, water, today, little, beautiful, never")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)


def _sentences(text: str) -> int:
    return len(re.findall(r"[^.!?]*\w[^.!?]*(?:[.!?]+|$)", text.strip()))


def _listed(text: str) -> int:
    """Items of a list: lines that begin with a mark or a number."""
    return len(re.findall(r"(?m)^\s*(?:[-*•]|\d+[.)])\s+\S", text))


def _mentions(text: str, word: str) -> bool:
    return word in map(str.lower, _words(text))


def _lacks(mark: str, text: str) -> bool:
    """Whether a text, which must have words, is without this."""
    return _words(text) != [] and mark not in text.lower()


def _is_json(text: str) -> bool:
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


Check = Callable[[str, str], bool]  # (text, what the item names) -> whether it is followed
# By kind: what is asked of {} (a topic) and {word}, and the check.
KINDS: dict[str, tuple[str, Check]] = {
    "one-word": ("What do you think of when you hear of {}? Answer with one word.", lambda t, _: len(_words(t)) == 1),
    "capitals": ("Write a sentence about {} in capital letters.", lambda t, _: t.isupper()),
    "small-letters": ("Write a sentence about {} in lowercase letters only.", lambda t, _: t.islower()),
    "list": ("Give a list of exactly three facts about {}.", lambda t, _: _listed(t) == 3),
    "mention": ('Write a sentence about {} with the word "{word}" in it.', _mentions),
    "no-e": ("Write a short sentence about {} without the letter e.", lambda t, _: _lacks("e", t)),
    "one-sentence": ("Describe {} in exactly one sentence.", lambda t, _: _sentences(t) == 1),
    "two-sentences": ("Describe {} in exactly two sentences.", lambda t, _: _sentences(t) == 2),
    "few-words": ("Describe {} in at most ten words.", lambda t, _: 1 <= len(_words(t)) <= 10),
    "begin": (
        'Write a sentence about {} that begins with the word "{word}".',
        lambda t, w: [first.lower() for first in _words(t)[:1]] == [w],
    ),
    "question": ("Ask me a question about {}.", lambda t, _: t.strip().endswith("?")),
    "no-comma": ("Write two sentences about {} without any comma.", lambda t, _: _lacks(",", t)),
    "quoted": (
        "Write a sentence about {} and put your whole answer in double quotation marks.",
        lambda t, _: len(t.strip()) > 2 and t.strip()[0] in '"“' and t.strip()[-1] in '"”',
    ),
    "json": ('Tell me about {} as a JSON object with the key "answer".', lambda t, _: _is_json(t)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instructions:
    """Instructions of all kinds, or of some, each about every topic of a split."""

    name: str = "instructions"
    kinds: tuple[str, ...] = tuple(KINDS)
    max_new_tokens: int = 64
    is_closed: bool = True

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"task {self.name}: no instruction {unknown[0]!r}; there are {', '.join(KINDS)}")

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """See `base.Task`. Splits have topics of their own."""
        check_split(split)
        made = []
        for kind in self.kinds:
            for i, topic in enumerate(_TOPICS):
                if split_of(topic) == split:
                    word = _WORDS[(i + len(kind)) % len(_WORDS)]
                    prompt = KINDS[kind][0].format(topic, word=word)
                    made.append(Item(f"{kind}-{topic.replace(' ', '-')}", prompt, kind, data={"word": word}))
        return chosen(made, seed, n)

    def extract(self, item: Item, text: str) -> str | None:
        """The first sentence."""
        return first_words(text)

    def score(self, item: Item, text: str) -> float:
        """1 if the instruction was followed."""
        return float(KINDS[item.kind][1](text, item.data["word"]))
