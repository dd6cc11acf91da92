"""Vocabulary files of byte-level BPE tokenizers: reading and refusing them.

Read are `tokenizer.json` (of the `tokenizers` library) and Meta's Llama 3 `tokenizer.model` (lines of a
base64 token and its rank). Both become a `Vocabulary`, from which tokenizer.py makes a tiktoken encoding. A
vocabulary for which tiktoken would not give exactly the ids of the original is refused, with the reason.
"""

import base64
import codecs
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropix.checkpoint import patterns, values
from entropix.checkpoint.bpe import unreachable_tokens
from entropix.checkpoint.patterns import LLAMA3_PATTERN, refusal
from entropix.checkpoint.special_tokens import (
    AddedToken,
    SpecialTokens,
    listed_tokens,
    normalised_tokens,
    read_special_tokens,
    together,
)
from entropix.files import MOST_JSON, is_there, read_bytes, read_json

# Special tokens that follow the ranks of `tokenizer.model`, in order, as published with Llama 3.1 and later.
_LLAMA3_NAMES = [
    *("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"),
    *("finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id"),
    *("eom_id", "eot_id", "python_tag"),
    *(f"reserved_special_token_{i}" for i in range(3, 248)),
]
_LLAMA3_SPECIAL = [f"<|{name}|>" for name in _LLAMA3_NAMES]

# Byte-level vocabularies are spelt in 256 printable characters, one a byte (GPT-2's published table): bytes
# that print in Latin-1 stand for themselves, the others count up from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
CHAR_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + i) for i, byte in enumerate(_OTHERS)
}
_BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}

NOTHING = SpecialTokens()


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer file says.

    Attributes:
        pattern: regular expression that cuts text into the pieces inside which bytes are merged.
        ranks: id of every token that plain text can become; lower ids are merged first.
        texts: the bytes of every id.
        special: id of each control token, by its name. Plain text never becomes one.
        added: id of each further token that is cut out of any text first, wherever it occurs.
        bos_ids, eos_ids: tokens that the file puts in front of a text, and at its end.
        nfc: whether text between special and added tokens is put into normal form C before it is cut.
        late: names of those special and added tokens that are looked for only then.
    """

    pattern: str
    ranks: dict[bytes, int]
    texts: dict[int, bytes]
    special: dict[str, int]
    added: dict[str, int]
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...] = ()
    nfc: bool = False
    late: frozenset[str] = frozenset()


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a checkpoint folder: its `tokenizer.json`, else its `tokenizer.model`, completed by the added
    and special tokens of its smaller files.

    Raises a ValueError that names the file and what about it is damaged or beyond tiktoken.
    """
    for name, read in (("tokenizer.json", read_tokenizer_json), ("tokenizer.model", read_tokenizer_model)):
        if is_there(folder / name):
            return read(folder / name, read_special_tokens(folder))
    raise ValueError(f"{folder}: no tokenizer; expected a tokenizer.json or a tokenizer.model")


# ----- Meta's tokenizer.model -----------------------------------------------------------------------------


def read_tokenizer_model(path: Path, small: SpecialTokens = NOTHING) -> Vocabulary:
    """The vocabulary of Meta's Llama 3: ranked tokens, then 256 special ones. Texts begin with begin_of_text.

    small: what smaller files say of special tokens. The names of the 256 are not in the file, so theirs go first.
    Raises a ValueError for a damaged file, and for the SentencePiece file of this name of Llama 1 and 2.
    """
    ranks: dict[bytes, int] = {}
    lines = read_bytes(path, MOST_JSON).removeprefix(codecs.BOM_UTF8).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise refusal(
                path,
                f"line {number} is not a base64 token and its rank, the format of Llama 3 (Llama 1, Llama 2 "
                "and TinyLlama have a SentencePiece file of this name)",
            ) from None
    if not lines or sorted(ranks.values()) != list(range(len(lines))):
        raise ValueError(
            f"{path}: expected the ranks 0, 1, 2, ... once each; the file is damaged or incomplete"
        )
    begin = len(ranks)
    given = {token.id: token for token in small.added}
    names = {begin + i: name for i, name in enumerate(_LLAMA3_SPECIAL) if begin + i not in given}
    published = [AddedToken(name, i, True, str(path)) for i, name in names.items()]
    special, added = together([*published, *small.added], small)
    texts = {i: token for token, i in ranks.items()}
    if clash := texts.keys() & given.keys():
        wrong = given[min(clash)]
        raise ValueError(
            f"{wrong.where}: the token {values.shown(wrong.text)} has the id {wrong.id}, but {path} has another "
            "token of that id; make them agree"
        )
    texts |= {i: name.encode() for name, i in (special | added).items()}
    return Vocabulary(LLAMA3_PATTERN, ranks, texts, special, added, (begin,))


