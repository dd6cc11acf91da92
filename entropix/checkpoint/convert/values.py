"""Values from files of other formats, each read as what it must be, or refused with its file, key and value."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entropix.checkpoint import values

REQUIRED: Any = object()  # in place of a default
_LARGEST_WHOLE = 2**31 - 1
_LARGEST = 3.4028234e38  # what float32 holds


class Values:
    """The values of one file by key. Every method raises a ValueError for a value of another kind.

    An absent key, or one without a value, has the default; `REQUIRED` refuses it.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path = path
        self.raw = raw

    def refusal(self, key: str, expected: str) -> ValueError:
        """The error for a value that is not as expected."""
        value = self.raw.get(key)
        return values.wrong(
            self.path, key, expected, value[:10].tolist() if isinstance(value, np.ndarray) else value
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

    def floats(self, key: str, length: int) -> list[float]:
        """A list of so many numbers, all of them finite."""
        value = self._get(
            key,
            REQUIRED,
            f"a list of {length} numbers",
            lambda value: (
                isinstance(value, np.ndarray)
                and value.dtype.kind == "f"
                and len(value) == length
                and bool(np.isfinite(value).all())
            ),
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


def shown(value: Any) -> str:
    """A value as an error shows it: in few words, however large it is."""
    return values.shown(value[:10].tolist() if isinstance(value, np.ndarray) else value)
