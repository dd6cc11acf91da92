"""Other values for a place in a file, of kinds that nobody expects there."""

import copy
import json
from collections.abc import Iterator
from typing import Any

# fmt: off
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 5, 2**31, 2**40, 2**63, 2**64, 2**70, 10**400, -(10**30), 1.5, 1e300, 1e-320, -0.0,
    float("nan"), float("inf"), "", "x", "\ud800", "\0", "\ue000", "<|im_end|>", "{{ 1 }}", "llama", "ab", "é" * 9999,
    "{{ 'a'.center(10**9) }}", "(?=a)", "a*", "(", "{% for", [], [[]], [None], [1, "a"], [2**70], [{"name": "default"}],
    {}, {"a": {}}, {"": 1}, {"content": None}, {"content": "a", "id": 2**70, "special": "no"},
]
# fmt: on
DEEP = json.loads("[" * 400 + "]" * 400)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON value; of a long object only some of them."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(parts)[-16:]:
        yield from places(part, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any, how: str) -> Any:
    """The value with something else at this place: instead of what is there, beside it, or nothing."""
    if not path:
        return new
    value = copy.copy(value)
    key, *rest = path
    if rest:
        value[key] = put(value[key], tuple(rest), new, how)
    elif how == "remove":
        del value[key]
    elif how == "rename" and isinstance(value, dict) and isinstance(new, str):
        value[new] = value.pop(key)
    else:
        value[key] = new
    return value
