"""What a reasoning model thinks is left out of what is printed, and stays in all that is recorded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folders
import pytest
from commands import STOPPED, Command, type_in

from entropix import trace
from entropix.console import terminal
from entropix.console.thinking import Thinking, told
from entropix.decoding.batching import ContinuousBatch
from entropix.results import TokenEvent

OPENED = folders.CHATML.replace("assistant\n", "assistant\n<think>\n")
CLOSED = OPENED.replace("<think>\n", "<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("prompt", "answer", "shown", "is_open", "is_closed"),
    [
        ("", "<think>\nWhy </thin?\n</think>\n\nFour.\n\n1 < 2", "Four.\n\n1 < 2", False, True),
        ("", " \n<think></think>Four.", "Four.", False, True),
        ("", "<think>a</think> \n\t\n    code\n  more", "    code\n  more", False, True),
        ("", "<think>a</think> Four <think>b</think>.", " Four <think>b</think>.", False, True),
        ("", "<think>a</think>\n \n", "", False, True),
        ("", "<think>a<", "", True, False),
        ("", "<think>", "", True, False),
        ("", "\n Four <think>, </think>.\n", "\n Four <think>, </think>.\n", False, False),
        ("", "\n <thi", "\n <thi", False, False),
        ("", "<thinking>", "<thinking>", False, False),
        ("assistant\n<think>\n", "Well <think>.\n</think>\n\nFour.", "Four.", False, True),
        ("assistant\n<think>\n", "Four.", "", True, False),
        ("assistant\n<think>\n\n</think>\n\n", "Four.", "Four.", False, False),
        ("", "", "", False, False),
    ],
)
def test_an_answer_is_split_alike_wherever_it_is_cut(
    prompt: str, answer: str, shown: str, is_open: bool, is_closed: bool
) -> None:
    for pieces in [[*answer], *([answer[:cut], answer[cut:]] for cut in range(len(answer) + 1))]:
        thinking, so_far = Thinking(prompt), ""
        for piece in pieces:
            so_far += thinking.push(piece)
            assert shown.startswith(so_far)
        assert so_far + thinking.flush() == shown
        assert (thinking.is_open, thinking.is_closed) == (is_open, is_closed)


@pytest.mark.parametrize(
    ("pieces", "note"),
    [
        (["<think>", "a", "b", "</think>", "\n", "Four"], "[thinking: 4 tokens]"),
        (["<th", "ink>a</", "think", ">Fo", "ur"], "[thinking: 4 tokens]"),
        (["<think>"], "[thinking: 1 token, in which the answer ended]"),
        (["Four"], ""),
    ],
)
def test_a_note_tells_of_how_many_tokens_it_is(pieces: list[str], note: str) -> None:
    thinking = Thinking("")
    thinking.push("".join(pieces))
    assert told(thinking, [{"text": piece} for piece in pieces]) == note


# ----- the command ------------------------------------------------------------------------------------------

SCRIPT = ["<th", "ink>", "\n", "2 + 2?", "</thi", "nk>", "\n", "\n", "  Fo", "ur", ".\n", "Yes."]
WHOLE = "".join(SCRIPT)
NOTE = "[thinking: 6 tokens]\n"
HIDE = "--hide-thinking"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the tokens of every answer, which a test may change."""
    pieces, usual = [*SCRIPT], ContinuousBatch.run

    def run(batch: ContinuousBatch) -> Iterator[TokenEvent]:
        count: dict[int, int] = {}
        for event in usual(batch):
            text = pieces[count.setdefault(event.row, 0)]
            count[event.row] += 1
            assert event.record is not None
            yield event._replace(text=text, record={**event.record, "text": text, "bytes": [*text.encode()]})

    monkeypatch.setattr(ContinuousBatch, "run", run)
    return pieces


