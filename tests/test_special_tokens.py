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
            r"disagree about rstrip of '<\|im_start\|>'; make them agree",
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
        ({"add_bos_token": True}, "add_bos_token is true, but no bos_token is named"),
        (
            {"additional_special_tokens": "<|im_end|>"},
            "additional_special_tokens must be a list, got '<|im_end|>'",
        ),
        (
            {"additional_special_tokens": {"a": "b"}},
            "additional_special_tokens must be a list, got {'a': 'b'}",
        ),
        ({"additional_special_tokens": [5]}, "each of additional_special_tokens must be text, or an object"),
        (
            {"additional_special_tokens": ["<|im_end|>", "<|x|>"]},
            r"tokenizer_config\.json: additional_special_tokens: '<\|x\|>' is no token of the vocabulary",
        ),
        (
            {"extra_special_tokens": ["<|x|>"]},
            r"extra_special_tokens: '<\|x\|>' is no token of the vocabulary",
        ),
        (
            {"extra_special_tokens": {"image_token": "<|x|>"}},
            r"extra_special_tokens: '<\|x\|>' is no token of the",
        ),
        (
            {"extra_special_tokens": {"image_token": 5}},
            r"extra_special_tokens\.image_token must be text, or an",
        ),
        ({"extra_special_tokens": "<|x|>"}, r"extra_special_tokens must be a list, got '<\|x\|>'"),
        (
            {"pad_token": "<|im_end|>", "extra_special_tokens": {"pad_token": "<|im_start|>"}},
            r"pad_token is '<\|im_start\|>', but .* says '<\|im_end\|>'; make them agree",
        ),
    ],
)
def test_small_files_that_are_wrong_or_contradict_are_named(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    write(written(tmp_path, special=["<|im_start|>", "<|im_end|>"]), "tokenizer_config.json", **config)
    with pytest.raises(ValueError, match=complaint) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(raised.value)


# ----- the ends of texts ----------------------------------------------------------------------------------


def processor(*single: str, **ids: int) -> dict[str, Any]:
    """A post-processor that makes a text ("A") and these tokens of a text."""
    places = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if name == "A"
        else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in single
    ]
    defined = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()}
    return {"type": "TemplateProcessing", "single": places, "pair": [], "special_tokens": defined}


def test_a_token_after_every_text_is_refused_where_a_text_would_get_it(tmp_path: Path) -> None:
    written(tmp_path, special=["<s>", "</s>"])
    edit(tmp_path, post_processor=processor("<s>", "A", "</s>", **{"<s>": START, "</s>": END}))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: its post_processor ends every text with '</s>', so that"
    ):
        load_tokenizer(tmp_path).encode_text("a")
    assert load_tokenizer(tmp_path).encode_text([1, 2]) == [1, 2]
    write(tmp_path, "tokenizer_config.json", add_eos_token=False)
    assert load_tokenizer(tmp_path).encode_text("a") == [START, *b"a"]
    write(tmp_path, "tokenizer_config.json", add_eos_token=True, eos_token="</s>")
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json: add_eos_token ends every text with '</s>'"
    ):
        load_tokenizer(tmp_path).encode_text("a")


def test_a_post_processor_whose_ids_are_other_tokens_is_refused(tmp_path: Path) -> None:
    written(tmp_path, special=["<s>", "</s>"])
    edit(tmp_path, post_processor=processor("<s>", "A", **{"<s>": END}))
    complaint = r"has \['<s>'\] with the ids \[257\], but model.vocab and added_tokens have \['</s>'\] there"
    with pytest.raises(ValueError, match=complaint):
        load_tokenizer(tmp_path)


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


def test_templates_may_use_the_names_that_a_folder_gives_its_tokens(tmp_path: Path) -> None:
    extra = {"image_token": "<|im_start|>", "turn_token": {"content": "<|im_end|>"}}
    write(
        written(tmp_path, special=list(DECODER.values())), "tokenizer_config.json", extra_special_tokens=extra
    )
    (tmp_path / "chat_template.jinja").write_text(
        "{{ image_token }}{{ messages[0].content }}{{ turn_token }}"
    )
    template, tokenizer = load_chat_template(tmp_path), load_tokenizer(tmp_path)
    assert encode_chat(template, tokenizer, [Message(role="user", content="a")]) == [START, *b"a", END]


def test_a_token_without_an_id_is_refused_once_the_template_writes_it(tmp_path: Path) -> None:
    write(written(tmp_path, special=list(DECODER.values())), "tokenizer_config.json", pad_token="[PAD]")
    template, tokenizer = (
        ChatTemplate("{{ messages[0].content }}", pad_token="[PAD]"),
        load_tokenizer(tmp_path),
    )
    assert encode_chat(template, tokenizer, [Message(role="user", content="[PAD]")]) == [*b"[PAD]"]
    writing = ChatTemplate("{{ pad_token }}{{ messages[0].content }}", pad_token="[PAD]")
    with pytest.raises(
        ValueError, match=r"writes the special token '\[PAD\]', for which the vocabulary has no id"
    ):
        encode_chat(writing, tokenizer, [Message(role="user", content="a")])


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
