"""Writing the `tokenizer.json` of a byte-level vocabulary that a GGUF file holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # gguf.TokenType


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
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; expected one of {', '.join(sorted(_PRE))}")
    if len(token_types) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, but {len(token_types)} token types")
    if unknown := set(token_types) - {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE}:
        raise ValueError(f"token type {min(unknown)} has no meaning in a byte-level vocabulary")
    bos_id, eos_id, add_bos = text_ends
    ends = {"bos": bos_id, "eos": eos_id}
    if add_bos and bos_id is None:
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
        special = kind == _CONTROL or i in ends.values()
        if special or kind == _USER_DEFINED:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": i, "content": token, **flags, "special": special})

    rules = _PRE[pre]
    splits = any(step["type"] == "Split" for step in rules.before)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": not splits,
    }
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": rules.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*rules.before, byte_level]},
        "post_processor": _bos_processor(tokens[bos_id], bos_id) if add_bos and bos_id is not None else None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rules.ignores_merges,
            "vocab": vocab,
            "merges": list(merges),
        },
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(file, ensure_ascii=False, indent=1), encoding="utf-8")
    part.replace(path)


def _bos_processor(token: str, i: int) -> dict[str, Any]:
    bos = {"SpecialToken": {"id": token, "type_id": 0}}
    text_a, text_b = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, text_a],
        "pair": [bos, text_a, text_b],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }
