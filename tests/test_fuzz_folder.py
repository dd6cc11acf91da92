"""Damage of every kind to every text file of a checkpoint: it is read, or refused in one sentence that names a file."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import folders
import fuzzing
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import DEEP, NASTY, places, put

from entropix.checkpoint import hf_folder, loading
from entropix.checkpoint.chat import encode_chat, end_of_turn_id, load_chat_template
from entropix.checkpoint.tokenizer import load_tokenizer
from entropix.prompts import Message

VOCAB_SIZE = 600
SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s"}, "behavior": "Isolated", "invert": False}
SCALING = {"rope_type": "llama3", **folders.LLAMA3}
TOKEN = {"content": "<|im_end|>", "special": True, "lstrip": False}
TEMPLATE_PROCESSING = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [256]}},
}


def with_everything(folder: Path) -> Path:
    """A toy checkpoint in which every file and every key that is read has a value."""
    folders.write_checkpoint(
        folder,
        rope_scaling=SCALING,
        rope_parameters=SCALING,
        layer_types=["full_attention"] * 2,
        eos_token_id=258,
    )
    path = folder / "tokenizer.json"
    file = json.loads(path.read_text())
    file |= {"post_processor": {"type": "Sequence", "processors": [TEMPLATE_PROCESSING]}, "normalizer": None}
    file["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [SPLIT, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}],
    }
    file["model"] |= {"merges": ["a b", ["ab", "c"]], "ignore_merges": False, "byte_fallback": False}
    file["model"]["vocab"] |= {"ab": 259, "abc": 260}
    path.write_text(json.dumps(file))
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": VOCAB_SIZE}
    (folder / "config.json").write_text(json.dumps(config))
    small = {
        "generation_config.json": {"eos_token_id": [256, 258], "bos_token_id": 256},
        "special_tokens_map.json": {"bos_token": "<|endoftext|>", "eos_token": TOKEN, "unk_token": None},
        "added_tokens.json": {"<|im_end|>": 258},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "pad_token": TOKEN,
            "additional_special_tokens": ["<|im_start|>", TOKEN],
            "added_tokens_decoder": {"258": TOKEN, "261": {"content": "<|pad|>", "special": True}},
            "chat_template": [
                {"name": "default", "template": folders.CHATML},
                {"name": "rag", "template": "{{ 1 }}"},
            ],
        },
        "chat_template.json": {"chat_template": folders.CHATML},
    }
    for name, values in small.items():
        (folder / name).write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text(folders.CHATML)
    ranked = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc"]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranked)]
    (folder / "tokenizer.model").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_everything(tmp_path_factory.mktemp("fuzz") / "whole")


def read_everything(folder: Path) -> list[int]:
    """What `loading.load` reads but for the tensors, and one prompt."""
    config = hf_folder.read_config(folder)
    tokenizer = load_tokenizer(folder)
    loading.check_vocabulary(folder, tokenizer, config)
    template = load_chat_template(folder)
    stop_ids = hf_folder.stop_token_ids(folder, tokenizer.special_tokens | tokenizer.added_tokens)
    hf_folder.check_stop_ids(folder, stop_ids, config.vocab_size)
    end_of_turn_id(template, tokenizer)
    tokenizer.encode_text("abc 12", allow_special=True)
    return encode_chat(template, tokenizer, [Message(role="user", content="abc <|im_end|> \ue000 1")])


def assert_read_or_refused(folder: Path) -> None:
    try:
        ids = read_everything(folder)
    except ValueError as error:
        assert type(error) is ValueError, f"{type(error)}: {error}"
        assert str(error).strip()
        assert len(str(error)) < 2000
        return
    assert all(0 <= i < VOCAB_SIZE for i in ids)


FILES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *(
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
        "chat_template.jinja",
        "tokenizer.model",
    ),
]
FEW = fuzzing.few(80)


def damaged(whole: Path, name: str, content: bytes, tmp: Path) -> Path:
    """The folder with another file of this name; without the files that would hide it."""
    folder = tmp / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    hiding = {"chat_template.json": ["jinja"], "tokenizer_config.json": ["jinja", "json"]}
    for ending in hiding.get(name, ()):
        (folder / f"chat_template.{ending}").unlink()
    if name in ("added_tokens.json", "tokenizer.model"):
        (folder / "tokenizer_config.json").unlink()
    if name == "tokenizer.model":
        for other in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
            (folder / other).unlink()
    (folder / name).write_bytes(content)
    return folder


def test_the_whole_folder_is_read(whole: Path, tmp_path: Path) -> None:
    im_start, im_end, abc = 257, 258, 260
    assert read_everything(whole) == [
        *(im_start, *b"user\n", abc, *" <|im_end|> \ue000 1".encode(), im_end),
        *(*b"\n", im_start, *b"assistant\n"),
    ]
    for name in FILES:
        read_everything(damaged(whole, name, (whole / name).read_bytes(), tmp_path))


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_any_other_value_is_read_or_refused(whole: Path, tmp_path: Path, name: str) -> None:
    original = json.loads((whole / name).read_text())

    @FEW
    @given(
        place=st.sampled_from(list(places(original))),
        new=st.sampled_from([*NASTY, DEEP]),
        how=st.sampled_from(["replace", "replace", "remove", "rename"]),
    )
    def check(place: tuple[Any, ...], new: Any, how: str) -> None:
        content = json.dumps(put(original, place, new, how)).encode()
        assert_read_or_refused(damaged(whole, name, content, tmp_path))

    check()


@pytest.mark.parametrize("name", FILES)
def test_any_other_bytes_are_read_or_refused(whole: Path, tmp_path: Path, name: str) -> None:
    original = (whole / name).read_bytes()

    @FEW
    @given(
        start=st.integers(0, len(original)),
        length=st.integers(0, len(original)),
        new=st.one_of(
            st.binary(max_size=8), st.sampled_from([b"\xef\xbb\xbf", b"[" * 100_000, b'{"a":' * 100_000])
        ),
    )
    @example(0, len(original), b"")
    @example(0, 0, b"\xef\xbb\xbf")
    def check(start: int, length: int, new: bytes) -> None:
        content = original[:start] + new + original[start + length :]
        assert_read_or_refused(damaged(whole, name, content, tmp_path))

    check()
