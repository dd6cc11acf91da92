"""SentencePiece vocabularies, of Llama 1 and 2, TinyLlama, Mistral and Gemma: text whose spaces are written "▁" is
merged as one piece, and a character without a token is spelt by tokens of one byte each (Kudo & Richardson 2018,
arXiv:1808.06226).

Read are the `tokenizer.json` that transformers makes of one, encoded by the `tokenizers` library, and the
`tokenizer.model` itself, encoded by `sentencepiece`: each by the library that it was written by, so that ids are those
of the original. What these libraries are never given is a special token: those are cut out of a text before.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropix.checkpoint import values
from entropix.checkpoint.special_tokens import (
    AddedToken,
    SpecialTokens,
    ends,
    listed_tokens,
    swallowing,
    together,
)
from entropix.checkpoint.values import refusal
from entropix.checkpoint.vocabulary.contents import Encoder, Vocabulary, check_ids, text_ends, vocab_of

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Gemma's pre-tokenizer, which cuts nothing: no space is left where each is a "▁" already.
_CUT_AT_SPACES = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_ALL_BYTES = frozenset(range(256))


def token_text(token: str) -> bytes:
    """The bytes that a token says: one of its own, or its text with spaces for "▁"."""
    if match := _BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode()


def _check_bytes(path: Path, tokens: Mapping[str, int]) -> None:
    """Raises unless every byte has a token: what has none would become the unknown token, and be lost."""
    found = {int(match[1], 16) for match in map(_BYTE.fullmatch, tokens) if match}
    if missing := _ALL_BYTES - found:
        raise refusal(
            path, f"it has no token <0x{min(missing):02X}> for a byte, whose characters would be lost"
        )


# ----- tokenizer.json -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pieces:
    """Text encoded by the `tokenizers` library.

    Attributes:
        first, later: the definition, as JSON, for text that begins a whole text, and for text behind a special token.
    """

    first: str = field(repr=False)
    later: str = field(repr=False)
    missing_bytes = frozenset[int]()

    def encoder(self, where: str) -> Encoder:
        import tokenizers

        try:
            first, later = (tokenizers.Tokenizer.from_str(text) for text in (self.first, self.later))
        except Exception as error:  # the library raises no other type for what it cannot read
            raise ValueError(f"{where}: the tokenizers library does not accept it ({error})") from None

        def encode(text: str, is_first: bool) -> list[int]:
            found: list[int] = (first if is_first else later).encode(text, add_special_tokens=False).ids
            return found

        return encode


def of_json(path: Path, file: Mapping[str, Any], small: SpecialTokens) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` with byte_fallback; a ValueError says what is unknown about another one.

    small: what smaller files say of special tokens; a token that they alone have is one of the vocabulary.
    """
    model = file["model"]
    if model.get("type", "BPE") != "BPE":
        raise refusal(path, f"its model is {values.named(model['type'])}, not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(option):
            raise refusal(path, f"its model has {option} {values.shown(model[option])}")
    later, begins_with_space = _later(path, file.get("normalizer"), file.get("pre_tokenizer"))
    _check_decoder(path, file.get("decoder"), begins_with_space)
    vocab = vocab_of(path, file)
    _check_bytes(path, vocab)
    listed = listed_tokens(path, file)
    tokens = [*listed, *small.added]
    _refuse_normalized([*small.added, *listed], model.get("unk_token"))
    special, added = together(tokens, small)
    for token in (*small.named.values(), *small.others, model.get("unk_token")):
        if isinstance(token, str) and token in vocab and token not in added:
            special.setdefault(token, vocab[token])
    check_ids(path, vocab, special | added, small)
    merged = _merged(model.get("merges"))
    for token in (*special, *ends(added, small)):
        if token in merged or len(token) == 1 or _BYTE.fullmatch(token):
            raise _written(path, token)
    texts = {i: token_text(token) for token, i in vocab.items()}
    # Of the vocabulary's own, Gemma lists those of line breaks and of spaces, "▁▁", among the added ones.
    own = {token for token, i in added.items() if vocab.get(token) == i}
    texts |= {i: token.encode() for token, i in (special | added).items() if token not in own}
    bos_ids, eos_ids = text_ends(path, file.get("post_processor"), texts)
    plain: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": file.get("normalizer"),
        "pre_tokenizer": file.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", **model},
    }
    return Vocabulary(
        Pieces(json.dumps(plain), json.dumps(plain | {"pre_tokenizer": later})),
        texts,
        special,
        added,
        bos_ids,
        eos_ids,
        swallowing=swallowing(tokens),
        begins_with_space=begins_with_space,
    )


