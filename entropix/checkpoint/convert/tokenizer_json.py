"""Writing the `tokenizer.json` of a vocabulary that a GGUF file holds, byte-level or SentencePiece."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entropix.checkpoint.convert.folder import WITH_FOLDER
from entropix.checkpoint.vocabulary.patterns import LLAMA3_PATTERN, QWEN2_PATTERN


class _Pre(NamedTuple):
    """What a `tokenizer.ggml.pre` stands for: the tokenizer that llama.cpp's converter knows by this name."""

    before: Sequence[Mapping[str, Any]] = ()  # steps before the ByteLevel one
    ignores_merges: bool = False  # a piece that is a token becomes it, whatever the merges say
    normalizer: Mapping[str, Any] | None = None


def _split(regex: str) -> list[Mapping[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}]


_GPT2, _LLAMA3 = _Pre(), _Pre(_split(LLAMA3_PATTERN), ignores_merges=True)
_STARCODER = _Pre([{"type": "Digits", "individual_digits": True}])
_PRE = {
    **dict.fromkeys(("gpt-2", "gpt2"), _GPT2),
    **dict.fromkeys(("smollm", "refact"), _STARCODER),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    "dbrx": _Pre(_split(LLAMA3_PATTERN)),
    "qwen2": _Pre(_split(QWEN2_PATTERN), normalizer={"type": "NFC"}),
}
# What the file does not say of models with these names, where llama.cpp has one rule for all of them.
_UNSAID = {
    "smaug-bpe": "whether merges are ignored for a piece that is a token",
    "deepseek-r1-qwen": "whether texts are put into normal form C",
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # gguf.TokenType


_LONGEST, _MOST_MERGES = (
    256,
    4_000_000,
)  # characters of a token of SentencePiece, whose trainers stop at 16; merges


class TextEnds(NamedTuple):
    """Which tokens begin and end a text, if any; they are special whatever their type says."""

    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False  # a text begins with `bos_id` (`tokenizer.ggml.add_bos_token`)


def write_tokenizer_json(
    path: Path,
    tokens: Sequence[str],
    merges: Sequence[str],
    token_types: Sequence[int],
    pre: str,
    text_ends: TextEnds,
) -> None:
    """Writes the `tokenizer.json` that says what a GGUF file of tokenizer model `gpt2` says.

    The `tokenizers` library and `read_tokenizer_json` give the same ids from it.

    Args:
        path: destination; replaced only when the new file is complete.
        tokens: every token, in the byte alphabet, in the order of the ids (`tokenizer.ggml.tokens`).
        merges: pairs separated by a space, most urgent first (`tokenizer.ggml.merges`).
        token_types: what each token is, as a `gguf.TokenType` (`tokenizer.ggml.token_type`).
        pre: name of the pre-tokenizer (`tokenizer.ggml.pre`).
        text_ends: the tokens that begin and end a text.

    Raises:
        ValueError: an unknown pre-tokenizer or token type, a repeated token, or `add_bos` without a `bos_id`.
    """
    if pre not in _PRE:
        why = f" ({_UNSAID[pre]} is not in the file)" if pre in _UNSAID else ""
        raise ValueError(
            f"tokenizer.ggml.pre is {pre!r}; expected one of {', '.join(sorted(_PRE))}{why}; {WITH_FOLDER}"
        )
    if unknown := set(token_types) - {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE}:
        raise ValueError(f"token type {min(unknown)} has no meaning in a byte-level vocabulary")
    vocab, added = _tokens(tokens, token_types, text_ends)
    rules = _PRE[pre]
    splits = any(step["type"] == "Split" for step in rules.before)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": not splits,
    }
    _write(
        path,
        {
            "added_tokens": added,
            "normalizer": rules.normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*rules.before, byte_level]},
            "post_processor": _post_processor(tokens, text_ends),
            "decoder": byte_level,
        },
        {"ignore_merges": rules.ignores_merges, "vocab": vocab, "merges": list(merges)},
    )


