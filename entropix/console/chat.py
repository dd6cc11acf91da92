"""A conversation on the command line: `--chat`."""

import contextlib
import dataclasses
import difflib
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from entropix import config, files, samplers, tables, trace
from entropix.checkpoint.loading import Model
from entropix.console import signals, terminal
from entropix.console.terminal import Show, note
from entropix.decoding.request import GenerationRequest
from entropix.decoding.session import Session
from entropix.generation import prepare
from entropix.prompts import Message
from entropix.results import FinishReason, Result


@dataclass(frozen=True)
class Turn:
    """What the user said, and what came of it."""

    said: str
    request: GenerationRequest
    result: Result


@dataclass
class Chat:
    """A conversation under way. options: those of `generation.prepare`."""

    model: Model
    options: dict[str, Any]
    show: Show
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._session = Session(self.model, 1)

    def messages(self, asked: str | None = None) -> list[Message]:
        """All of it so far, and what is asked now."""
        said: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            said.append({"role": "user", "content": turn.said})
            said.append({"role": "assistant", "content": turn.result.text})
        return said if asked is None else [*said, {"role": "user", "content": asked}]

    def answer(self, said: str) -> None:
        """One more turn. One that cannot be answered, being too long, say, does not count.

        The cache is kept from turn to turn; after a Ctrl-C it is computed anew, since it may have been torn.
        """
        try:
            request = prepare(self.model, self.messages(said), **self.options)
            [result] = terminal.answer(
                request, dataclasses.replace(self.show, trace=None, table=None), self._session
            )
        except ValueError as error:
            note(f"error: {error}; this turn does not count")
            return
        self.turns.append(Turn(said, request, result))
        if result.finish == FinishReason.INTERRUPTED:
            if signals.ended().number != signal.SIGINT:
                raise signals.ended()
            self._session = Session(self.model, 1)

    def write(self) -> None:
        """The trace and the table that are wanted, if there was a turn: one row of a trace a turn."""
        if self.show.table is not None and self.turns:
            tables.write(self.show.table, tables.tokens([turn.result for turn in self.turns]))
        if self.show.trace is not None and self.turns:
            rows = tuple(row for turn in self.turns for row in turn.request.rows)
            whole = dataclasses.replace(self.turns[-1].request, rows=rows)
            trace.write(self.show.trace, whole, [turn.result for turn in self.turns], turns=True)

    # ----- commands: each takes what follows its name, and raises a ValueError that says what is wrong --------

    def help(self, _: str) -> None:
        """this list"""
        for name, command in COMMANDS.items():
            note(f"/{name:8} {command.__doc__}")
        note("A line that begins with a slash and is no command is written with two.")

    def undo(self, _: str) -> None:
        """takes the last turn back"""
        self._last()
        said = self.turns.pop().said
        note(f"taken back: {said}")

    def retry(self, _: str) -> None:
        """answers the last turn again, with the next seed"""
        self._untraced("seed")
        said = self._last().said
        self.turns.pop()
        self.options["seed"] = (self.options["seed"] + 1) % 2**32
        note(f"seed: {self.options['seed']}")
        self.answer(said)

    def save(self, words: str) -> None:
        """FILE.jsonl: writes the conversation there, as --prompt-file reads it"""
        if not words.endswith(".jsonl"):
            raise ValueError("/save needs the name of a .jsonl file")
        line = json.dumps({"messages": self.messages()}, ensure_ascii=False) + "\n"
        files.write_text(words, [line], "a conversation")
        note(f"{words}: {len(self.turns)} turns")

    def set_system(self, words: str) -> None:
        """TEXT: the system message from now on; without a text, none"""
        self.system = words or None

    def set_sampler(self, words: str) -> None:
        """NAME: draws with another preset, .toml file or rule from now on"""
        self._untraced("sampler")
        if not words:
            raise ValueError("/sampler needs a name; `--sampler help` lists them")
        chosen = samplers.resolve(words)
        before = self.options["sampler"]
        for name, kind in config.LOOKING.items():
            # What the flags did not say otherwise goes with the preset that said it.
            if name in self.options and self.options[name] == (getattr(before, name) or kind()):
                del self.options[name]
        self.options["sampler"] = chosen

    def _last(self) -> Turn:
        if not self.turns:
            raise ValueError("there is no turn yet")
        return self.turns[-1]

    def _untraced(self, what: str) -> None:
        if self.show.trace is not None:
            raise ValueError(f"a trace has one {what}; leave out --trace to change it")


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "help": Chat.help,
    "undo": Chat.undo,
    "retry": Chat.retry,
    "save": Chat.save,
    "system": Chat.set_system,
    "sampler": Chat.set_sampler,
}
_ENDS = ("/exit", "/quit")


def chat(model: Model, system: str | None, options: dict[str, Any], show: Show) -> None:
    """A conversation, line by line from stdin, until /exit, /quit or its end.

    Ctrl-C stops an answer, or, while the user is asked, the conversation. Lines that begin with a slash are commands.
    """
    if model.chat_template is None:
        raise ValueError(
            f"{model.folder} has no chat template, so there is no --chat; --prompt continues plain text"
        )
    conversation = Chat(model, dict(options), show, system)
    note(f"seed: {options['seed']}")
    note(f"chatting with {model.name}; /help lists commands, /exit or Ctrl-D ends, Ctrl-C stops an answer")
    try:
        with signals.raising():
            while (line := _next_line()) is not None:
                obey(conversation, line)
    finally:
        conversation.write()


def obey(conversation: Chat, line: str) -> None:
    """Answers a line, or does what it commands."""
    if not line.startswith("/") or line.startswith("//"):
        conversation.answer(line[1:] if line.startswith("//") else line)
        return
    name, _, words = line[1:].partition(" ")
    if (command := COMMANDS.get(name)) is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        note(
            f"error: there is no command /{name}; {f'did you mean /{near[0]}?' if near else '/help lists them'}"
        )
        return
    try:
        command(conversation, words.strip())
    except (ValueError, OSError) as error:
        note(f"error: {error}")


def _next_line() -> str | None:
    """What the user says next, which is no empty line; None for /exit, Ctrl-C and the end of stdin."""
    asking = sys.stdin.isatty() and sys.stdout.isatty()
    if asking:
        with contextlib.suppress(ImportError):  # there is none on Windows
            import readline  # noqa: F401 - line editing and history for input()
    while True:
        try:
            line = input("> " if asking else "").strip()
            line.encode()
        except UnicodeEncodeError:
            note("error: this line is not UTF-8; it does not count")
            continue
        except signals.Ended as end:
            if end.number != signal.SIGINT:
                raise
            line = "/exit"
        except (EOFError, KeyboardInterrupt):
            line = "/exit"
        if line in _ENDS:
            if asking:
                note("")
            return None
        if line:
            return line
