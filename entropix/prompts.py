"""Prompts from files and standard input: plain text, a prompt a line, or JSON lines."""

import json
import operator
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypedDict

from entropix.files import decode_utf8, read_text
from entropix.showing import shown as short


class Message(TypedDict):
    """One turn. `role` is a word that the template knows, usually `system`, `user` or `assistant`."""

    role: str
    content: str


PromptText = str | list[Message]  # what a user says, or a conversation so far


def from_stdin() -> str:
    """All of standard input as one prompt, without the line's end that closes it."""
    return decode_utf8(sys.stdin.buffer.read(), "standard input").removesuffix("\n").removesuffix("\r")


def from_file(path: str | Path, system: str | None = None, raw: bool = False) -> list[PromptText]:
    """The prompts in a file: one a line or, if its name ends in .jsonl, `{"prompt": "..."}` or
    `{"messages": [...]}` a line. Empty lines are left out.

    Raises a ValueError that names file and line for what is no prompt, and for a conversation where `raw` or a
    `system` message is wanted, which apply to texts alone.
    """
    path = Path(path)
    text = read_text(path)
    lines = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: there is no prompt in this file")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    prompts = [_parse(line, f"{path}: line {n}") for n, line in lines]
    for (n, _), prompt in zip(lines, prompts, strict=True):
        if not isinstance(prompt, str) and (raw or system is not None):
            raise ValueError(f"{path}: line {n} is a conversation, to which --raw and --system do not apply")
    return prompts


def text_from_file(path: str | Path) -> str:
    """The whole of a file as one text. Raises a ValueError that names it where there is none in it."""
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path}: there is no text in this file")
    return text


def texts_from_files(paths: Sequence[str]) -> list[str]:
    """The texts of several files: each one text or, if its name ends in .jsonl, `{"text": "..."}` a line.

    Raises a ValueError that names file and line for what is no text.
    """
    texts = []
    for path in paths:
        whole = text_from_file(path)
        if Path(path).suffix != ".jsonl":
            texts.append(whole)
            continue
        lines = [(n, line) for n, line in enumerate(whole.split("\n"), start=1) if line.strip()]
        for n, line in lines:
            value = _json(line, f"{path}: line {n}")
            text = value.get("text") if isinstance(value, dict) else None
            if not isinstance(text, str) or not text:
                raise ValueError(f'{path}: line {n}: expected {{"text": "..."}}, got {line[:80]}')
            texts.append(text)
    return texts


def listed(several: Any) -> list[Any] | None:
    """What is in a sequence or, along its first axis, in an array.

    None for what only seems to be one: bytes, mappings and sets, whose items are numbers or names by chance, and data
    frames, whose items are the names of their columns.
    """
    if isinstance(several, str | bytes | bytearray | memoryview | Mapping | Set):
        return None
    try:
        items = list(several)
    except TypeError:  # of no items, or an array without an axis
        return None
    axes = getattr(several, "ndim", 1)
    is_table = axes > 1 and any(getattr(item, "ndim", 0) != axes - 1 for item in items[:1])
    return None if is_table else items


def token_ids(
    tokens: Any, what: str, kinds: str = "a text, a list of messages, or a sequence of token ids"
) -> list[int]:
    """Token ids as a list of Python's integers, of whatever sequence or array of integers. Raises a ValueError that
    says that `what` must be one of these kinds for anything else, also for true and false."""
    items = listed(tokens)
    try:
        if items is None or any(isinstance(item, bool) for item in items):
            raise TypeError
        return [operator.index(item) for item in items]
    except TypeError:
        raise ValueError(f"{what} must be {kinds}, which are integers; got {short(tokens)}") from None


def check_flag(name: str, value: Any) -> None:
    """Raises a ValueError for what is neither true nor false: any text would count as true, "no" among them."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {short(value)}")


def shown(prompt: PromptText) -> str:
    """A prompt, or the last message of a conversation, as people see it."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _parse(line: str, where: str) -> PromptText:
    """The prompt in a line of a .jsonl file."""
    value = _json(line, where)
    found = [key for key in ("prompt", "messages") if isinstance(value, dict) and key in value]
    if len(found) != 1:
        raise ValueError(f'{where}: expected {{"prompt": "..."}} or {{"messages": [...]}}, got {line[:80]}')
    prompt = value[found[0]]
    if found == ["prompt"] and not isinstance(prompt, str):
        raise ValueError(f"{where}: prompt must be a string, got {prompt!r}")
    if found == ["messages"] and not _is_conversation(prompt):
        raise ValueError(f'{where}: messages must be a list of {{"role": "...", "content": "..."}}')
    if not prompt:
        raise ValueError(f"{where}: the prompt is empty")
    return prompt


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # none, numbers of thousands of digits, too many brackets
        raise ValueError(f"{where}: not JSON ({error})") from None


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )
