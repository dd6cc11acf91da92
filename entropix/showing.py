"""Values and texts as messages show them: short, and such that a terminal does nothing of what they may say."""

import math
import reprlib
import unicodedata
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
