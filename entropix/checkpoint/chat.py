"""Conversations as the text, and the tokens, that a model was trained to answer.

The template is the checkpoint's own: a jinja program, rendered in jinja's sandbox with the functions that
such programs rely on (the conventions of the `transformers` library).
"""

import datetime
import functools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from entropix.checkpoint.tokenizer import Tokenizer, read_tokenizer_config, special_token
from entropix.files import read_text
from entropix.prompts import Message


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's template and the special tokens it may name; `load_chat_template` reads it."""

    source: str
    bos_token: str = ""
    eos_token: str = ""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, special tokens by their names.

        Args:
            messages: the turns, oldest first.
            add_generation_prompt: end with what begins the assistant's next turn.

        Raises:
            ValueError: no or malformed messages; the template is broken or refuses them, in its own words.
        """
        _check(messages)
        try:
            return _compile(self.source).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                tools=None,
                documents=None,
            )
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is broken in line {error.lineno}: {error.message}") from None
        except Exception as error:  # a template is a program of others: it may fail in any way
            raise ValueError(f"the chat template refuses this conversation: {error}") from None


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template in a folder's `chat_template.jinja`, else in its `tokenizer_config.json`; None without.

    Of several named templates it is `default`. A broken one is an error only once it is rendered.
    """
    config = read_tokenizer_config(folder)
    path, source = folder / "tokenizer_config.json", config.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        path = folder / "chat_template.jinja"
        source = read_text(path)
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ValueError(f"{path}: expected chat_template to be text, got {type(source).__name__}")
    return ChatTemplate(source, special_token(config, "bos_token"), special_token(config, "eos_token"))


def encode_chat(
    template: ChatTemplate | None,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    allow_special: bool = False,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of a rendered conversation, in which the template's special tokens are special tokens.

    Special tokens that the messages spell out stay plain text unless `allow_special`, so nobody can end a
    turn or speak as someone else by writing `<|im_end|>`. Everything between two special tokens is tokenised
    as one text, as it was in training, whether it comes from a message, from the template or from both.

    Raises:
        ValueError: there is no template, it refuses the messages, or a character has no token.
    """
    if template is None:
        raise ValueError("this model has no chat template; give it a text to complete instead (--raw)")
    if allow_special:
        return tokenizer.encode(template.render(messages, add_generation_prompt), allow_special=True)
    _check(messages)
    for message in messages:
        tokenizer.check(message["content"])
    guarded, originals = _guard(messages, tokenizer.special_tokens, template.source)
    ids: list[int] = []
    for _, piece in tokenizer.pieces(template.render(guarded, add_generation_prompt), allow_special=True):
        ids.extend([piece] if isinstance(piece, int) else tokenizer.encode(piece.translate(originals)))
    return ids


def _guard(
    messages: Sequence[Message], names: Collection[str], source: str
) -> tuple[list[Message], dict[int, str]]:
    """(messages without any of the special tokens `names`, translation that puts them back).

    Templates trim and rearrange what they get, so where a message ends up is unknown. Instead the first
    character of each special token in it becomes a private-use character that neither the messages nor the
    template contain: the template carries that along like any other, and it is put back after the text has
    been cut at its special tokens.
    """
    in_use = set(source).union(*(message["content"] for message in messages))
    unused = (char for char in map(chr, range(0xE000, 0xF900)) if char not in in_use)
    stand_ins = dict(zip(sorted({name[0] for name in names}), unused, strict=False))
    # Only one character is consumed, so that a token which begins inside another one is found as well.
    alternatives = "|".join(map(re.escape, names))
    token = re.compile(f"(?={alternatives or '(?!)'}).", re.DOTALL)
    guarded: list[Message] = [
        {"role": message["role"], "content": token.sub(lambda m: stand_ins[m[0]], message["content"])}
        for message in messages
    ]
    return guarded, {ord(stand_in): char for char, stand_in in stand_ins.items()}


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("expected at least one message, got none")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(
                f"message {i}: expected an object with exactly role and content, got {message!r}"
            )
        for field, value in message.items():
            if not isinstance(value, str):
                raise ValueError(f"message {i}: expected {field} to be text, got {value!r}")
        # A role is part of the frame around the content: markup in it could complete a special token.
        if not re.fullmatch(r"[\w-]+", message["role"]):
            raise ValueError(f"message {i}: expected role to be one word, like user, got {message['role']!r}")


# ----- what templates expect of jinja ---------------------------------------------------------------------


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, a mark for training: stands for what it contains."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own, without the escapes that HTML needs."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
