"""The small files of a folder complete the vocabulary file and each other; where they contradict, both are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from vocabularies import edit, written

from entropix.checkpoint.chat import ChatTemplate, encode_chat, load_chat_template
from entropix.checkpoint.special_tokens import NAMED, read_special_tokens
from entropix.checkpoint.tokenizer import load_tokenizer
from entropix.prompts import Message

START, END = 256, 257
DECODER = {str(START): "<|im_start|>", str(END): "<|im_end|>"}


def write(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(values))


def decoder(**changes: Any) -> dict[str, Any]:
    """`added_tokens_decoder` of the two markers."""
    return {i: {"content": text, "special": True, "lstrip": False} | changes for i, text in DECODER.items()}


# ----- added tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": decoder()}},
        {
            "added_tokens.json": {text: int(i) for i, text in DECODER.items()},
            "special_tokens_map.json": {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}},
        },
        {
            "added_tokens.json": {text: int(i) for i, text in DECODER.items()},
            "tokenizer_config.json": {
                "additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}]
            },
        },
    ],
    ids=[
        "added_tokens_decoder",
        "added_tokens.json, named in the map",
        "added_tokens.json, without a purpose",
    ],
)
def test_markers_that_stand_only_in_a_small_file_are_special_tokens(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    written(tmp_path)
    for name, values in files.items():
        write(tmp_path, name, **values)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_tokens == {"<|im_start|>": START, "<|im_end|>": END}
    template = ChatTemplate("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    assert encode_chat(template, tokenizer, [Message(role="user", content="a<|im_end|>")]) == [
        *(START, *b"a<|im_end|>", END)
    ]
    assert tokenizer.decode([START]) == "<|im_start|>"


def test_a_token_of_the_vocabulary_that_only_a_purpose_makes_special_is_special(tmp_path: Path) -> None:
    written(tmp_path)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    edit(tmp_path, model={"vocab": vocab | {"</s>": 256}})
    assert load_tokenizer(tmp_path).encode("</s>", allow_special=True) == list(b"</s>")
    write(tmp_path, "special_tokens_map.json", eos_token="</s>")
    assert load_tokenizer(tmp_path).encode("</s>", allow_special=True) == [256]


def test_a_letter_with_a_purpose_stays_a_letter(tmp_path: Path) -> None:
    write(written(tmp_path), "tokenizer_config.json", pad_token="!")
    assert load_tokenizer(tmp_path).encode("a!") == list(b"a!")


def test_added_tokens_that_are_not_special_stay_so(tmp_path: Path) -> None:
    write(written(tmp_path), "tokenizer_config.json", added_tokens_decoder=decoder(special=False))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.special_tokens, tokenizer.added_tokens) == (
        {},
        {"<|im_start|>": START, "<|im_end|>": END},
    )


def test_metas_tokenizer_takes_the_names_that_the_folder_gives(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("YQ== 0\nYg== 1\n")  # "a" and "b"
    assert load_tokenizer(tmp_path).special_tokens["<|eot_id|>"] == 11
    renamed = {
        "11": {"content": "<|done|>", "special": True},
        "258": {"content": "<|more|>", "special": True},
    }
    write(tmp_path, "tokenizer_config.json", added_tokens_decoder=renamed)
    special = load_tokenizer(tmp_path).special_tokens
    assert (special["<|done|>"], special["<|more|>"], special["<|begin_of_text|>"]) == (11, 258, 2)
    assert "<|eot_id|>" not in special


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            {"added_tokens_decoder": {"256": {"content": "<|end|>", "special": True}}},
            r"tokenizer_config\.json: added_tokens_decoder has '<\|end\|>' with the id 256, special, but "
            r".*tokenizer\.json: added_tokens has '<\|im_start\|>' with the id 256, special; make them agree",
        ),
        (
            {"added_tokens_decoder": {"258": {"content": "<|im_end|>", "special": True}}},
            r"'<\|im_end\|>' with the id 258, special, but .* has '<\|im_end\|>' with the id 257, special",
        ),
        (
            {"added_tokens_decoder": {"257": {"content": "<|im_end|>", "special": False}}},
            "with the id 257, not special, but .* with the id 257, special; make them agree",
        ),
        (
            {"added_tokens_decoder": {"97": {"content": "<|a|>", "special": True}}},
            r"added_tokens_decoder: '<\|a\|>' has the id 97, but in .*tokenizer\.json 'a' has 97; expected",
        ),
        ({"added_tokens_decoder": 5}, "added_tokens_decoder must be an object, got 5"),
        (
            {"added_tokens_decoder": {"256": "x"}},
            "added_tokens_decoder: expected an object for each id, got 'x'",
        ),
        ({"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder: expected token ids as keys, got 'x'"),
        (
            {"added_tokens_decoder": {"9" * 30: {}}},
            "added_tokens_decoder: expected token ids as keys, got '999",
        ),
        (
            {"added_tokens_decoder": {"999999999": {"content": "a"}}},
            "expected each of added_tokens_decoder to have a content and an id of 0 to 2097151, got 'a' and 999999999",
        ),
        (
            {"added_tokens_decoder": decoder(special=1)},
            "added_tokens_decoder: special must be true or false, got 1",
        ),
        (
            {"added_tokens_decoder": decoder(rstrip=True)},
            r"its added token '<\|im_start\|>' is marked rstrip",
        ),
        (
            {"bos_token": {"special": True}},
            "bos_token must be text, or an object with its content, got {'special'",
        ),
        ({"bos_token": ["<s>"]}, r"bos_token must be text, or an object with its content, got \['<s>'\]"),
        ({"pad_token": 5}, "pad_token must be text, or an object with its content, got 5"),
        ({"unk_token": "\ud800"}, r"unk_token must be text, or an object with its content, got '\\ud800'"),
        ({"bos_token": "<s>"}, "bos_token '<s>' is no token of the vocabulary"),
        ({"add_bos_token": "yes"}, "add_bos_token must be true or false, got 'yes'"),
    ],
)
def test_small_files_that_are_wrong_or_contradict_are_named(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    write(written(tmp_path, special=["<|im_start|>", "<|im_end|>"]), "tokenizer_config.json", **config)
    with pytest.raises(ValueError, match=complaint) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(raised.value)


# ----- tokens with a purpose ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("as_object", [False, True])
def test_every_token_with_a_purpose_reaches_the_template(tmp_path: Path, file: str, as_object: bool) -> None:
    values = {name: f"<{name}>" for name in NAMED}
    write(tmp_path, file, **{name: {"content": text} if as_object else text for name, text in values.items()})
    (tmp_path / "chat_template.jinja").write_text(" ".join(f"{{{{ {name} }}}}" for name in NAMED))
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.render([Message(role="user", content="")]) == " ".join(values.values())


def test_two_files_complete_each_other(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", bos_token="<s>", eos_token=None, pad_token="<p>")
    write(tmp_path, "special_tokens_map.json", eos_token="</s>", pad_token={"content": "<p>"})
    assert read_special_tokens(tmp_path).named == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<p>",
    }


def test_two_files_that_name_different_tokens_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", eos_token="<|im_end|>")
    write(tmp_path, "special_tokens_map.json", eos_token="<|endoftext|>")
    complaint = (
        r"special_tokens_map\.json: eos_token is '<\|endoftext\|>', but .*tokenizer_config\.json says "
        r"'<\|im_end\|>'; make them agree"
    )
    with pytest.raises(ValueError, match=complaint):
        read_special_tokens(tmp_path)
