"""Chat templates in the manner of each family against transformers."""

import dataclasses
import json
from pathlib import Path

import chat_side
import pytest
import transformers_process

from entropix.checkpoint.chat import encode_chat, load_chat_template
from entropix.checkpoint.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow


def test_texts_and_ids_are_those_of_transformers(tmp_path: Path) -> None:
    """Also of messages that spell out special tokens or jinja, and of tools, documents and other arguments."""
    transformers_process.run(chat_side.__file__, tmp_path)
    expected = json.loads((tmp_path / "rendered.json").read_text())
    tokenizers = {name: load_tokenizer(tmp_path / name) for name in chat_side.TEMPLATES}
    refused = 0
    for (name, conversation, arguments, begin), (text, ids) in zip(chat_side.cases(), expected, strict=True):
        template = dataclasses.replace(load_chat_template(tmp_path / name), now=chat_side.NOW)
        template = template.with_arguments(arguments)
        messages = chat_side.CONVERSATIONS[conversation]
        case = name, conversation, arguments, begin
        if text is None:
            refused += 1
            with pytest.raises(ValueError, match=r"the chat template refuses this conversation: .*[Rr]oles"):
                template.render(messages, begin)
            continue
        assert template.render(messages, begin) == text, case
        found = encode_chat(template, tokenizers[name], messages, add_generation_prompt=begin)
        assert tokenizers[name].decode(found) == text, case
        # In the last one transformers' own marks of special tokens in messages are quoted with the messages.
        assert found == ids or name == "rest", case
    assert (len(expected), refused) == (200, 8)