def _later(path: Path, normalizer: Any, pre_tokenizer: Any) -> tuple[Any, bool]:
    """(the pre-tokenizer of text behind a special token, whether a whole text gets a space before it)."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    match normalizer, pre_tokenizer:
        case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, step]}, None if (
            step == spaces
        ):
            return None, True
        case ({"type": "Sequence", "normalizers": [step]}, cut) | (step, cut) if step == spaces and cut in (
            None,
            _CUT_AT_SPACES,
        ):
            return cut, False
        case None, {"type": "Metaspace", "replacement": "▁", **options} if not options.get("split", True):
            scheme = options.get(
                "prepend_scheme", "always" if options.get("add_prefix_space", True) else "never"
            )
            if scheme in ("first", "always", "never"):
                scheme_later = "never" if scheme == "first" else scheme
                return {**pre_tokenizer, "prepend_scheme": scheme_later}, scheme != "never"
    raise refusal(
        path,
        "its normalizer and pre-tokenizer are not like those of Llama 2 or Mistral, but "
        f"{values.as_json(normalizer)} and {values.as_json(pre_tokenizer)}",
    )


def _merged(merges: Any) -> frozenset[str]:
    """All tokens that a list of merges makes, or makes others of; what is no such list the library refuses."""
    listed = merges if isinstance(merges, list) else []
    pairs = [one.split(" ", 1) if isinstance(one, str) else one for one in listed]
    whole = [
        pair for pair in pairs if isinstance(pair, list) and len(pair) == 2 and all(map(values.is_text, pair))
    ]
    return frozenset(token for left, right in whole for token in (left, right, left + right))


def _written(path: Path, token: str) -> ValueError:
    """The error of a special token that a text can become without any being looked for."""
    return refusal(path, f"any text may write {values.shown(token)}, which is a special token")


def _refuse_normalized(tokens: Iterable[AddedToken], unknown: Any = None) -> None:
    """Raises for an added token that is looked for in text whose spaces are "▁" already. Of several that say so or not
    the last one counts; unknown: the token for what has none, which no text writes."""
    for token in {token.text: token for token in tokens}.values():
        if token.normalized and token.text != unknown:
            raise refusal(
                Path(token.where), f"its added token {values.shown(token.text)} is marked normalized"
            )


def _check_decoder(path: Path, decoder: Any, begins_with_space: bool) -> None:
    """Raises unless "▁" means a space, bytes are bytes, and no space is taken that none has put there."""
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    first = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    match decoder:
        case {"type": "Sequence", "decoders": [step, {"type": "ByteFallback"}, {"type": "Fuse"}, *rest]} if (
            step == spaces and rest in ([], [first] * begins_with_space)
        ):
            return
    raise refusal(path, f"its decoder is {values.as_json(decoder)}, not like that of Llama 2")


# ----- tokenizer.model ----------------------------------------------------------------------------------------

# Kinds of pieces, as sentencepiece_model.proto numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE_PIECE = range(1, 7)
_WORDS = 3  # of the kinds of models


@dataclass(frozen=True)
class Model:
    """Text encoded by the `sentencepiece` library.

    Attributes:
        content: of the file.
    """

    content: bytes = field(repr=False)
    missing_bytes = frozenset[int]()

    def encoder(self, where: str) -> Encoder:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self.content)
        except RuntimeError as error:
            raise ValueError(
                f"{where}: sentencepiece does not accept its tokenizer.model ({error})"
            ) from None

        def encode(text: str, _: bool) -> list[int]:
            found: list[int] = processor.encode(text)
            return found

        return encode


def is_model(content: bytes) -> bool:
    """Whether this is a SentencePiece file: its first field is a piece, where a list of ranks is text."""
    return content[:1] == b"\n"


def of_model(path: Path, content: bytes, small: SpecialTokens) -> Vocabulary:
    """The vocabulary of a SentencePiece model. Texts begin with its `<s>`, as those of Llama and Mistral do.

    content: of the file at `path`. small: what smaller files say of special tokens.
    """
    try:
        fields = [*_fields(content)]
        pieces = [(part[1].decode(), part.get(3, _NORMAL)) for part in _parts(fields, 1)]
        [normalizer] = _parts(fields, 3) or [{}]
        [trainer] = _parts(fields, 2) or [{}]
        bos = trainer.get(46, b"<s>").decode()
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a SentencePiece model, or a damaged one ({error})") from None
    tokens = {text: i for i, (text, _) in enumerate(pieces)}
    if len(tokens) < len(pieces) or len(pieces) > values.MOST_TOKENS:
        raise ValueError(f"{path}: expected at most {values.MOST_TOKENS} pieces, each of them once")
    _check_bytes(path, {text: tokens[text] for text, kind in pieces if kind == _BYTE_PIECE})
    kinds = dict(pieces)
    if unknown := {*kinds.values()} - {*range(_NORMAL, _BYTE_PIECE + 1)}:
        raise ValueError(f"{path}: expected pieces of the kinds 1 to 6, got {min(unknown)}")
    if trainer.get(24, 0) or trainer.get(3, 1) == _WORDS or not normalizer.get(5, 1):
        raise refusal(path, 'it does not write a "▁" for the space before a word')
    _refuse_normalized(small.added)
    unwritten = [
        AddedToken(text, tokens[text], True, str(path))
        for text in tokens
        if kinds[text] in (_UNKNOWN, _CONTROL)
    ]
    special, added = together([*unwritten, *small.added], small)
    for token in (*small.named.values(), *small.others):  # which no added token lists are special nonetheless
        if token in tokens and token not in added:
            special.setdefault(token, tokens[token])
    check_ids(path, tokens, special | added, small)
    # Any text may become a normal piece or one for a byte, and "user defined" ones are found in it wherever they are.
    for token in (*special, *ends(added, small)):
        if kinds.get(token, _CONTROL) not in (_UNKNOWN, _CONTROL, _UNUSED):
            raise _written(path, token)
    texts = {i: token_text(token) for token, i in tokens.items()}
    texts |= {i: token.encode() for token, i in (special | added).items()}
    return Vocabulary(
        Model(content),
        texts,
        special,
        added,
        (special[bos],) if bos in special else (),
        swallowing=swallowing(small.added),
        begins_with_space=bool(normalizer.get(3, 1)),
    )


def _parts(fields: list[tuple[int, Any]], number: int) -> list[dict[int, Any]]:
    """The messages of this number, each by the numbers of its own fields."""
    return [dict(_fields(value)) for found, value in fields if found == number]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in protobuf's wire format: (number, whole number or bytes)."""
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(message):
        tag = varint()
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire, -1)
        if wire == 2:
            size = varint()
        if size < 0 or at + size > len(message):
            raise ValueError(f"no field at byte {at}")
        yield number, message[at : at + size]
        at += size