def test_the_answer_alone_is_streamed_and_all_of_it_recorded(
    command: Command, script: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    assert command("--prompt", "Why?").out == f"{WHOLE}\n"
    assert command("--prompt", "Why?", HIDE, "--trace", str(path)) == (
        0, "  Four.\nYes.\n", f"seed: 1\n{NOTE}{STOPPED}",
    )  # fmt: skip
    assert trace.read(path).results[0].text == WHOLE
    ended = command("--prompt", "Why?", HIDE, "--json")
    assert json.loads(ended.out)["text"] == WHOLE and ended.err == f"seed: 1\n{STOPPED}"


def test_nothing_of_it_is_written_before_the_answer(
    command: Command, script: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(terminal, "_write", written.append)
    monkeypatch.setattr(terminal, "note", written.append)
    command("--prompt", "Why?", HIDE)
    assert written == ["seed: 1", NOTE[:-1], "  Fo", "ur", ".\n", "Yes.", "\n", STOPPED[:-1]]


def test_of_several_answers_each_has_its_note(command: Command, script: list[str], prompt_file: str) -> None:
    ended = command("--prompt-file", prompt_file, HIDE)
    assert ended.out == "==> prompt 1 <==\n  Four.\nYes.\n\n==> prompt 2 <==\n  Four.\nYes.\n"
    notes = [f"prompt {i}: {NOTE}" for i in (1, 2)] + [f"prompt {i}: {STOPPED}" for i in (1, 2)]
    assert ended.err == "".join(["seed: 1\n", *notes])


def test_an_answer_that_ends_within_says_so(command: Command, script: list[str]) -> None:
    script[5] = "!"
    ended = command("--prompt", "Why?", HIDE)
    assert ended == (0, "\n", f"seed: 1\n[thinking: 12 tokens, in which the answer ended]\n{STOPPED}")


def test_what_was_held_back_is_printed_in_the_end(command: Command, script: list[str]) -> None:
    script[:] = ["\n"] * 11 + ["<thi"]
    assert command("--prompt", "Why?", HIDE).out == "\n" * 11 + "<thi\n"


@pytest.mark.parametrize(("template", "shown"), [(OPENED, "Four."), (CLOSED, "2 + 2?</think>\n\nFour.")])
def test_a_prompt_may_have_opened_it(
    command: Command, script: list[str], tmp_path: Path, template: str, shown: str
) -> None:
    folder = folders.write_checkpoint(tmp_path / "toy", chat_template=template)
    script[:] = ["2 + 2?", "</think>", "\n\n", "Four.", *[""] * 8]
    ended = command("--prompt", "Why?", HIDE, weights=folder)
    assert ended.out == f"{shown}\n"
    assert ("[thinking: 2 tokens]" in ended.err) == (template == OPENED)


@pytest.mark.slow
def test_of_several_paths_the_chosen_one_is_printed_without(command: Command, script: list[str]) -> None:
    flags = ("--prompt", "Why?", "--best-of", "2", HIDE)
    ended = command(*flags)
    assert ended.out == "  Four.\nYes.\n" and ended.err.startswith(f"seed: 1\n{NOTE}")
    ended = command(*flags, "--json")
    assert json.loads(ended.out)["text"] == WHOLE and NOTE not in ended.err


def test_a_chat_gives_it_back_to_the_template(
    command: Command, script: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which leaves it out or not, as it is written."""
    source = folders.CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    folder = folders.write_checkpoint(tmp_path / "toy", chat_template=source)
    type_in(monkeypatch, "Hi\nAnd?\n")
    path = tmp_path / "t.jsonl"
    ended = command("--chat", HIDE, "--trace", str(path), weights=folder)
    assert ended.out == "  Four.\nYes.\n" * 2 and ended.err.count(NOTE) == 2
    told: Any = trace.read(path)
    assert [result.text for result in told.results] == [WHOLE, WHOLE]
    said = told.header["prompts"][1]["text"]
    assert "<|im_start|>assistant\n\n\n  Four.\nYes.<|im_end|>" in said and "2 + 2?" not in said
