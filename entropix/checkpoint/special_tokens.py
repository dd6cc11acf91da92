"""What the small files of a checkpoint folder say of special tokens, as `transformers` reads them.

`tokenizer_config.json` names the tokens that begin, end and fill texts, and lists added tokens with their ids
(`added_tokens_decoder`). Older folders have `special_tokens_map.json` and `added_tokens.json` for this. They complete
the vocabulary file; where two files contradict each other, which one is right is not for us to say.
"""

import sys
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropix.checkpoint import values
from entropix.checkpoint.values import refusal
from entropix.files import is_there, read_json

# The tokens that templates may name.
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_SEVERAL, _EXTRA = "additional_special_tokens", "extra_special_tokens"
# Added tokens that end a turn or a document whatever else a checkpoint lists: Llama 3's and ChatML's.
END_TOKENS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>")
_MOST_ADDED = 1 << 18  # vocabularies of speech have some 70,000; looking for them in a text is one expression


@dataclass(frozen=True)
class AddedToken:
    """A token beside the merged ones, and which file says so."""

    text: str
    id: int
    special: bool | None  # None: not said
    where: str  # file and key, as errors name them
    rstrip: bool = False  # takes the white space behind it along
    normalized: bool = False  # is looked for when the text has been normalised


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens by what they are for, and added tokens by their ids.

    Attributes:
        named: text of each token that the folder names, by the names in `NAMED`.
        others: texts of further special tokens, and the file and key that list each.
        extra: texts of those that templates may name beyond `NAMED`, by their names.
        added: added tokens, with the ids that the folder gives them.
        add_bos, add_eos: whether texts begin with the `bos_token` and end with the `eos_token`; None where the
            folder does not say.
        where: file that names each token in `named`.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    where: Mapping[str, Path] = field(default_factory=dict)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` of a checkpoint folder; empty when it has none."""
    return _optional(folder / "tokenizer_config.json")


def read_special_tokens(folder: Path) -> SpecialTokens:
    """What the small files of this folder say together.

    Raises a ValueError that names file, key and value where one is malformed, and both files where two contradict.
    """
    named: dict[str, str] = {}
    where: dict[str, Path] = {}
    others: dict[str, str] = {}
    extra: dict[str, str] = {}
    paths = (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
    config, legacy = (_optional(path) for path in paths)
    for path, file in zip(paths, (config, legacy), strict=True):
        for name in NAMED:
            _name(named, where, name, _text(file.get(name), name, path), path)
        listed = file.get(_EXTRA)
        for name, value in listed.items() if isinstance(listed, dict) else ():
            text = _text(value, f"{_EXTRA}.{values.named(name)}", path)
            _name(named if name in NAMED else extra, where, name, text, path)
            others.setdefault(text, f"{path}: {_EXTRA}")
        for key in (_SEVERAL,) if isinstance(listed, dict) else (_SEVERAL, _EXTRA):
            for value in values.items(file, key, path):
                others.setdefault(_text(value, f"each of {key}", path), f"{path}: {key}")
    others.pop("", None)
    return SpecialTokens(
        named=named,
        others=others,
        extra=extra,
        added=tuple(_decoder_tokens(paths[0], config) or _legacy_tokens(folder)),
        add_bos=_optional_flag(config, "add_bos_token", paths[0]),
        add_eos=_optional_flag(config, "add_eos_token", paths[0]),
        where=where,
    )


def _name(named: dict[str, str], where: dict[str, Path], name: str, text: str, path: Path) -> None:
    """Adds a token's name, unless it has none. Raises where another file has given the name to another token."""
    if text and named.setdefault(name, text) != text:
        raise ValueError(
            f"{path}: {values.named(name)} is {values.shown(text)}, but {where[name]} says "
            f"{values.shown(named[name])}; make them agree"
        )
    if text:
        where.setdefault(name, path)


def added_token(text: Any, i: Any, entry: Mapping[str, Any], path: Path, key: str = "") -> AddedToken:
    """The added token of these parts of a file, below `key`. Raises a ValueError that names them."""
    where = f"{path}: {key}" if key else str(path)
    if not values.is_text(text) or not text or not values.is_token_id(i):
        raise ValueError(
            f"{path}: expected each of {key or 'its tokens'} to have a content and an id of 0 to "
            f"{values.MOST_TOKENS - 1}, got {values.shown(text)} and {values.shown(i)}"
        )
    for flag in ("lstrip", "single_word"):
        if entry.get(flag):
            raise refusal(path, f"its added token {values.shown(text)} is marked {flag}")
    special, *flags = (values.flag(entry, flag, where) for flag in ("special", "rstrip", "normalized"))
    return AddedToken(text, i, special, where, *flags)


def added_token_ids(folder: Path) -> dict[str, int]:
    """The added tokens of a folder, special or not, and their ids, from all of its files but `tokenizer.model`."""
    path, small = folder / "tokenizer.json", read_special_tokens(folder)
    listed = listed_tokens(path, read_json(path)) if is_there(path) else []
    special, added = together([*listed, *small.added], small)
    return special | added


def listed_tokens(path: Path, file: Mapping[str, Any]) -> list[AddedToken]:
    """The `added_tokens` of a tokenizer.json."""
    found = []
    for entry in values.items(file, "added_tokens", path):
        parts = entry if isinstance(entry, dict) else {}
        found.append(added_token(parts.get("content"), parts.get("id"), parts, path, "added_tokens"))
    return found


def normalised_tokens(path: Path, file: Mapping[str, Any]) -> frozenset[str]:
    """Of the `added_tokens` of a tokenizer.json those that are looked for in the normalised text, after all others.

    Raises a ValueError for one that normal form C makes of other text: whoever writes that would write the token, which
    no guard of special tokens would see.
    """
    entries = [entry for entry in values.items(file, "added_tokens", path) if entry.get("normalized")]
    if not entries:
        return frozenset()
    made = set[str]()
    for char in map(chr, range(sys.maxunicode + 1)):
        if (normal := unicodedata.normalize("NFC", char)) != char:
            made.update(normal)
    for entry in entries:
        text = entry["content"]
        stable = unicodedata.is_normalized("NFC", text) and unicodedata.is_normalized("NFD", text)
        if not stable or made.intersection(text) or any(map(unicodedata.combining, text)):
            raise refusal(
                path, f"its added token {values.shown(text)} is marked normalized and may come of other text"
            )
    return frozenset(entry["content"] for entry in entries)


def ends(added: Collection[str], small: SpecialTokens) -> list[str]:
    """Of added tokens that are not special those that end a turn or a text all the same."""
    return [token for token in (*END_TOKENS, *small.named.values()) if token in added]


def swallowing(tokens: Sequence[AddedToken]) -> frozenset[str]:
    """The texts of those that take white space along. Raises where two files say different things of one."""
    said: dict[str, AddedToken] = {}
    for token in tokens:
        first = said.setdefault(token.text, token)
        if first.rstrip != token.rstrip:
            raise ValueError(
                f"{token.where} and {first.where} disagree about rstrip of {values.shown(token.text)}; make them agree"
            )
    return frozenset(token.text for token in tokens if token.rstrip)


def together(tokens: Sequence[AddedToken], small: SpecialTokens) -> tuple[dict[str, int], dict[str, int]]:
    """(special, other) added tokens and their ids. Raises where two of them, or two files, contradict each other."""
    by_text: dict[str, AddedToken] = {}
    by_id: dict[int, AddedToken] = {}
    for token in tokens:
        for first in (by_text.setdefault(token.text, token), by_id.setdefault(token.id, token)):
            flags = {first.special, token.special} - {None}
            if (first.text, first.id) != (token.text, token.id) or len(flags) > 1:
                one, two = (
                    f"{values.shown(t.text)} with the id {t.id}, {'' if t.special else 'not '}special"
                    for t in (token, first)
                )
                raise ValueError(f"{token.where} has {one}, but {first.where} has {two}; make them agree")
    if len(by_text) > _MOST_ADDED:
        raise ValueError(
            f"{tokens[0].where}: expected at most {_MOST_ADDED} added tokens, got {len(by_text)}"
        )
    names = {*small.named.values(), *small.others}
    special = {
        token.text: token.id
        for token in by_text.values()
        if (token.text in names if token.special is None else token.special)
    }
    return special, {token.text: token.id for token in by_text.values() if token.text not in special}


def _decoder_tokens(path: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder`, whose keys are the ids."""
    key = "added_tokens_decoder"
    where = f"{path}: {key}"
    found = []
    for i, entry in values.table(config, key, path).items():
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected an object for each id, got {values.shown(entry)}")
        if not i.isascii() or not i.isdigit() or len(i) > 9:
            raise ValueError(f"{where}: expected token ids as keys, got {values.shown(i)}")
        found.append(added_token(entry.get("content"), int(i), entry, path, key))
    return found


def _legacy_tokens(folder: Path) -> Iterator[AddedToken]:
    """The tokens of `added_tokens.json`, an object of texts and ids."""
    path = folder / "added_tokens.json"
    for text, i in _optional(path).items():
        token = added_token(text, i, {}, path)
        yield AddedToken(token.text, token.id, None, token.where)


def _text(value: Any, key: str, path: Path) -> str:
    """The text of a token that is written as text or as an object with its content; "" for none."""
    text: Any = value.get("content") if isinstance(value, dict) else value
    if value is None:
        return ""
    if not values.is_text(text):
        raise values.wrong(path, key, "text, or an object with its content", value)
    return text


def _optional_flag(config: Mapping[str, Any], key: str, path: Path) -> bool | None:
    return None if config.get(key) is None else values.flag(config, key, path)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if is_there(path) else {}
