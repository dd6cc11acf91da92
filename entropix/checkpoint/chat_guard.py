"""What is said in a conversation stays text, whatever a template does with it: none of it becomes a special token."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any


def guard(said: Any, names: Collection[str], taken: str) -> tuple[Any, dict[int, str]]:
    """(what is said, a JSON value, without any of the special tokens `names`, translation that puts them back).

    Templates trim and rearrange what they get, and put brackets around it, so where a message ends up is unknown.
    Instead a character of each special token in it, also of one that lacks but brackets and bars, or of one that what
    is said ends within, which the next thing said might complete, becomes a character of Braille (or of private use)
    that neither what is said nor `taken`, the template and the tokens, contain: the template carries that along like
    any other, in Python's spelling of a list too, and it is put back after the text has been cut at its special tokens.
    """
    in_use = set(taken).union(*texts(said))
    private = range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)
    unused = (
        char for char in map(chr, itertools.chain(range(0x2801, 0x2900), *private)) if char not in in_use
    )
    parts = [*itertools.chain(*map(_telling_parts, names))]
    words = {word for _, word, _ in map(_taken_apart, names) if word}
    beginnings = {name[:n].lower() for name in names if not name[0].isalnum() for n in range(1, len(name))}
    longest = max(map(len, beginnings), default=0)
    firsts = sorted(
        {char for char, _ in parts} | {word[0] for word in words} | {name[0] for name in beginnings}
    )
    stand_ins = dict(zip(firsts, unused, strict=False))
    if len(stand_ins) < len(firsts):
        raise ValueError(
            "the messages use every private-use character of Unicode, and Braille's; remove some"
        )
    token = re.compile("|".join(pattern for _, pattern in parts) or "(?!)")

    def guarded(value: Any) -> Any:
        if isinstance(value, str):
            if (word := value.strip()) in words:
                return value.replace(word[0], stand_ins[word[0]], 1)
            value = token.sub(lambda m: stand_ins[m[0]], value)
            end = len(value.rstrip())
            for start in range(max(0, end - longest), end):
                if value[start:end].lower() in beginnings:
                    return value[:start] + stand_ins[value[start]] + value[start + 1 :]
            return value
        if isinstance(value, dict):
            return {guarded(key): guarded(item) for key, item in value.items()}
        return [*map(guarded, value)] if isinstance(value, list | tuple) else value

    return guarded(said), {ord(stand_in): char for char, stand_in in stand_ins.items()}


def _telling_parts(name: str) -> list[tuple[str, str]]:
    """(a character, the pattern of where it stands) of the shortest parts of a special token, one of which is in all
    that marks complete to it: of `<|end|>` the bar in |end, and that in end|.

    The character is a mark, which filters like `upper` leave alone, but in a token without marks.
    """
    before, word, after = _taken_apart(name)
    if not word or not before + after:
        return [(name[0], f"{re.escape(name[0])}(?={re.escape(name[1:])})")]
    word = f"(?i:{re.escape(word)})"
    first, last = before[-1:], after[:1]
    parts = [(first, f"{re.escape(first)}(?={word})"), (last, f"(?<={word}){re.escape(last)}")]
    return [(mark, pattern) for mark, pattern in parts if mark]


def _taken_apart(name: str) -> tuple[str, str, str]:
    """(marks like brackets and bars, what they are around, marks)."""
    found = re.fullmatch(r"(\W*)(.*?)(\W*)", name, re.DOTALL)
    assert found is not None
    before, word, after = found.groups()
    return before, word, after


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from texts([*value.items()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)