def write_sentence_pieces_json(
    path: Path,
    tokens: Sequence[str],
    scores: Sequence[float],
    token_types: Sequence[int],
    begins_with_space: bool,
    text_ends: TextEnds,
) -> None:
    """Writes the `tokenizer.json` that says what a GGUF file of tokenizer model `llama`, SentencePiece's, says.

    Such a file has scores instead of merges: each way to halve a token is a merge, those of the highest score first, as
    transformers makes them of a SentencePiece model.

    Args:
        path, tokens, token_types, text_ends: as of `write_tokenizer_json`.
        scores: of each token, the higher the sooner it is merged (`tokenizer.ggml.scores`).
        begins_with_space: whether a space is put before a text (`tokenizer.ggml.add_space_prefix`).

    Raises:
        ValueError: an unknown token type, one that any text could write, a repeated token, no unknown token, or
            `add_bos` without a `bos_id`.
    """
    if _USER_DEFINED in token_types:
        raise ValueError(
            f"the token {tokens[list(token_types).index(_USER_DEFINED)]!r} is user-defined: where spaces are put "
            f"beside one of these is not in the file; {WITH_FOLDER}"
        )
    if unknown := set(token_types) - {_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE}:
        raise ValueError(f"token type {min(unknown)} has no meaning in a SentencePiece vocabulary")
    if token_types.count(_UNKNOWN) != 1:
        raise ValueError(f"{token_types.count(_UNKNOWN)} tokens are of the type unknown; expected one")
    vocab, added = _tokens(tokens, token_types, text_ends)
    plain = {token for token, i in vocab.items() if token_types[i] == _NORMAL}
    if (longest := max(map(len, plain), default=0)) > _LONGEST:
        raise ValueError(f"a token has {longest} characters; expected at most {_LONGEST}")
    halves: list[tuple[float, int, int]] = []
    made: dict[float, str] = {}  # a token of each score
    for token in sorted(plain):
        score = scores[vocab[token]]
        both = ((token[:i], token[i:]) for i in range(1, len(token)))
        ways = [(-score, vocab[left], vocab[right]) for left, right in both if {left, right} <= plain]
        halves += ways
        if ways and made.setdefault(score, token) != token:
            raise ValueError(
                f"{token!r} and {made[score]!r} have one score, {score:g}; which is merged first is not in the file; "
                f"{WITH_FOLDER}"
            )
        if len(halves) > _MOST_MERGES:
            raise ValueError(f"its tokens can be halved in more than {_MOST_MERGES} ways")
    spaces: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    before = [{"type": "Prepend", "prepend": "▁"}] if begins_with_space else []
    strips = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if begins_with_space else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    _write(
        path,
        {
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
            "pre_tokenizer": None,
            "post_processor": _post_processor(tokens, text_ends),
            "decoder": {
                "type": "Sequence",
                "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strips],
            },
        },
        {
            "unk_token": tokens[token_types.index(_UNKNOWN)],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [[tokens[left], tokens[right]] for _, left, right in sorted(halves)],
        },
    )


def _tokens(
    tokens: Sequence[str], token_types: Sequence[int], text_ends: TextEnds
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """(the ids of all tokens, the added ones as tokenizer.json lists them)."""
    if len(token_types) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, but {len(token_types)} token types")
    ends = {"bos": text_ends.bos_id, "eos": text_ends.eos_id}
    if text_ends.add_bos and text_ends.bos_id is None:
        raise ValueError("add_bos is set, but there is no bos_id to add")
    for name, i in ends.items():
        if i is not None and not 0 <= i < len(tokens):
            raise ValueError(f"{name}_id is {i}, but there are {len(tokens)} tokens")
    vocab: dict[str, int] = {}
    added = []
    for i, (token, kind) in enumerate(zip(tokens, token_types, strict=True)):
        if kind == _UNUSED:
            continue
        if vocab.setdefault(token, i) != i:
            raise ValueError(f"token {token!r} has two ids, {vocab[token]} and {i}")
        special = kind in (_UNKNOWN, _CONTROL) or i in ends.values()
        if special or kind == _USER_DEFINED:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": i, "content": token, **flags, "special": special})
    return vocab, added


def _write(path: Path, parts: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Writes a tokenizer.json of these parts; what they leave out is off."""
    off = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    off |= dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        **parts,
        "model": {"type": "BPE", **off, **model},
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(file, ensure_ascii=False, indent=1), encoding="utf-8")
    part.replace(path)


def _post_processor(tokens: Sequence[str], text_ends: TextEnds) -> dict[str, Any] | None:
    """What puts the token that begins a text before it, if any does."""
    if not text_ends.add_bos or text_ends.bos_id is None:
        return None
    return _bos_processor(tokens[text_ends.bos_id], text_ends.bos_id)


def _bos_processor(token: str, i: int) -> dict[str, Any]:
    bos = {"SpecialToken": {"id": token, "type_id": 0}}
    text_a, text_b = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, text_a],
        "pair": [bos, text_a, text_b],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }
