"""Headers of GGUF files: what a damaged one says is not believed, and what is of another kind is named."""

from pathlib import Path

import foreign
import numpy as np
import pytest

from entropix.checkpoint.convert import convert, gguf_header


def changed(path: Path, offset: int, data: bytes) -> Path:
    """A file with other bytes at a place."""
    old = path.read_bytes()
    path.write_bytes(old[:offset] + data + old[offset + len(data) :])
    return path


def place(path: Path, text: str, after: int = 0) -> int:
    """The byte after the first of a text, and so many more."""
    return path.read_bytes().index(text.encode()) + len(text) + after


HUGE = (10**12).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (8, "it promises 1000000000000 tensors in the"),
        (16, "it promises 1000000000000 entries of metadata in the"),
        (24, "a key would take 1000000000000 bytes from byte 32 on"),
    ],
    ids=["tensors", "entries", "key"],
)
def test_counts_beyond_the_end_of_a_gguf_file_are_refused(tmp_path: Path, at: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"empty, truncated or not a GGUF file .{message}"):
        gguf_header.read_gguf(changed(foreign.toy_gguf(tmp_path), at, HUGE))


@pytest.mark.parametrize(
    ("text", "after", "data", "message"),
    [
        ("general.architecture", 4, HUGE, "general.architecture would take 1000000000000 bytes"),
        ("tokenizer.ggml.tokens", 8, HUGE, "1000000000000 texts in tokenizer.ggml.tokens"),
        ("tokenizer.ggml.token_type", 8, HUGE, "1000000000000 items in tokenizer.ggml.token_type"),
        (
            "tokenizer.ggml.token_type",
            4,
            b"\x09\0\0\0",
            "token_type is an array of type 9, which is not supported",
        ),
        ("general.architecture", 0, b"\x63\0\0\0", "general.architecture is of the unknown type 99"),
        ("token_embd.weight", 0, b"\x05\0\0\0", "token_embd.weight must have 1 to 4 dimensions, got 5"),
        ("token_embd.weight", 4, HUGE, r"token_embd.weight would take \d{15,} bytes"),
        ("token_embd.weight", 4, bytes(8), r"token_embd.weight is empty, of shape \[259, 0\]"),
        (
            "token_embd.weight",
            20,
            b"\x04\0\0\0",
            "token_embd.weight is of the retired type Q4_2, which cannot be read",
        ),
        ("token_embd.weight", 20, b"\x1f\0\0\0", "token_embd.weight is of the retired type Q4_0_4_4,"),
        (
            "token_embd.weight",
            20,
            b"\xe7\3\0\0",
            "token_embd.weight is of the unknown type 999, which cannot",
        ),
        (
            "token_embd.weight",
            20,
            b"\x0c\0\0\0",
            "of type Q4_K, whose rows are multiples of 256 values; got rows of 32",
        ),
        ("token_embd.weight", 24, HUGE, "token_embd.weight would take 33152 bytes from byte 1000000"),
        ("blk.0.attn_norm.weight", 16, bytes(8), "blk.0.attn_norm.weight begins inside the tensor before it"),
    ],
)
def test_what_a_gguf_file_cannot_mean_is_refused_by_name(
    tmp_path: Path, text: str, after: int, data: bytes, message: str
) -> None:
    path = foreign.toy_gguf(tmp_path)
    with pytest.raises(ValueError, match=message):
        gguf_header.read_gguf(changed(path, place(path, text, after), data))


@pytest.mark.parametrize(
    ("version", "what"), [(1, "of version 1"), (4, "of version 4"), (3 << 24, "big-endian")]
)
def test_other_versions_of_gguf_are_named(tmp_path: Path, version: int, what: str) -> None:
    path = changed(foreign.toy_gguf(tmp_path), 4, version.to_bytes(4, "little"))
    with pytest.raises(
        ValueError, match=f"a GGUF file {what}; expected one of version 2 or 3, little endian"
    ):
        gguf_header.read_gguf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer__ggml__bos_token_id": "<s>"},
            r"bos_token_id must be one whole number from 0 to 258, got '<s>'",
        ),
        (
            {"tokenizer__ggml__eot_token_id": 259},
            r"eot_token_id must be one whole number from 0 to 258, got 259",
        ),
        (
            {"llama__block_count": "two"},
            "llama.block_count must be one whole number of at least 1, got 'two'",
        ),
        ({"llama__block_count": 10**9}, "llama.block_count is 1000000000, but there are only 20 tensors"),
        ({"llama__attention__layer_norm_rms_epsilon": "small"}, "must be one number above 0, got 'small'"),
        (
            {"llama__rope__freq_base": float("nan")},
            "llama.rope.freq_base must be one number above 0, got nan",
        ),
        ({"tokenizer__ggml__add_bos_token": 1}, "add_bos_token must be true or false, got 1"),
        ({"tokenizer__ggml__tokens": "all"}, "tokenizer.ggml.tokens must be a list of texts, got 'all'"),
        (
            {"tokenizer__ggml__tokens": [1, 2, 3]},
            r"tokenizer.ggml.tokens must be a list of texts, got \[1, 2, 3\]",
        ),
        ({"tokenizer__ggml__token_type": ["a"]}, r"must be a list of 259 whole numbers, got \['a'\]"),
        ({"tokenizer__chat_template": 5}, "tokenizer.chat_template must be a text, got 5"),
        ({"tokenizer__ggml__model": 5}, "tokenizer.ggml.model must be a text, got 5"),
        ({"llama__expert_count": "none"}, "llama.expert_count is 'none'; only 0 is supported"),
        ({"split__count": "all"}, "split.count must be one whole number of at least 0, got 'all'"),
        ({"general__alignment": 7}, "general.alignment must be a power of two, got 7"),
    ],
)
def test_values_of_another_kind_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/model\.gguf: .*{message}"):
        convert(foreign.toy_gguf(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_embedding_of_one_dimension_is_refused(tmp_path: Path) -> None:
    path = foreign.toy_gguf(tmp_path, {"token_embd.weight": np.zeros(259 * 32, np.float32)})
    with pytest.raises(
        ValueError, match=r"token_embd\.weight must have two dimensions, it is of shape \[8288\]"
    ):
        convert(path, tmp_path / "out")
