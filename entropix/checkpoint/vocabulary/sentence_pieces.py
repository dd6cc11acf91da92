"""SentencePiece vocabularies, of Llama 1 and 2, TinyLlama and Mistral: text whose spaces are written "▁" is merged as
one piece, and a character without a token is spelt by tokens of one byte each (Kudo & Richardson 2018,
arXiv:1808.06226).

Read are the `tokenizer.json` that transformers makes of one, encoded by the `tokenizers` library, and the
`tokenizer.model` itself, encoded by `sentencepiece`: each by the library that it was written by, so that ids are those
of the original. What these libraries are never given is a special token: those are cut out of a text before.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropix.checkpoint import values
from entropix.checkpoint.special_tokens import AddedToken, SpecialTokens, listed_tokens, swallowing, together
from entropix.checkpoint.values import refusal
from entropix.checkpoint.vocabulary.contents import Encoder, Vocabulary, check_ids, text_ends, vocab_of

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ALL_BYTES = frozenset(range(256))


def _token_text(token: str) -> bytes:
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
    _check_decoder(path, file.get("decoder"))
    later, begins_with_space = _later(path, file.get("normalizer"), file.get("pre_tokenizer"))
    vocab = vocab_of(path, file)
    _check_bytes(path, vocab)
    for entry in values.items(file, "added_tokens", path):
        if (
            isinstance(entry, dict)
            and entry.get("normalized")
            and entry.get("content") != model.get("unk_token")
        ):
            raise refusal(path, f"its added token {values.shown(entry.get('content'))} is marked normalized")
    tokens = [*listed_tokens(path, file), *small.added]
    special, added = together(tokens, small)
    for token in (*small.named.values(), *small.others, model.get("unk_token")):
        if isinstance(token, str) and token in vocab and token not in added:
            special.setdefault(token, vocab[token])
    check_ids(path, vocab, special | added, small)
    texts = {i: _token_text(token) for token, i in vocab.items()}
    texts |= {i: token.encode() for token, i in (special | added).items()}
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
        case ({"type": "Sequence", "normalizers": [step]}, None) | (step, None) if step == spaces:
            return None, False
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


def _check_decoder(path: Path, decoder: Any) -> None:
    """Raises unless "▁" means a space and bytes are bytes."""
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    first = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    match decoder:
        case {"type": "Sequence", "decoders": [step, {"type": "ByteFallback"}, {"type": "Fuse"}, *rest]} if (
            step == spaces and rest in ([], [first])
        ):
            return
    raise refusal(path, f"its decoder is {values.as_json(decoder)}, not like that of Llama 2")


# ----- tokenizer.model ----------------------------------------------------------------------------------------

# Kinds of pieces, as sentencepiece_model.proto numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE_PIECE = 1, 2, 3, 4, 6


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
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: not a SentencePiece model, or a damaged one ({error})") from None
    tokens = {text: i for i, (text, _) in enumerate(pieces)}
    if len(tokens) < len(pieces) or len(pieces) > values.MOST_TOKENS:
        raise ValueError(f"{path}: expected at most {values.MOST_TOKENS} pieces, each of them once")
    _check_bytes(path, {text: tokens[text] for text, kind in pieces if kind == _BYTE_PIECE})
    kinds = dict(pieces)
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
    # The library finds those of the kind "user defined" in any text, between whichever characters.
    if heard := [text for text in special if kinds.get(text) in (_NORMAL, _USER_DEFINED)]:
        raise refusal(path, f"any text may write {values.shown(heard[0])}, which is a special token")
    texts = {i: _token_text(token) for token, i in tokens.items()}
    texts |= {i: token.encode() for token, i in (special | added).items()}
    bos = trainer.get(46, b"<s>").decode()
    return Vocabulary(
        Model(content),
        texts,
        special,
        added,
        (special[bos],) if bos in special else (),
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
