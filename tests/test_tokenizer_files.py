"""What is read from and written to tokenizer files, and what is refused."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import vocabularies
from tokenizers import Tokenizer as Reference
from vocabularies import BYTES, edit, written

from entropix.checkpoint.convert.tokenizer_json import TextEnds, write_tokenizer_json
from entropix.checkpoint.vocabulary.files import read_tokenizer_json, read_tokenizer_model, read_vocabulary
from entropix.checkpoint.vocabulary.patterns import GPT2_PATTERN, LLAMA3_PATTERN, SMOLLM_PATTERN

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def split(regex: str, **changes: Any) -> dict[str, Any]:
    """A pre-tokenizer of Llama 3's kind with another pattern."""
    step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} | changes
    return {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL | {"use_regex": False}]}


def write_model(path: Path, tokens: list[bytes]) -> None:
    path.write_bytes(b"".join(base64.b64encode(t) + f" {i}\n".encode() for i, t in enumerate(tokens)))


# ----- tokenizer.model ------------------------------------------------------------------------------------


def test_llama3_special_tokens_follow_the_ranks_as_published(tmp_path: Path) -> None:
    # The ids of Llama 3.1 and later, less the 128,000 ranks that theirs begin after.
    published = {
        "<|begin_of_text|>": 0,
        "<|end_of_text|>": 1,
        "<|reserved_special_token_0|>": 2,
        "<|finetune_right_pad_id|>": 4,
        "<|reserved_special_token_2|>": 5,
        "<|start_header_id|>": 6,
        "<|end_header_id|>": 7,
        "<|eom_id|>": 8,
        "<|eot_id|>": 9,
        "<|python_tag|>": 10,
        "<|reserved_special_token_3|>": 11,
        "<|reserved_special_token_247|>": 255,
    }
    write_model(tmp_path / "tokenizer.model", [b"a", b"b", b"ab"])
    vocabulary = read_tokenizer_model(tmp_path / "tokenizer.model")
    assert len(vocabulary.special) == 256
    assert {name: i - 3 for name, i in vocabulary.special.items() if name in published} == published
    assert vocabulary.plain.ranks == {b"a": 0, b"b": 1, b"ab": 2}
    assert vocabulary.texts[2] == b"ab"
    assert vocabulary.texts[3 + 9] == b"<|eot_id|>"
    assert vocabulary.bos_ids == (3,)
    assert vocabulary.plain.pattern == LLAMA3_PATTERN


def test_a_model_of_neither_kind_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"PK\x03\x04 an archive\n")
    with pytest.raises(ValueError, match=r"tokenizer\.model: line 1 .* SentencePiece .* is refused"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("content", [b"", b"YQ== 0\nYg== 2\n", b"YQ== 0\nYg== 0\n", b"YQ== 0\nYQ== 1\n"])
def test_a_tokenizer_model_without_every_rank_once_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match="once each; the file is damaged or incomplete"):
        read_vocabulary(tmp_path)


def test_a_tokenizer_model_cut_inside_a_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\nYg==")
    with pytest.raises(ValueError, match="line 2 is not a base64 token and its rank"):
        read_vocabulary(tmp_path)


def test_tokenizer_json_goes_before_tokenizer_model(tmp_path: Path) -> None:
    write_model(tmp_path / "tokenizer.model", [b"a"])
    assert len(read_vocabulary(tmp_path).special) == 256
    written(tmp_path, special=["<|end|>"])
    assert read_vocabulary(tmp_path).special == {"<|end|>": 256}


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer; expected a tokenizer\.json or a tokenizer\.model"):
        read_vocabulary(tmp_path)


