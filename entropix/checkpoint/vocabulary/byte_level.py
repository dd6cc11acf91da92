"""Byte-level BPE: reading it, and refusing what tiktoken would not encode exactly.

Read are `tokenizer.json` (of the `tokenizers` library) and Meta's Llama 3 `tokenizer.model` (lines of a base64 token
and its rank). A vocabulary for which tiktoken would not give exactly the ids of the original is refused, with the
reason.
"""

import base64
import codecs
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken

from entropix.checkpoint import values
from entropix.checkpoint.special_tokens import (
    AddedToken,
    SpecialTokens,
    listed_tokens,
    normalised_tokens,
    swallowing,
    together,
)
from entropix.checkpoint.values import refusal
from entropix.checkpoint.vocabulary import patterns
from entropix.checkpoint.vocabulary.bpe import unreachable_tokens
from entropix.checkpoint.vocabulary.contents import Encoder, Vocabulary, check_ids, text_ends, vocab_of
from entropix.checkpoint.vocabulary.patterns import LLAMA3_PATTERN

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
class BytePairs:
    """Text cut into pieces, inside which bytes are merged, by tiktoken.

    Attributes:
        pattern: regular expression that cuts text into these pieces.
        ranks: id of every token that plain text can become; lower ids are merged first.
    """

    pattern: str
    ranks: dict[bytes, int]

    @property
    def missing_bytes(self) -> frozenset[int]:
        return frozenset(byte for byte in range(256) if bytes([byte]) not in self.ranks)

    def encoder(self, where: str) -> Encoder:
        try:
            encoding = tiktoken.Encoding(
                where, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={}
            )
        except ValueError as error:
            raise ValueError(
                f"{where}: tiktoken does not accept the pattern of its pre-tokenizer ({error})"
            ) from None
        return lambda text, _: _encoded(encoding, text)


def _encoded(encoding: tiktoken.Encoding, text: str) -> list[int]:
    try:
        return encoding.encode_ordinary(text)
    except BaseException as error:
        # What tiktoken's Rust gives up on is no Exception: an expression from a file may try too many ways.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"the regular expression that cuts this model's texts into pieces gave up on a piece of {len(text)} "
            f"characters ({str(error)[:100]})"
        ) from None


# ----- Meta's tokenizer.model -----------------------------------------------------------------------------


def of_ranks(path: Path, content: bytes, small: SpecialTokens = NOTHING) -> Vocabulary:
    """The vocabulary of Meta's Llama 3: ranked tokens, then 256 special ones. Texts begin with begin_of_text.

    content: of the file at `path`. small: what smaller files say of special tokens; the names of the 256 are not in the
    file, so theirs go first. Raises a ValueError for a damaged file.
    """
    ranks: dict[bytes, int] = {}
    lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise refusal(
                path,
                f"line {number} is not a base64 token and its rank, the format of Llama 3, nor is the file a "
                "SentencePiece model, which Llama 1, Llama 2 and Mistral have under this name",
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
    plain, swallows = BytePairs(LLAMA3_PATTERN, ranks), swallowing(small.added)
    return Vocabulary(plain, texts, special, added, (begin,), swallowing=swallows)


# ----- tokenizer.json -------------------------------------------------------------------------------------


def of_json(path: Path, file: Mapping[str, Any], small: SpecialTokens = NOTHING) -> Vocabulary:
    """The vocabulary of a byte-level BPE `tokenizer.json`; a ValueError says what any other one is.

    small: what smaller files say of special tokens; a token that they alone have is one of the vocabulary.
    """
    _refuse_other_kinds(path, file)
    nfc = patterns.normalises(path, file.get("normalizer"))
    pattern = patterns.pattern(path, file.get("pre_tokenizer"))
    vocab, merges = vocab_of(path, file), file["model"].get("merges")
    tokens = [*listed_tokens(path, file), *small.added]
    special, added = together(tokens, small)
    late = normalised_tokens(path, file) if nfc else frozenset()

    # A token spelt in other characters than the 256 is out of reach of any text.
    spelt = {token: raw for token in vocab if (raw := spelt_bytes(token))}
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
    check_ids(path, vocab, special | added, small)

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
    bos_ids, eos_ids = text_ends(path, file.get("post_processor"), texts)
    swallows = swallowing(tokens)
    return Vocabulary(BytePairs(pattern, ranks), texts, special, added, bos_ids, eos_ids, nfc, late, swallows)


def _refuse_other_kinds(path: Path, file: Mapping[str, Any]) -> None:
    """Raises unless the file is byte-level BPE, without anything that alters the merging."""
    model, decoder = file.get("model"), file.get("decoder")
    if not isinstance(model, dict):
        raise ValueError(f"{path}: expected an object `model`, as the tokenizers library writes it")
    if model.get("type", "BPE") != "BPE":
        raise refusal(path, f"its model is {values.named(model['type'])}, not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise refusal(path, f"its model has {option} {values.shown(model[option])}")
    match decoder:
        case {"type": "ByteLevel"}:
            pass
        case _:
            raise refusal(path, f"its decoder is {values.as_json(decoder)}, not ByteLevel")


def spelt_bytes(token: str) -> bytes:
    """The bytes that a token of `vocab` spells; none if it is not written in their 256 characters."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return b""
