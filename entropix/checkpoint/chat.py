"""Conversations as the text, and the tokens, that a model was trained to answer.

The template is the checkpoint's own: a jinja program with the functions that such programs rely on (the conventions
of the `transformers` library), rendered in `chat_sandbox`.
"""

import contextlib
import contextvars
import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from entropix.checkpoint import chat_sandbox, values
from entropix.checkpoint.chat_guard import guard, texts
from entropix.checkpoint.hf_folder import END_TOKENS
from entropix.checkpoint.special_tokens import NAMED, read_special_tokens, read_tokenizer_config
from entropix.checkpoint.tokenizer import Tokenizer
from entropix.files import is_there, read_json, read_text
from entropix.prompts import Message
from entropix.showing import suggestion

_LISTS = ("tools", "documents")  # of objects; a template has None for those that are not given
# What stands in for the first characters of special tokens in messages, while such messages are rendered.
_STAND_INS: contextvars.ContextVar[str] = contextvars.ContextVar("_STAND_INS", default="")


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's template and the special tokens it may name; `load_chat_template` reads it.

    extra: further special tokens by the names that the template may use.
    arguments: further names that the template reads, with their values, such as `enable_thinking`; `with_arguments`
        checks them.
    now: the moment that a template sees which writes the date (`has_date`); None for the moment of rendering.
    for_tools: the template that is taken instead where `tools` are given; None for the same one.
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""
    unk_token: str = ""
    pad_token: str = ""
    sep_token: str = ""
    cls_token: str = ""
    mask_token: str = ""
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    now: datetime.datetime | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    for_tools: str | None = None

    @property
    def tokens(self) -> set[str]:
        """The texts of the special tokens that it may name."""
        return {*(getattr(self, name) for name in NAMED), *self.extra.values()} - {""}

    @property
    def has_date(self) -> bool:
        """Whether what the template writes may depend on when it does so."""
        return "strftime_now" in self.used

    @property
    def used(self) -> str:
        """What renders: where tools are given, the template for them."""
        with_tools = self.arguments.get("tools") is not None
        return self.for_tools if with_tools and self.for_tools else self.source

    def with_arguments(self, arguments: Mapping[str, Any]) -> "ChatTemplate":
        """The template that gets these names too, as `apply_chat_template(**arguments)` of transformers gives them.

        Raises a ValueError for a name that it gets anyway, one that it never reads, a value that is no JSON, and
        `tools` or `documents` that are no lists of objects.
        """
        try:
            plain: dict[str, Any] = json.loads(json.dumps(dict(arguments), allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            plain = {"": "\ud800"}
        if not values.is_text(json.dumps(plain, ensure_ascii=False)):
            raise ValueError(
                f"template_args must be names with values that JSON has, got {values.shown(arguments)}"
            )
        given = dataclasses.replace(self, arguments=plain)
        with _explained():
            read, own = chat_sandbox.asked_for(given.used, *_OURS)
        own |= self._given((), True).keys() | {*NAMED}
        lists = {name for name in _LISTS if plain.get(name) is not None}
        for name in lists:
            if not (isinstance(plain[name], list) and all(isinstance(item, dict) for item in plain[name])):
                raise ValueError(
                    f"template_args (--template-arg): expected {name} to be a list of objects, as transformers takes "
                    f"them, got {values.shown(plain[name])}"
                )
        for name in plain:
            if name in own - lists:
                raise ValueError(
                    f"template_args (--template-arg): {values.named(name)} is given to every template already; leave "
                    "it out"
                )
            if name not in read:
                free = sorted(read - (own - {*_LISTS}))
                hint = suggestion(name, free) if free else "; it reads no name that could be given"
                raise ValueError(
                    f"template_args (--template-arg): the chat template never reads {values.named(name)}{hint}"
                )
        return given

    def _given(self, messages: Sequence[Message], add_generation_prompt: bool) -> dict[str, Any]:
        """What every template gets."""
        return {
            **self.extra,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            **dict.fromkeys(_LISTS),
            "strftime_now": functools.partial(_strftime, self.now),
            **{name: text for name in NAMED if (text := getattr(self, name))},
        }

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, special tokens by their names.

        Args:
            messages: the turns, oldest first.
            add_generation_prompt: end with what begins the assistant's next turn.

        Raises:
            ValueError: no or malformed messages; the template is broken, asks for too much (`chat_sandbox`) or refuses
                them, in its own words.
        """
        _check(messages)
        n_characters = sum(64 + len(message["role"]) + len(message["content"]) for message in messages)
        n_characters += sum(map(len, texts(self.arguments)))
        given = self._given(messages, add_generation_prompt) | dict(self.arguments)
        with _explained():
            return chat_sandbox.render(_compile(self.used), given, n_characters)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Within it whatever a template fails with becomes a ValueError that says so."""
    try:
        yield
        return
    except jinja2.TemplateSyntaxError as error:
        why = f"the chat template is broken in line {error.lineno}: {error.message}"
    except chat_sandbox.TooMuch as error:
        why = f"the chat template asks for too much: {error}"
    except Exception as error:  # a template is a program of others: it may fail in any way
        why = f"the chat template refuses this conversation: {str(error) or type(error).__name__}"
    raise ValueError(why[:1000])


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The default template of a folder, None without any.

    Read is the first of these that there is, as in transformers: `chat_template.jinja` and
    `additional_chat_templates/`, the older `chat_template.json`, and `chat_template` in tokenizer_config.json. Where
    templates have names, but none is `default`, the one returned refuses every conversation and says so. A broken one
    is an error only once it is rendered. Raises a ValueError that names the file and what is malformed in it.
    """
    path, config = folder / "tokenizer_config.json", read_tokenizer_config(folder)
    named = _templates_in_files(folder)
    if not named and is_there(folder / "chat_template.json"):
        path = folder / "chat_template.json"
        config = read_json(path)
    named = named or _templates_in(config, path)
    named = {name: source.removeprefix("\ufeff") for name, source in named.items()}
    if not named:
        return None
    source = named.get("default")
    if source is None:
        why = f"none of its templates is the default: it has {', '.join(sorted(named))}"
        source = f"{{{{ raise_exception({json.dumps(values.shown(why)[1:-1])}) }}}}"
    small = read_special_tokens(folder)
    named_tokens: Mapping[str, Any] = small.named
    return ChatTemplate(source, extra=small.extra, for_tools=named.get("tool_use"), **named_tokens)


def _templates_in_files(folder: Path) -> dict[str, str]:
    """The templates that are files of their own, by name."""
    files = {"default": folder / "chat_template.jinja"} if is_there(folder / "chat_template.jinja") else {}
    more = folder / "additional_chat_templates"
    files = {path.stem: path for path in sorted(more.glob("*.jinja"))} | files if is_there(more) else files
    return {name: read_text(path, 4 * chat_sandbox.LONGEST_TEMPLATE) for name, path in files.items()}


def _templates_in(config: dict[str, Any], path: Path) -> dict[str, str]:
    """The templates under `chat_template`, by name: one text, or a list of objects of name and template."""
    match config.get("chat_template"):
        case None:
            return {}
        case str(source):
            return {"default": source}
        case [*entries]:
            named: dict[str, str] = {}
            for entry in entries:
                match entry:
                    case {"name": str(name), "template": str(source)} if name not in named:
                        named[name] = source
                    case _:
                        raise values.wrong(path, "each of chat_template", "a new name and a template", entry)
            return named
        case other:
            raise values.wrong(path, "chat_template", "text, or a list of named templates", other)


def end_of_turn_id(template: ChatTemplate | None, tokenizer: Tokenizer) -> int | None:
    """The token that the template writes after an answer, white space aside; None where it writes none."""
    answer = "\ue000"
    turns = [Message(role="user", content="?"), Message(role="assistant", content=answer)]
    try:
        rendered = "" if template is None else template.render(turns, add_generation_prompt=False)
    except ValueError:
        return None
    _, found, rest = rendered.rpartition(answer)
    first = next((piece for _, piece in tokenizer.pieces(rest.lstrip(), allow_special=True)), None)
    return first if found and isinstance(first, int) else None


def encode_chat(
    template: ChatTemplate | None,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    allow_special: bool = False,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of a rendered conversation, in which the template's special tokens are special tokens.

    Special tokens that the messages, or the template's arguments, spell out stay plain text unless `allow_special`, and
    so do tokens that end a turn without being marked special, so nobody can end a turn or speak as someone else by
    writing `<|im_end|>`. Everything between two special tokens is tokenised as one text, as it was in training, whether
    it comes from a message, from the template or from both.

    Raises:
        ValueError: there is no template, it refuses the messages, it writes a special token that the vocabulary lacks,
            or a character has no token.
    """
    if template is None:
        raise ValueError("this model has no chat template; give it a text to complete instead (--raw)")
    if allow_special:
        return _some(tokenizer.encode(template.render(messages, add_generation_prompt), allow_special=True))
    _check(messages)
    said = [message["content"] for message in messages], [*template.arguments.values()]
    for text in texts(said):
        tokenizer.check(text)
    ends = (template.tokens | {*END_TOKENS}).intersection(tokenizer.added_tokens)
    lacking = [name for name in template.tokens if not tokenizer.has_token(name)]
    names = {*tokenizer.special_tokens, *ends, *lacking}
    taken = "".join([template.used, *names, *tokenizer.added_tokens])
    (contents, given), originals = guard(said, names, taken)
    template = dataclasses.replace(template, arguments=dict(zip(template.arguments, given, strict=True)))
    guarded: list[Message] = [
        {"role": message["role"], "content": content}
        for message, content in zip(messages, contents, strict=True)
    ]
    token = _STAND_INS.set("".join(map(chr, originals)))
    try:
        rendered = template.render(guarded, add_generation_prompt)
    finally:
        _STAND_INS.reset(token)
    for name in lacking:
        if name in rendered:
            raise ValueError(
                f"the chat template writes the special token {values.shown(name)}, for which the vocabulary has no "
                "id; give the tokenizer's files their token, or take a template of this model (--chat-template)"
            )
    ids: list[int] = []
    for start, piece in tokenizer.pieces(rendered, allow_special=True):
        if isinstance(piece, int):
            ids.append(piece)
        else:
            ids.extend(tokenizer.encode(piece.translate(originals), plain=names, start=start))
    return _some(ids)


def _some(ids: list[int]) -> list[int]:
    if not ids:
        raise ValueError(
            "the chat template makes no text of this conversation; give it a text instead (--raw)"
        )
    return ids


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("expected at least one message, got none")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(
                f"message {i}: expected an object with exactly role and content, got {values.shown(message)}"
            )
        for field, value in message.items():
            if not isinstance(value, str):
                raise ValueError(f"message {i}: expected {field} to be text, got {values.shown(value)}")
        # A role is part of the frame around the content: markup in it could complete a special token.
        if not re.fullmatch(r"[\w-]+", message["role"]):
            role = values.shown(message["role"])
            raise ValueError(f"message {i}: expected role to be one word, like user, got {role}")


# ----- what templates expect of jinja ---------------------------------------------------------------------


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, a mark for training: stands for what it contains."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _strftime(now: datetime.datetime | None, form: str) -> str:
    if len(form) > 200 or re.search(r"\d{3}", form):
        raise chat_sandbox.TooMuch("it writes the date in a form that is too long")
    return (now or datetime.datetime.now()).strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own, without the escapes that HTML needs."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    for stand_in in _STAND_INS.get() if ensure_ascii else "":
        escape = re.escape(json.dumps(stand_in)[1:-1])
        text = re.sub(rf"(?<!\\)((?:\\\\)*){escape}", rf"\1{stand_in}", text)
    return text


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


_OURS: tuple[list[type], dict[str, Callable[..., Any]]] = (
    [_GenerationBlock],
    {"tojson": _tojson, "raise_exception": _raise_exception},
)


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    return chat_sandbox.compiled(source, *_OURS)