# ----- tokenizer.json: what is refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"type": "Unigram"}}, "its model is Unigram, not BPE"),
        ({"model": {"dropout": 0.1}}, r"its model has dropout 0\.1"),
        ({"model": {"continuing_subword_prefix": "##"}}, "its model has continuing_subword_prefix '##'"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "its model has end_of_word_suffix '</w>'"),
        ({"normalizer": {"type": "NFKC"}}, 'it alters the text first, by the normalizer {"type": "NFKC"}'),
        (
            {
                "normalizer": {"type": "NFC"},
                "added_tokens": [{"id": 257, "content": "<K>", "special": True, "normalized": True}],
            },
            "its added token '<K>' is marked normalized and may come of other text",
        ),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 9000}},
            r"AAA\.\.\.\. entropix",
        ),
        ({"decoder": None}, "its decoder is null, not ByteLevel"),
        ({"decoder": {"type": "Metaspace"}}, 'its decoder is {"type": "Metaspace"}, not ByteLevel'),
        ({"pre_tokenizer": None}, "its pre-tokenizer is not like .* but null"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "its pre-tokenizer is not like .*Metaspace"),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "its pre-tokenizer is not like"),
        ({"pre_tokenizer": BYTE_LEVEL | {"use_regex": False}}, "its pre-tokenizer is not like"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, BYTE_LEVEL]}},
            "its pre-tokenizer is not like",
        ),
        ({"pre_tokenizer": split(r"\w+", behavior="Removed")}, "its pre-tokenizer is not like"),
        ({"pre_tokenizer": split(r"\s+$|\S+")}, "its pattern .* may mean something else to tiktoken"),
        ({"pre_tokenizer": split(r"[[:alpha:]]+")}, "its pattern .* may mean something else to tiktoken"),
        ({"pre_tokenizer": split(r"\h+")}, "its pattern .* may mean something else to tiktoken"),
        ({"pre_tokenizer": split(r"\p{N}{1,3}+")}, "its pattern .* may mean something else to tiktoken"),
        ({"pre_tokenizer": split("x" * 10_001)}, "its pattern 'xxx.* may mean something else to tiktoken"),
        ({"pre_tokenizer": split(r"\p{L}*")}, "its pattern .* may match the empty text, or nothing at all"),
        ({"pre_tokenizer": split(r"(?=a)|b")}, "its pattern .* may match the empty text, or nothing at all"),
        (
            {"pre_tokenizer": split(r"a|(?:b?|c)")},
            "its pattern .* may match the empty text, or nothing at all",
        ),
        ({"pre_tokenizer": split("")}, "its pattern '' may match the empty text, or nothing at all"),
        (
            {"pre_tokenizer": split("(?:a")},
            "its pattern '\\(\\?:a' may match the empty text, or nothing at all",
        ),
        ({"post_processor": {"type": "RobertaProcessing"}}, "its post-processor is .*RobertaProcessing"),
        (
            {"added_tokens": [{"id": 257, "content": "<mask>", "lstrip": True, "special": True}]},
            "its added token '<mask>' is marked lstrip",
        ),
        (
            {"added_tokens": [{"id": 98, "content": "b", "special": True}]},
            "its special token 'b' takes part in",
        ),
    ],
)
def test_what_tiktoken_cannot_do_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    written(tmp_path, ["a b"], special=["<|end|>"])
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{reason}.*is refused"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": {"vocab": [["a", 0]]}}, "expected model.vocab to be an object of tokens and their ids"),
        ({"model": {"vocab": {"a": "0"}}}, "expected model.vocab to be an object of tokens and their ids"),
        ({"model": {"merges": ["a z z"]}}, "expected model.merges to be pairs of tokens of model.vocab"),
        ({"model": {"merges": None}}, "expected model.merges to be pairs of tokens of model.vocab"),
        ({"model": {"vocab": {"a": 0, "b": 0}, "merges": []}}, "to have one id of its own"),
        ({"added_tokens": [{"id": 3, "content": "new"}]}, "to have one id of its own"),
        ({"added_tokens": [{"content": "new"}]}, "expected each of added_tokens to have a content and an id"),
    ],
)
def test_a_damaged_tokenizer_json_says_where(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    written(tmp_path, ["a b"])
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{complaint}"):
        read_vocabulary(tmp_path)


def test_a_tokenizer_json_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a readable JSON file"):
        read_vocabulary(tmp_path)


def test_a_vocabulary_that_tiktoken_would_merge_otherwise_is_refused(tmp_path: Path) -> None:
    written(tmp_path, ["a b", "ab c"])
    edit(tmp_path, model={"ignore_merges": True, "merges": ["a b"]})
    with pytest.raises(
        ValueError, match=r"tiktoken would join b'ab' and b'c', which is no listed merge\. entropix"
    ):
        read_vocabulary(tmp_path)


def test_a_token_that_no_merge_makes_is_given_out_only_where_merges_are_ignored(tmp_path: Path) -> None:
    written(tmp_path, ["b c", "a b", "c d", "ab cd"])
    assert b"abcd" not in read_vocabulary(tmp_path).plain.ranks
    assert read_vocabulary(tmp_path).texts[259] == b"abcd"
    edit(tmp_path, model={"ignore_merges": True})
    assert read_vocabulary(tmp_path).plain.ranks[b"abcd"] == 259


# ----- tokenizer.json: what is read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pre", "pattern"), [("gpt-2", GPT2_PATTERN), ("smollm", SMOLLM_PATTERN), ("llama-bpe", LLAMA3_PATTERN)]
)
def test_each_pre_tokenizer_has_its_pattern(tmp_path: Path, pre: str, pattern: str) -> None:
    assert read_vocabulary(written(tmp_path, pre=pre)).plain.pattern.startswith(pattern)


def test_byte_level_without_use_regex_means_gpt2(tmp_path: Path) -> None:
    edit(
        written(tmp_path),
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    )
    assert read_vocabulary(tmp_path).plain.pattern == GPT2_PATTERN


def test_merges_may_be_written_as_pairs(tmp_path: Path) -> None:
    as_text = read_vocabulary(written(tmp_path, ["a b", "ab c"]))
    edit(tmp_path, model={"merges": [["a", "b"], ["ab", "c"]]})
    assert read_vocabulary(tmp_path) == as_text


