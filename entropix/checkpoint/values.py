"""Values that files give: each is checked where it is read, by one of these.

Every reader takes the object that holds the value, its key, and `where`, which file (and place in it) that is. What
is not as expected raises a ValueError that says where, key, expectation and value, in one sentence. What is absent or
null is the `default`, where there is one.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropix.showing import shown as shown

# More tokens than any vocabulary has (the largest have some 300,000), and few enough that a list of them is small.
MOST_TOKENS = 1 << 21
_SMALLEST, _LARGEST = 1.1754944e-38, 3.4028234e38  # of float32, in which everything is computed


def named(value: Any) -> str:
    """A short text as it is, anything else as `shown`: for names of kinds."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,60}", value) else shown(value)


def as_json(value: Any) -> str:
    """The value as its file spells it, cut short."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return shown(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def refusal(path: Path, why: str) -> ValueError:
    """The error of a tokenizer whose ids would not be reproduced."""
    return ValueError(
        f"{path}: {why}. entropix would not give exactly the ids of this tokenizer, so this checkpoint is refused"
    )


def wrong(where: str | Path, key: str, expected: str, value: Any) -> ValueError:
    """The error of a value that is not as expected."""
    return ValueError(f"{where}: {key} must be {expected}, got {shown(value)}")


def whole(
    values: Mapping[str, Any],
    key: str,
    where: str | Path,
    most: int,
    default: int | None = None,
    low: int = 1,
) -> int:
    """A whole number from `low` to `most`."""
    value: Any = values.get(key)
    if value is None and default is not None:
        return default
    if not _is_whole(value) or value < low:
        raise wrong(where, key, f"a whole number of at least {low}", value)
    if value > most:
        raise wrong(where, key, f"at most {most}", value)
    return value


def positive(values: Mapping[str, Any], key: str, where: str | Path, default: float | None = None) -> float:
    """A number above 0 that float32 holds as one, also if written as a whole one."""
    value = values.get(key)
    if value is None and default is not None:
        return default
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else -1.0
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise wrong(where, key, "a number above 0", value)
    if not _SMALLEST <= number <= _LARGEST:
        raise wrong(where, key, f"between {_SMALLEST} and {_LARGEST}, as float32 has it", value)
    return number


def flag(values: Mapping[str, Any], key: str, where: str | Path, default: bool = False) -> bool:
    """True or false."""
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(where, key, "true or false", value)
    return value


def text(values: Mapping[str, Any], key: str, where: str | Path, default: str = "") -> str:
    """A text."""
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise wrong(where, key, "text", value)
    return value


def items(values: Mapping[str, Any], key: str, where: str | Path) -> Sequence[Any]:
    """A list; an empty one where there is none."""
    value = values.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong(where, key, "a list", value)
    return value


def table(values: Mapping[str, Any], key: str, where: str | Path) -> Mapping[str, Any]:
    """An object; an empty one where there is none."""
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(where, key, "an object", value)
    return value


def token_ids(values: Mapping[str, Any], key: str, where: str | Path) -> list[int]:
    """A token id or a list of them, as a list; an empty one where there is none."""
    value = values.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_token_id(item) for item in listed):
        raise wrong(where, key, f"a token id or a list of them, of 0 to {MOST_TOKENS - 1}", value)
    return listed


def is_token_id(value: Any) -> bool:
    """Whether this is a whole number that some vocabulary could have as an id."""
    return _is_whole(value) and 0 <= value < MOST_TOKENS


def is_text(value: Any) -> bool:
    """Whether this is text that has UTF-8; JSON can spell half a character."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
