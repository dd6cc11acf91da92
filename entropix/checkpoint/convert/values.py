"""Values from files of other formats, each read as what it must be, or refused with its file, key and value."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

REQUIRED: Any = object()  # in place of a default
_LARGEST_WHOLE = 2**31 - 1
_LARGEST = 3.4028234e38  # what float32 holds


class Values:
    """The values of one file by key. Every method raises a ValueError for a value of another kind.

    An absent key, or one without a value, has the default; `REQUIRED` refuses it.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.raw = values

    def refusal(self, key: str, expected: str) -> ValueError:
        """The error for a value that is not as expected."""
        value = self.raw.get(key)
        return ValueError(
            f"{self.path}: {key} must be {expected}, got {'none' if value is None else shown(value)}"
        )

    def whole(self, key: str, default: Any = REQUIRED, low: int = 1, high: int = _LARGEST_WHOLE) -> Any:
        """A whole number from `low` to `high`."""
        expected = f"one whole number of at least {low}"
        if high != _LARGEST_WHOLE:
            expected = f"one whole number from {low} to {high}"
        return self._get(
            key, default, expected, lambda value: isinstance(value, int) and low <= value <= high
        )

    def number(self, key: str, default: Any = REQUIRED) -> Any:
        """A number above 0 that float32 holds."""
        value = self._get(key, default, "one number above 0", _is_positive)
        return value if value is None else float(value)

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        """True or false."""
        return self._get(key, default, "true or false", lambda value: isinstance(value, bool), bool)

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """A text."""
        return self._get(key, default, "a text", lambda value: isinstance(value, str))

    def texts(self, key: str) -> list[str]:
        """A list of texts, at least one."""
        return self._get(
            key,
            REQUIRED,
            "a list of texts",
            lambda value: (
                isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
            ),
        )

    def wholes(self, key: str, length: int) -> list[int]:
        """A list of so many whole numbers."""
        value = self._get(
            key,
            REQUIRED,
            f"a list of {length} whole numbers",
            lambda value: isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value) == length,
        )
        return value.tolist()

    def _get(
        self, key: str, default: Any, expected: str, fits: Callable[[Any], bool], kind: type = object
    ) -> Any:
        value = self.raw.get(key)
        if value is None and default is not REQUIRED:
            return default
        if (isinstance(value, bool) and kind is not bool) or not fits(value):
            raise self.refusal(key, expected)
        return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= _LARGEST


def named(key: str) -> str:
    """A key as an error shows it: without quotes, but with nothing in it that would break the line."""
    return shown(key)[1:-1]


def shown(value: Any, longest: int = 100) -> str:
    """A value as an error shows it: in few words, however large it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        text = repr(value[: longest + 1])
    elif isinstance(value, list | np.ndarray):
        items = [shown(item, 20) for item in list(value[:6])]
        text = "[" + ", ".join([*items, *([f"{len(value) - 6} more"] if len(value) > 6 else [])]) + "]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(
            f"{shown(key, 20)}: {shown(item, 20)}" for key, item in list(value.items())[:4]
        )
        text += ", ...}" if len(value) > 4 else "}"
    elif isinstance(value, np.generic):
        text = repr(value.item())
    else:
        text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