def test_bos_is_what_the_template_puts_before_the_text(tmp_path: Path) -> None:
    written(tmp_path, special=["<|begin|>", "<|end|>"])
    assert read_vocabulary(tmp_path).bos_ids == ()
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {
            "<|begin|>": {"id": "<|begin|>", "ids": [256], "tokens": ["<|begin|>"]},
            "<|end|>": {"id": "<|end|>", "ids": [257], "tokens": ["<|end|>"]},
        },
    }
    for post_processor in (template, {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}):
        edit(tmp_path, post_processor=post_processor)
        assert read_vocabulary(tmp_path).bos_ids == (256,)


# ----- writing --------------------------------------------------------------------------------------------


def test_what_is_written_reads_the_same_here_and_in_the_tokenizers_library(tmp_path: Path) -> None:
    tokens = ["<|begin|>", *BYTES, "Ġa", "[PAD258]", "<|end|>", "[INST]", "Ġab"]
    types = [3, *[1] * 256, 1, 5, 3, 4, 1]
    path = tmp_path / "tokenizer.json"
    write_tokenizer_json(path, tokens, ["Ġ a", "Ġa b"], types, "llama-bpe", TextEnds(0, 259, True))
    vocabulary, reference = read_tokenizer_json(path), Reference.from_file(str(path))
    assert vocabulary.special == {"<|begin|>": 0, "<|end|>": 259}
    assert vocabulary.added == {"[INST]": 260}
    assert vocabulary.bos_ids == (0,)
    assert 258 not in vocabulary.texts
    assert vocabulary.plain.ranks[b" ab"] == 261
    assert reference.get_vocab() == {token: i for i, token in enumerate(tokens) if i != 258}
    ids = reference.encode("<|begin|>x ab[INST] a<|end|>").ids
    x, a_alone = tokens.index("x"), 257
    assert ids == [0, 0, x, 261, 260, a_alone, 259]
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_bos_and_eos_are_special_whatever_their_type(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    write_tokenizer_json(path, [*BYTES, "<|s|>", "<|e|>"], [], [1] * 258, "gpt-2", TextEnds(256, 257, False))
    vocabulary = read_tokenizer_json(path)
    assert vocabulary.special == {"<|s|>": 256, "<|e|>": 257}
    assert vocabulary.bos_ids == ()


@pytest.mark.parametrize(
    ("name", "same"),
    [
        *(
            ("gpt-2", "gpt-2"),
            ("gpt2", "gpt-2"),
            ("smollm", "smollm"),
            ("refact", "smollm"),
            ("qwen2", "qwen2"),
        ),
        *(
            ("llama-bpe", "llama-bpe"),
            ("llama3", "llama-bpe"),
            ("llama-v3", "llama-bpe"),
            ("dbrx", "llama-bpe"),
        ),
    ],
)
def test_every_gguf_name_of_a_pre_tokenizer_is_read_back(tmp_path: Path, name: str, same: str) -> None:
    written(tmp_path, pre=name)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    reference = Reference.from_file(str(tmp_path / "tokenizer.json"))
    text = "It's  7 12345  x\n\n  don'T"
    assert reference.pre_tokenizer.pre_tokenize_str(text) == vocabularies.PRE_TOKENIZERS[
        same
    ].pre_tokenize_str(text)
    assert file["model"]["ignore_merges"] is name.startswith("llama")
    assert file["normalizer"] == ({"type": "NFC"} if name == "qwen2" else None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            (["a"], [], [1], "smaug-bpe", TextEnds(None, None, False)),
            "tokenizer.ggml.pre is 'smaug-bpe'; expected one of dbrx, gpt-2, gpt2.* "
            r"\(whether merges are ignored for a piece that is a token is not in the file\); give the model's own",
        ),
        (
            (["a"], [], [1], "deepseek-r1-qwen", TextEnds(None, None, False)),
            r"\(whether texts are put into normal form C is not in the file\); give the model's own folder too",
        ),
        (
            (["a"], [], [1], "viking", TextEnds(None, None, False)),
            "smollm; give the model's own folder too",
        ),
        ((["a"], [], [1, 1], "gpt-2", TextEnds(None, None, False)), "1 tokens, but 2 token types"),
        ((["a"], [], [2], "gpt-2", TextEnds(None, None, False)), "token type 2 has no meaning"),
        ((["a", "a"], [], [1, 1], "gpt-2", TextEnds(None, None, False)), "token 'a' has two ids, 0 and 1"),
        ((["a"], [], [1], "gpt-2", TextEnds(None, None, True)), "there is no bos_id to add"),
        ((["a"], [], [1], "gpt-2", TextEnds(None, 1, False)), "eos_id is 1, but there are 1 tokens"),
    ],
)
def test_a_vocabulary_that_cannot_be_written_leaves_no_file(
    tmp_path: Path, arguments: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_tokenizer_json(tmp_path / "tokenizer.json", *arguments)
    assert list(tmp_path.iterdir()) == []