# ----- tokenizer.json -------------------------------------------------------------------------------------


def read_tokenizer_json(path: Path, small: SpecialTokens = NOTHING) -> Vocabulary:
    """The vocabulary of a byte-level BPE `tokenizer.json`; a ValueError says what any other one is.

    small: what smaller files say of special tokens; a token that they alone have is one of the vocabulary.
    """
    file = read_json(path)
    _refuse_other_kinds(path, file)
    nfc = patterns.normalises(path, file.get("normalizer"))
    pattern = patterns.pattern(path, file.get("pre_tokenizer"))
    vocab, merges = file["model"].get("vocab"), file["model"].get("merges")
    if not isinstance(vocab, dict) or not all(map(values.is_token_id, vocab.values())):
        raise ValueError(
            f"{path}: expected model.vocab to be an object of tokens and their ids, of 0 to {values.MOST_TOKENS - 1}"
        )
    if half := [token for token in vocab if not values.is_text(token)]:
        raise ValueError(f"{path}: the token {values.shown(half[0])} in model.vocab has half a character")
    special, added = together([*listed_tokens(path, file), *small.added], small)
    late = normalised_tokens(path, file) if nfc else frozenset()

    # A token spelt in other characters than the 256 is out of reach of any text.
    spelt = {token: raw for token in vocab if (raw := _spelt_bytes(token))}
    try:
        pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges]
        pairs_in_bytes = [(spelt[left], spelt[right]) for left, right in pairs]
        made = {left + right for left, right in pairs}
        ranks = {spelt[token]: vocab[token] for token in made}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected model.merges to be pairs of tokens of model.vocab ({values.shown(error.args[0])})"
        ) from None
    for token in (*small.named.values(), *small.others):  # which no added token lists are special nonetheless
        if token in vocab and token not in added and len(spelt.get(token, "..")) > 1 and token not in made:
            special.setdefault(token, vocab[token])
    if clash := special.keys() & made.union(itertools.chain.from_iterable(pairs)):
        raise refusal(path, f"its special token {values.shown(min(clash))} takes part in merging plain text")
    _check_ids(path, vocab, special | added, small)

    whole = values.flag(file["model"], "ignore_merges", f"{path}: model")
    for token, raw in spelt.items():
        if token not in special and (len(raw) == 1 or (whole and token not in added)):
            ranks[raw] = vocab[token]
    try:
        unreachable = unreachable_tokens(ranks, pairs_in_bytes)
    except ValueError as error:
        raise refusal(path, str(error)) from None
    if not whole:
        # tiktoken would return these for a piece that is one of them. Merging never makes them, so that
        # nothing else changes without them.
        ranks = {raw: i for raw, i in ranks.items() if raw not in unreachable}

    texts = {i: spelt.get(token) or token.encode() for token, i in vocab.items()}
    texts |= {i: token.encode() for token, i in (special | added).items()}
    if not texts:
        raise ValueError(f"{path}: expected tokens in model.vocab, which is empty")
    bos_ids, eos_ids = _text_ends(path, file.get("post_processor"), texts)
    return Vocabulary(pattern, ranks, texts, special, added, bos_ids, eos_ids, nfc, late)


