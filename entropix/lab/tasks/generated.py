"""Questions that need no table of facts: small sums, sequences, letters, days. All that there are, each once.

What is right does not stand in the question, since an answer that only repeats it would be right, and is no word that
English has anyway, such as "a" and "I".
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

from entropix.lab.questions import Question
from entropix.lab.tasks.base import listed

_ONES = listed(
    """zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen,
    fifteen, sixteen, seventeen, eighteen, nineteen"""
)
_TENS = listed("twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety")
_DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
_MONTHS = listed(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORDS = listed(
    """cat, dog, sun, tree, house, water, apple, bread, chair, table, river, stone, cloud, horse, mouse,
    tiger, banana, garden, window, summer, winter, pencil, school, friend, mother, orange, bottle,
    carpet, engine, flower, guitar, island, jacket, kitchen, ladder, monkey, needle, ocean, pepper,
    rabbit, silver, turtle, valley, whistle, yellow, zebra"""
)


def questions(kinds: Iterable[str] | None = None) -> Iterator[Question]:
    """All of some kinds, or of all, no prompt twice."""
    for kind in KINDS if kinds is None else kinds:
        for prompt, *answers in KINDS[kind]():
            yield Question(prompt, tuple(answers), kind)


def in_words(number: int) -> str:
    """0 to 99 as English writes them."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def _number(value: int) -> tuple[str, ...]:
    words = in_words(value)
    return (str(value), words, words.replace("-", " ")) if "-" in words else (str(value), words)


Rows = Iterator[tuple[str, ...]]


def _sums() -> Rows:
    yield from ((f"What is {a} + {b}?", *_number(a + b)) for a in range(6, 16) for b in range(3, 10, 2))


def _differences() -> Rows:
    yield from (
        (f"What is {a} - {b}?", *_number(a - b)) for a in range(10, 20) for b in range(2, 9, 2) if a != 2 * b
    )


def _products() -> Rows:
    yield from ((f"What is {a} times {b}?", *_number(a * b)) for a in range(2, 10) for b in range(a, 10))


def _halves() -> Rows:
    yield from ((f"What is half of {2 * a}?", *_number(a)) for a in range(2, 42))


def _next_numbers() -> Rows:
    yield from (
        (f"What number comes next: {', '.join(str(a + i * d) for i in range(4))}?", *_number(a + 4 * d))
        for a in range(1, 9)
        for d in (2, 3, 4, 5, 10)
    )


def _numbers_after() -> Rows:
    yield from ((f"Which number comes right after {a}?", *_number(a + 1)) for a in range(10, 98, 2))


def _numbers_in_digits() -> Rows:
    yield from ((f"Write the number {in_words(a)} in digits.", str(a)) for a in range(11, 100, 2))


def _numbers_in_words() -> Rows:
    yield from (
        (f"Write the number {a} in words.", in_words(a), in_words(a).replace("-", " "))
        for a in range(12, 100, 2)
    )


def _next_letters() -> Rows:
    yield from (
        (f"Which letter comes right after {a} in the alphabet?", b)
        for a, b in itertools.pairwise(_LETTERS)
        if b != "I"
    )


def _days() -> Rows:
    for names in (_DAYS, _MONTHS):
        what = "day" if names is _DAYS else "month"
        for i, name in enumerate(names):
            yield f"Which {what} comes right after {name}?", names[(i + 1) % len(names)]
            yield f"Which {what} comes right before {name}?", names[i - 1]


def _first_letters() -> Rows:
    yield from (
        (f'What is the first letter of the word "{word}"?', word[0], word[0].upper())
        for word in _WORDS
        if word[0] not in "ai"
    )


def _last_letters() -> Rows:
    yield from (
        (f'What is the last letter of the word "{word}"?', word[-1], word[-1].upper())
        for word in _WORDS
        if word[-1] != "a"
    )


def _word_lengths() -> Rows:
    yield from ((f'How many letters are in the word "{word}"?', *_number(len(word))) for word in _WORDS)


KINDS: dict[str, Callable[[], Rows]] = {
    "sums": _sums,
    "differences": _differences,
    "products": _products,
    "halves": _halves,
    "next-numbers": _next_numbers,
    "numbers-after": _numbers_after,
    "numbers-in-digits": _numbers_in_digits,
    "numbers-in-words": _numbers_in_words,
    "next-letters": _next_letters,
    "days-and-months": _days,
    "first-letters": _first_letters,
    "last-letters": _last_letters,
    "word-lengths": _word_lengths,
}

# Those that the default model has right now and then, and the others.
IN_REACH = ("halves", "numbers-after", "numbers-in-digits")
TABLES = {"generated": IN_REACH, "other-generated": tuple(kind for kind in KINDS if kind not in IN_REACH)}
