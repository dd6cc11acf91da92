"""Values and texts as messages show them: short, and such that a terminal does nothing of what they may say; and which
known name an unknown one may stand for."""

import difflib
import math
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

_LONGEST = 120  # characters of a value in a message


class _Short(reprlib.Repr):
    """Of any value a text of bounded length, whatever its depth and the number of its digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, _LONGEST, _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**40:
            return str(x)
        return f"{'-' * (x < 0)}a number of some {int(x.bit_length() * math.log10(2)) + 1} digits"


def shown(value: Any) -> str:
    """The value as a message shows it: short, and on one line."""
    text = _Short().repr(value).replace("\n", " ")
    return text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}..."


def visible(text: str) -> str:
    """The text with control characters as people may see them, like \\x1b: a terminal would do what they say. Line ends
    and tabs stay."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known name that may be meant, if there is one: like the given one, or beginning like it."""

    def likeness(other: str) -> tuple[float, float]:
        alike = difflib.SequenceMatcher(None, name, other).ratio()
        return max(alike, difflib.SequenceMatcher(None, name, other[: len(name)]).ratio()), alike

    best = max(known, key=likeness, default=None)
    return [] if not name or best is None or likeness(best)[0] < 0.6 else [best]


def suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a sentence about an unknown name: the nearest known one, or else all of them, or what else to say."""
    names = list(known)
    near = nearest(name, names)
    return f"; did you mean {near[0]!r}?" if near else f"; {otherwise or f'there are {_joined(names)}'}"


def suggestions(name: str, known: Iterable[str]) -> str:
    """The same with all known names in any case."""
    names = list(known)
    near = nearest(name, names)
    return (
        f"; did you mean {near[0]!r}? There are {_joined(names)}" if near else f"; there are {_joined(names)}"
    )


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names)