def _check_ids(path: Path, vocab: Mapping[str, int], more: Mapping[str, int], small: SpecialTokens) -> None:
    """Raises where a token has two ids, or an id two tokens."""
    where = {token.text: token.where for token in small.added}
    token_of = {i: token for token, i in vocab.items()}
    if len(token_of) < len(vocab):
        raise ValueError(f"{path}: expected every token of model.vocab to have one id of its own")
    for token, i in more.items():
        other = vocab.get(token, i), token_of.setdefault(i, token)
        if other != (i, token):
            raise ValueError(
                f"{where.get(token, path)}: {values.shown(token)} has the id {i}, but in {path} "
                f"{values.shown(other[1])} has {other[0]}; expected every token of model.vocab and added_tokens to "
                "have one id of its own"
            )


def _refuse_other_kinds(path: Path, file: Mapping[str, Any]) -> None:
    """Raises unless the file is byte-level BPE, without anything that alters the merging."""
    model, decoder = file.get("model"), file.get("decoder")
    if not isinstance(model, dict):
        raise ValueError(f"{path}: expected an object `model`, as the tokenizers library writes it")
    if model.get("type", "BPE") != "BPE":
        raise refusal(path, f"its model is {values.named(model['type'])}, not BPE")
    if model.get("byte_fallback"):
        raise refusal(path, "it is a SentencePiece vocabulary (byte_fallback), not a byte-level one")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise refusal(path, f"its model has {option} {values.shown(model[option])}")
    match decoder:
        case {"type": "ByteLevel"}:
            pass
        case _:
            raise refusal(path, f"its decoder is {values.as_json(decoder)}, not ByteLevel")


def _spelt_bytes(token: str) -> bytes:
    """The bytes that a token of `vocab` spells; none if it is not written in their 256 characters."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return b""


def _text_ends(
    path: Path, post_processor: Any, texts: Mapping[int, bytes], depth: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the file's post-processor puts in front of a text on its own, and at its end."""
    match post_processor:
        case None | {"type": "ByteLevel"}:
            return (), ()
        case {"type": "Sequence", "processors": [*steps]} if depth < 10:
            ends = [_text_ends(path, step, texts, depth + 1) for step in steps]
            return tuple(i for front, _ in ends for i in front), tuple(i for _, back in ends for i in back)
        case {"type": "TemplateProcessing", "single": [*items], "special_tokens": dict(tokens)}:
            front = [*itertools.takewhile(_is_special, items)]
            back = [*filter(_is_special, items[len(front) :])]
            front, back = (
                [i for item in part for i in _processor_ids(path, tokens, item["SpecialToken"], texts)]
                for part in (front, back)
            )
            return tuple(front), tuple(back)
    raise refusal(path, f"its post-processor is {values.as_json(post_processor)}")


def _is_special(item: Any) -> bool:
    return isinstance(item, dict) and "SpecialToken" in item


def _processor_ids(
    path: Path, tokens: Mapping[str, Any], item: Any, texts: Mapping[int, bytes]
) -> Sequence[int]:
    """The ids that a post-processor has for one of its special tokens. Raises where the vocabulary has others."""
    match item:
        case {"id": str(name)} if isinstance(entry := tokens.get(name), dict):
            ids, names = entry.get("ids"), entry.get("tokens", [name])
        case _:
            raise ValueError(f"{path}: the post_processor names a token that it does not define")
    if not isinstance(ids, list) or not all(map(values.is_token_id, ids)):
        raise ValueError(f"{path}: expected token ids in the post_processor, got {values.shown(ids)}")
    if unknown := {*ids} - texts.keys():
        raise ValueError(f"{path}: its post-processor adds the token {min(unknown)}, which it does not have")
    found = [texts[i].decode(errors="replace") for i in ids]
    if found != names:
        raise ValueError(
            f"{path}: the post_processor has {values.shown(names)} with the ids {ids}, but model.vocab and "
            f"added_tokens have {values.shown(found)} there; make them agree"
        )
    return ids
