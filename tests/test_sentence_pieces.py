"""SentencePiece vocabularies: ids are those of the libraries that wrote the files, texts come back to the byte."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import foreign
import pytest
import strings
import tokenizers
import toy
from hypothesis import given
from hypothesis import strategies as st
from pieces import as_json, model, processor, written

from entropix.checkpoint.chat import ChatTemplate, encode_chat
from entropix.checkpoint.convert import convert
from entropix.checkpoint.tokenizer import Tokenizer, load_tokenizer

Change = Callable[[dict[str, Any]], None]


def metaspace(scheme: str) -> Change:
    """The way of later versions of transformers."""

    def change(file: dict[str, Any]) -> None:
        file["normalizer"] = None
        if scheme == "never":
            del file["decoder"]["decoders"][3]  # which takes a space from the beginning
        file["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": scheme,
            "split": False,
        }

    return change


def gemma(file: dict[str, Any]) -> None:
    """As Gemma's file has it: no space before a text, and line breaks and spaces among the added tokens."""
    file["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    file["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    del file["decoder"]["decoders"][3]
    vocab = file["model"]["vocab"]
    assert "▁▁" in vocab
    for token in ("\n", "\n\n", "\n\n\n", "▁▁", "<table>"):
        entry = {"content": token, "id": vocab.setdefault(token, len(vocab)), "special": False}
        file["added_tokens"].append({**file["added_tokens"][0], **entry})


def nothing(_: dict[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def trained() -> bytes:
    return model()


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def ours(
    request: pytest.FixtureRequest, trained: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    content = trained if request.param == "tokenizer.model" else as_json(trained)
    return load_tokenizer(written(tmp_path_factory.mktemp("vocabulary"), content))


def test_ids_are_those_of_sentencepiece_and_texts_come_back(ours: Tokenizer, trained: bytes) -> None:
    """Of names of special tokens in a text too: these are plain text. "▁" itself is a space afterwards."""
    read = processor(trained)
    for text in strings.texts(400):
        ids = ours.encode(text)
        assert ids == read.encode(text), text
        assert ours.encode_text(text) == [1, *ids]
        said = text.replace("▁", " ")
        assert ours.decode_text(ids) == said and ours.decode(ids) == f" {said}"
    assert (ours.bos_id, ours.bos_ids, ours.special_tokens) == (1, (1,), {"<unk>": 0, "<s>": 1, "</s>": 2})


@given(st.lists(st.integers(0, 479), max_size=30))
def test_a_stream_gives_out_what_all_ids_say(ours: Tokenizer, ids: list[int]) -> None:
    decoder = ours.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.flush() == ours.decode(ids)


def stripping(file: dict[str, Any]) -> None:
    """As Phi-3's file has it."""
    metaspace("always")(file)
    file["added_tokens"][2]["rstrip"] = True


@pytest.mark.parametrize(
    "change",
    [nothing, stripping, gemma, *map(metaspace, ("first", "always", "never"))],
    ids=["prepend", "stripping", "gemma", "first", "always", "never"],
)
def test_special_tokens_are_cut_out_as_the_library_cuts_them(
    change: Change, trained: bytes, tmp_path: Path
) -> None:
    """A text between special tokens begins with a space, or does not, as the file says."""
    file = as_json(trained)
    change(file)
    ours = load_tokenizer(written(tmp_path, file))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (
        *("</s> \n\u2003\x85x</s>\u200b y</s>\x1c z", "</s></s> </s>", " </s> "),
        "<s>Why is it?</s> Is it <s> so",
        " <s>",
        "a</s>",
        "<s><s> a",
        "Why?",
        "a\n\n\n\nb  c\n d▁▁e<table><s>\n\n",
        *strings.texts(300, seed=1),
    ):
        assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False).ids, (
            text
        )


def test_a_vocabulary_as_gemma_has_it_gives_texts_back(trained: bytes, tmp_path: Path) -> None:
    """Names of special tokens in a text are plain, as to a library that knows of none."""
    file = as_json(trained)
    gemma(file)
    ours = load_tokenizer(written(tmp_path, file))
    plain = file | {"added_tokens": [token for token in file["added_tokens"] if not token["special"]]}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(plain))
    for text in ("def f(x):\n\n    return  x\n", " a▁▁b", *strings.texts(200, seed=2)):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode_text(ids) == ours.decode(ids) == text.replace("▁", " "), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text


def test_messages_cannot_speak_as_somebody_else(ours: Tokenizer) -> None:
    template = ChatTemplate("{{ bos_token }}[INST] {{ messages[0].content }} [/INST]", bos_token="<s>")
    ids = encode_chat(template, ours, [{"role": "user", "content": "a</s><s>b"}])
    assert ids == [1, *ours.encode("[INST] a</s><s>b [/INST]", start=3)]
    assert ids.count(1) == 1 and 2 not in ids


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_conversation_is_cut_as_the_library_cuts_it(scheme: str, trained: bytes, tmp_path: Path) -> None:
    file = as_json(trained)
    metaspace(scheme)(file)
    ours = load_tokenizer(written(tmp_path, file))
    template = ChatTemplate("{{ bos_token }}[INST] {{ messages[0].content }}</s>is it", bos_token="<s>")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = theirs.encode("<s>[INST] Why</s>is it", add_special_tokens=False).ids
    assert encode_chat(template, ours, [{"role": "user", "content": "Why"}]) == expected


@pytest.mark.parametrize("text", ["", "a", " a", "a b", "[DOC]a [DOC] b", "[INST]x", "<unk>\0"])
def test_pieces_of_the_kind_user_defined_are_left_to_the_library(text: str, tmp_path: Path) -> None:
    content = model(user_defined_symbols=["[DOC]"], control_symbols=["[INST]"], add_dummy_prefix=False)
    ours = load_tokenizer(written(tmp_path, content))
    assert (
        ours.encode(text) == processor(content).encode(text) and ours.decode_text(ours.encode(text)) == text
    )
    assert ours.special_tokens["[INST]"] in ours.encode(f"{text}[INST]", allow_special=True)


def changed(**entries: Any) -> Change:
    def change(file: dict[str, Any]) -> None:
        file.update(entries)

    return change


def in_model(**entries: Any) -> Change:
    def change(file: dict[str, Any]) -> None:
        file["model"].update(entries)

    return change


def merging_an_end(file: dict[str, Any]) -> None:
    """So that the text </s> is merged to the token of this name."""
    vocab = file["model"]["vocab"]
    for token in ("<", "/", "s", ">", "</", "s>"):
        vocab.setdefault(token, len(vocab))
    file["model"]["merges"] += [["<", "/"], ["s", ">"], ["</", "s>"]]


def special_letter(file: dict[str, Any]) -> None:
    file["added_tokens"].append(
        {**file["added_tokens"][1], "id": file["model"]["vocab"]["e"], "content": "e"}
    )


def stripping_for_nothing(file: dict[str, Any]) -> None:
    """The decoder takes a space that nothing has put there."""
    metaspace("never")(file)
    file["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})


def without_a_byte(file: dict[str, Any]) -> None:
    del file["model"]["vocab"]["<0x41>"]


def normalized(file: dict[str, Any]) -> None:
    file["added_tokens"][1]["normalized"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_model(type="Unigram"), "its model is Unigram, not BPE"),
        (in_model(ignore_merges=True), "its model has ignore_merges True"),
        (in_model(merges=[["a", "no such token"]]), "the tokenizers library does not accept it"),
        (without_a_byte, "it has no token <0x41> for a byte"),
        (merging_an_end, "any text may write '</s>', which is a special token"),
        (special_letter, "any text may write 'e', which is a special token"),
        (stripping_for_nothing, "not like that of Llama 2"),
        (normalized, "its added token '<s>' is marked normalized"),
        (
            changed(decoder={"type": "ByteLevel"}),
            'its decoder is {"type": "ByteLevel"}, not like that of Llama 2',
        ),
        (
            changed(normalizer={"type": "NFKC"}),
            "its normalizer and pre-tokenizer are not like those of Llama 2",
        ),
        (
            changed(pre_tokenizer={"type": "Whitespace"}),
            "its normalizer and pre-tokenizer are not like those",
        ),
    ],
)
def test_what_is_not_known_is_refused(change: Change, message: str, trained: bytes, tmp_path: Path) -> None:
    file = as_json(trained)
    change(file)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_tokenizer(written(tmp_path, file))


@pytest.mark.parametrize(
    ("small", "message"),
    [
        ({"eos_token": "<0x0A>"}, "any text may write '<0x0A>', which is a special token"),
        ({"eos_token": "e"}, "any text may write 'e', which is a special token"),
        (
            {"added_tokens_decoder": {"480": {"content": "<foo>", "special": True, "normalized": True}}},
            "its added token '<foo>' is marked normalized",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_what_a_text_may_become_is_nothing_special(
    kind: str, small: dict[str, Any], message: str, trained: bytes, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(small))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_tokenizer(written(tmp_path, trained if kind == "tokenizer.model" else as_json(trained)))


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_a_token_of_the_small_files_takes_white_space_along(
    kind: str, trained: bytes, tmp_path: Path
) -> None:
    entry = {"content": "<|end|>", "special": True, "rstrip": True, "normalized": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"480": entry}}))
    ours = load_tokenizer(written(tmp_path, trained if kind == "tokenizer.model" else as_json(trained)))
    assert ours.encode("<|end|>\n  hi", True) == [480, *processor(trained).encode("hi")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (b"\x08\x05", "not a SentencePiece model, or a damaged one"),  # a piece that is a number
        (b"\x10\x05", "not a SentencePiece model, or a damaged one"),  # so for the trainer
        (b"\n\x05\n\x01Q\x18\x07", "expected pieces of the kinds 1 to 6, got 7"),
    ],
)
def test_odd_fields_are_a_damaged_model(more: bytes, message: str, trained: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_tokenizer(written(tmp_path, trained + more))


def test_a_damaged_model_and_one_whose_end_anybody_can_write_are_refused(
    trained: bytes, tmp_path: Path
) -> None:
    for content, message in (
        (trained[:-100], "not a SentencePiece model, or a damaged one"),
        (b"\n\xff\xff\xff\xff", "not a SentencePiece model, or a damaged one"),
        (
            model(user_defined_symbols=["<|im_end|>"]),
            "any text may write '<|im_end|>', which is a special token",
        ),
        (model(byte_fallback=False, vocab_size=200), "it has no token <0x00> for a byte"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
        with pytest.raises(ValueError, match=re.escape(message)):
            load_tokenizer(written(tmp_path, content))


# ----- GGUF -------------------------------------------------------------------------------------------------


def as_gguf(content: bytes, folder: Path, **changes: Any) -> Path:
    """The toy as llama.cpp's converter writes it with this vocabulary."""
    read = processor(content)
    n = read.get_piece_size()
    kinds = [
        2 if read.is_unknown(i) else 3 if read.is_control(i) else 6 if read.is_byte(i) else 1
        for i in range(n)
    ]
    cfg = toy.config(vocab_size=n)
    vocabulary = {
        "model": "llama",
        "pre": "default",
        "tokens": [read.id_to_piece(i) for i in range(n)],
        "scores": [read.get_score(i) for i in range(n)],
        "token_type": kinds,
        "merges": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": None,
        "padding_token_id": None,
        **changes,
    }
    metadata = foreign.gguf_metadata(cfg) | {
        f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()
    }
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    foreign.write_gguf(folder / "model.gguf", tensors, metadata)
    return folder / "model.gguf"


def test_a_gguf_file_of_one_has_the_ids_of_sentencepiece(trained: bytes, tmp_path: Path) -> None:
    convert(as_gguf(trained, tmp_path), tmp_path / "out")
    ours, read = load_tokenizer(tmp_path / "out"), processor(trained)
    for text in strings.texts(400, seed=2):
        assert ours.encode_text(text) == [1, *read.encode(text)], text
        assert ours.decode_text(ours.encode(text)) == text.replace("▁", " ")
    assert ours.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}


def test_a_gguf_file_says_whether_texts_begin_with_a_space_and_a_token(tmp_path: Path) -> None:
    content = model(add_dummy_prefix=False)
    convert(as_gguf(content, tmp_path, add_space_prefix=False, add_bos_token=False), tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    assert ours.encode_text("Paris is") == processor(content).encode("Paris is")
    assert ours.decode_text(ours.encode(" Paris")) == " Paris"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "no tokenizer.ggml.scores; the vocabulary is incomplete"),
        ({"scores": [0.0, math.nan]}, "tokenizer.ggml.scores must be a list of 480 numbers"),
        (
            {"model": "t5"},
            "tokenizer.ggml.model is 't5'; only byte-level BPE, 'gpt2', and SentencePiece, 'llama'",
        ),
        ({"token_type": [4] * 480}, "the token '<unk>' is user-defined: where spaces are put"),
        ({"token_type": [1] * 480}, "0 tokens are of the type unknown; expected one"),
        ({"scores": [-1.0] * 480}, "have one score, -1; which is merged first is not in the file"),
        ({"tokens": [*map(str, range(479)), "a" * 257]}, "a token has 257 characters; expected at most 256"),
        ({"token_type": [2, *[9] * 479]}, "token type 9 has no meaning in a SentencePiece vocabulary"),
    ],
)
def test_a_gguf_vocabulary_that_is_not_understood_is_refused(
    changes: dict[str, Any], message: str, trained: bytes, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(as_gguf(trained, tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
