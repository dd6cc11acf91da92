"""What a text answers: extractors find the answer in it and write equal answers alike.

An extractor is named, with its argument after a colon if it takes one: `number`, `phrase:the result is`,
`regex:\\((.)\\)`, `text`.
"""

import codecs
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from entropix.showing import suggestion


class Answer(NamedTuple):
    """An answer and where it stands."""

    value: str  # normalised: answers count as the same when these are equal
    start: int  # characters of the text, from here ...
    end: int  # ... to here, this one left out


Extract = Callable[[str], Answer | None]


class Extractor(NamedTuple):
    """A way to find an answer."""

    summary: str
    default: str | None  # argument; None where it takes none, "" where one must be given
    build: Callable[[str], Extract]


PHRASE, WHOLE = "the answer is", "text"

# A sign belongs to the number unless something stands before it that it may subtract from; thousands are set apart by
# commas in groups of three throughout, or not at all. Letters may follow (5km), but not go before (x2).
_NUMBER = re.compile(
    r"""(?: (?<![\w.)\]%]) [-+−] )?
        (?: (?<!\w) (?<![0-9]\.) (?: [0-9]{1,3} (?:,[0-9]{3})++ (?![0-9]) | [0-9]++ ) (?: \.[0-9]++ )?
          | (?<![\w.]) \.[0-9]++ )
        (?: [eE][-+]?[0-9]{1,2} (?!\w) )? (?! \.[0-9] | [eE][-+]?[0-9]{3} )""",
    re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|$")
_ORNAMENT = " \t\r\f\v*_`\"'“”‘’"  # around an answer, and no part of it


def last_number(text: str) -> Answer | None:
    """The last number in a text: 1,000 and 1000.0 and +1e3 are all "1000"; -0 is "0"; of 12% the number is 12.

    Fractions and ranges are two numbers, version numbers and 1.000.000 none; only the digits 0 to 9 count. In 5-3 the
    second is 3, in "x = -3" it is -3.
    """
    found = _last(_NUMBER.finditer(text))
    return None if found is None else Answer(_plain(found[0]), *found.span())


def after_phrase(text: str, phrase: str) -> Answer | None:
    """What follows the last occurrence of a phrase, up to the end of its sentence or line.

    The phrase may be in any case and with any white space between its words; a colon may follow it. What is a number,
    with a currency or percent sign or without, is normalised like `last_number`; anything else is put in lower case
    with single spaces. A full stop ends a sentence only before white space or the end of the text.
    """
    words = r"\s+".join(map(re.escape, phrase.split()))
    before, after = (r"\b" if edge.isalnum() else "" for edge in (phrase.strip()[0], phrase.strip()[-1]))
    found = _last(re.finditer(rf"{before}{words}{after}[\s:]*", text, re.IGNORECASE))
    if found is None:
        return None
    end = _SENTENCE_END.search(text, found.end())
    assert end is not None
    answer = _trimmed(text, found.end(), end.start(), _ORNAMENT)
    if answer is None:
        return None
    whole = re.fullmatch(rf"[$€£]?\s*({_NUMBER.pattern})\s*%?", answer.value, re.VERBOSE)
    value = _plain(whole[1]) if whole else _collapsed(answer.value).lower()
    return answer._replace(value=value)


def last_match(text: str, pattern: re.Pattern[str]) -> Answer | None:
    """Group 1 of the last match of a regular expression, or all of it where there is no group, in single spaces."""
    found = _last(pattern.finditer(text))
    if found is None:
        return None
    start, end = found.span(1 if pattern.groups else 0)
    answer = None if start < 0 else _trimmed(text, start, end)
    return None if answer is None else answer._replace(value=_collapsed(answer.value))


def whole_text(text: str) -> Answer | None:
    """All of it, in single spaces; None for a text of white space."""
    answer = _trimmed(text, 0, len(text))
    return None if answer is None else answer._replace(value=_collapsed(answer.value))


def _build_phrase(phrase: str) -> Extract:
    if not phrase.split():
        raise ValueError("extractor 'phrase' needs words, as in phrase:the answer is")
    return lambda text: after_phrase(text, phrase)


def _build_regex(source: str) -> Extract:
    try:
        pattern = re.compile(source)
    except re.error as error:
        raise ValueError(f"extractor 'regex': {source!r} is no regular expression ({error})") from None
    return lambda text: last_match(text, pattern)


EXTRACTORS = {
    "number": Extractor("the last number", None, lambda _: last_number),
    "phrase": Extractor(
        f"what follows a phrase ({PHRASE!r} by default), to the end of the sentence or line",
        PHRASE,
        _build_phrase,
    ),
    "regex": Extractor("the last match of a regular expression, or its group 1", "", _build_regex),
    WHOLE: Extractor("the whole text", None, lambda _: whole_text),
}


def extractor(spec: str) -> Extract:
    """The extractor that a text like `number` or `regex:\\((.)\\)` names; a ValueError if it names none."""
    name, colon, argument = spec.partition(":")
    if name not in EXTRACTORS:
        raise ValueError(f"no extractor {name!r}{suggestion(name, EXTRACTORS)}")
    kind = EXTRACTORS[name]
    if colon and kind.default is None:
        raise ValueError(f"extractor {name!r} takes no argument, got {argument!r}")
    if not colon and kind.default == "":
        raise ValueError(f"extractor {name!r} needs an argument: {name}:ARGUMENT")
    return kind.build(argument if colon else kind.default or "")


def is_cut(answer: Answer, text: str, spec: str) -> bool:
    """Whether an answer reaches the end of a text that was cut off, so that it may be the beginning of another one.

    spec: the extractor's. The whole text is what it is.
    """
    return spec != WHOLE and answer.end >= len(text.rstrip())


def token_span(token_bytes: Sequence[bytes], start: int, end: int) -> tuple[int, int]:
    """(first, stop) of the tokens that have a part in these characters of the text that they make together.

    A token may be a part of a character, and then has a part in it like those that complete it. What is not UTF-8 is
    U+FFFD in the text, as `StreamDecoder` shows it. Raises a ValueError if the tokens' text ends before.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    n_chars, first, stop = 0, None, 0
    for index, piece in enumerate(token_bytes):
        begin = n_chars
        n_chars += len(decoder.decode(piece))
        under_way = n_chars + bool(decoder.getstate()[0])
        if begin < end and under_way > max(start, begin):
            first = index if first is None else first
            stop = index + 1
    if start >= end or first is None or n_chars + len(decoder.decode(b"", final=True)) < end:
        raise ValueError(f"characters {start} to {end} are not all in a text of {n_chars}")
    return first, stop


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    return next(iter(deque(matches, maxlen=1)), None)


def _plain(number: str) -> str:
    """A number in digits, with as many of them as it needs."""
    text = format(Decimal(number.replace(",", "").replace("−", "-")), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "0", "") else text


def _trimmed(text: str, start: int, end: int, extra: str = "") -> Answer | None:
    """The text between, without white space and these characters at its ends; None if nothing is left."""
    while start < end and (text[start].isspace() or text[start] in extra):
        start += 1
    while start < end and (text[end - 1].isspace() or text[end - 1] in extra):
        end -= 1
    return Answer(text[start:end], start, end) if start < end else None


def _collapsed(text: str) -> str:
    return " ".join(text.split())
