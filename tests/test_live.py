"""The line below a streaming answer, on an emulated terminal."""

import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import commands
import pytest
from rich.color import ColorSystem
from screens import Terminal

from entropix.console import cli, live
from entropix.decoding.batching import ContinuousBatch
from entropix.main import main
from entropix.results import TokenEvent
from entropix.samplers.entropix import STRATEGIES

TRUE = ColorSystem.TRUECOLOR
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
PIECES = [*"abcdefgh   ", "\n", "\r\n", "é", "\n\n", "word "]


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened = []

    def open_terminal(columns: int = 60, rows: int = 12) -> Terminal:
        opened.append(Terminal(columns, rows))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def stream(screen: Terminal, pieces: list[str], bar: live.StatusLine) -> None:
    """As the command line does it, each piece a token."""
    for piece in pieces:
        bar.count("explore")
        bar.erase()
        screen.stream.write(piece)
        screen.stream.flush()
        bar.moved(piece)
        bar.draw(12.5)
        screen.read()
    bar.erase()


# ----- the bar on a screen ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "rows"), [(60, 12), (17, 5), (5, 3), (2, 2), (1, 1), (60, 1), (80, 7)])
def test_text_is_the_same_with_and_without_the_bar(
    terminal: Callable[..., Terminal], columns: int, rows: int
) -> None:
    """On wide and narrow windows, with wrapped lines, line ends and scrolling; 5 random texts each."""
    for seed in range(5):
        rng = random.Random(seed)
        pieces = ["".join(rng.choices(PIECES, k=rng.randrange(12))) for _ in range(60)]
        with_bar, without = terminal(columns, rows), terminal(columns, rows)
        stream(with_bar, pieces, live.StatusLine(with_bar.stream, STRATEGIES, TRUE))
        stream(without, pieces, live.StatusLine(None, STRATEGIES))
        assert with_bar.lines() == without.lines(), seed


@pytest.mark.parametrize("odd", ["e\u0301", "👩\u200d🔬", "\t", "\x07", "®"])
def test_after_what_terminals_show_differently_there_is_no_bar_until_the_next_line(
    terminal: Callable[..., Terminal], odd: str
) -> None:
    screen = terminal()
    bar = live.StatusLine(screen.stream, STRATEGIES)
    for piece, is_drawn in (("ab", True), (odd, False), ("cd", False), ("ef\n", True)):
        bar.erase()
        bar.moved(piece)
        bar.draw(None)
        screen.read()
        assert any("tokens" in line for line in screen.lines()) == is_drawn, piece


def test_the_bar_is_on_the_row_below_the_text(terminal: Callable[..., Terminal]) -> None:
    screen = terminal(60, 4)
    bar = live.StatusLine(screen.stream, STRATEGIES)
    for text, rows in (("one", 1), ("\ntwo", 2), ("\n" * 9 + "three", 11)):
        bar.erase()
        screen.stream.write(text)
        bar.moved(text)
        bar.count("flow")
        bar.draw(2.0)
        lines = screen.lines()
        assert len(lines) == rows + 1
        assert lines[-2].endswith(text.strip("\n")) and "tokens, 2.0 tokens/s" in lines[-1]
    bar.erase()
    assert screen.lines() == ["one", "two", *[""] * 8, "three"]


def test_where_the_cursor_waits_at_the_edge_no_bar_is_drawn(terminal: Callable[..., Terminal]) -> None:
    screen = terminal(10, 6)
    bar = live.StatusLine(screen.stream, STRATEGIES)
    stream(screen, ["x" * 10], bar)
    assert screen.seen == {"", "x" * 10}
    stream(screen, ["y"], bar)
    assert screen.lines() == ["x" * 10, "y"] and "2 tokens," in {line[:9] for line in screen.seen}


def test_a_resized_window_has_a_bar_from_the_next_line_on(terminal: Callable[..., Terminal]) -> None:
    screen = terminal(60, 8)
    bar = live.StatusLine(screen.stream, STRATEGIES)
    stream(screen, ["some text"], bar)
    screen.resize(30, 8)
    screen.seen.clear()
    stream(screen, [" and more"], bar)
    assert not any("tokens" in line for line in screen.seen)
    stream(screen, ["\nand"], bar)
    assert any("tokens" in line for line in screen.seen)
    assert all(len(line) < 30 for line in screen.seen)
    assert screen.lines() == ["some text and more", "and"]


def test_without_text_the_bar_is_drawn_ten_times_a_second_at_most(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((1.0, 1.09, 1.11, 1.11))
    monkeypatch.setattr(live.time, "monotonic", lambda: next(times))
    screen = terminal()
    bar = live.StatusLine(screen.stream, STRATEGIES)
    for shown in ("1 tokens", "1 tokens", "3 tokens"):
        bar.count("flow")
        bar.draw(None)
        assert screen.lines()[-1].startswith(shown)


# ----- the cursor and the content ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "text", "end"),
    [
        (0, "", 0),
        (0, "abc", 3),
        (7, "abc", 10),
        (7, "abcd", 1),
        (10, "a", 1),
        (7, "你", 9),
        (9, "你", 2),
        (3, "a\n", 0),
        (3, "a\rbc", 2),
        (3, "a\x1b[Kb", None),
        (3, "😀", None),
        (None, "ab", None),
        (None, "ab\nc", 1),
    ],
)
def test_the_cursor_is_followed_over_text(start: int | None, text: str, end: int | None) -> None:
    """On ten columns."""
    assert live.advance(start, text, 10) == end


def test_the_line_has_tokens_speed_and_every_share_in_letters_and_numbers() -> None:
    counts = Counter({"flow": 1, "clarify": 0, "explore": 5, "resample": 2, "adaptive": 2})
    text = live.line(counts, STRATEGIES, 14.26, 200, TRUE)
    words = "flow 10%  clarify 0%  explore 50%  resample 20%  adaptive 20%"
    expected = f"10 tokens, 14.3 tokens/s  ffeeeeeeeeeerrrraaaa  {words}"
    assert ESCAPE.sub("", text) == expected
    assert live.line(counts, STRATEGIES, 14.26, 200, None) == expected
    assert "\x1b[38;2;255;255;255;48;2;0;114;178meeeeeeeeee\x1b[0m" in text
    for width in range(len(expected)):
        assert ESCAPE.sub("", live.line(counts, STRATEGIES, 14.26, width, TRUE)) == expected[:width]


def test_a_rule_with_one_strategy_has_no_shares() -> None:
    assert live.line(Counter(greedy=3), ("greedy",), None, 80, TRUE) == "3 tokens"


@pytest.mark.parametrize(
    ("counts", "cells"),
    [([1], [20]), ([1, 0], [20, 0]), ([1, 1, 1], [7, 7, 6]), ([999, 1], [20, 0]), ([13, 6, 1], [13, 6, 1])],
)
def test_shares_fill_the_bar(counts: list[int], cells: list[int]) -> None:
    assert live.shares(counts) == cells


# ----- the command ------------------------------------------------------------------------------------------


def run_on(screen: Terminal, monkeypatch: pytest.MonkeyPatch, toy_folder: str, *args: str) -> int:
    """The command with stdout and stderr on a terminal; its exit code."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    defaults = ("--weights", toy_folder, "--seed", "1", "--max-new-tokens", "40", "--ignore-stop-tokens")
    with monkeypatch.context() as patched, screen.reading():
        patched.setattr(sys, "stdout", screen.stream)
        patched.setattr(sys, "stderr", screen.stream)
        return cli.run(lambda: main([*defaults, *args]))


WORDS = [f"word{n} " if n % 9 else f"last{n}.\n\n" for n in range(1, 41)]


@pytest.fixture(autouse=True)
def words_for_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's own tokens are bytes, most of which terminals do not show; here the n-th becomes the n-th of WORDS."""
    usual = ContinuousBatch.run

    def run(*args: Any) -> Iterator[TokenEvent]:
        for word, event in zip(WORDS, usual(*args), strict=False):
            yield event._replace(text=word)

    monkeypatch.setattr(ContinuousBatch, "run", run)


@pytest.mark.parametrize("flags", [(), ("--no-live",)])
def test_the_whole_answer_is_on_the_final_screen(
    terminal: Callable[..., Terminal],
    monkeypatch: pytest.MonkeyPatch,
    toy_folder: str,
    flags: tuple[str, ...],
) -> None:
    screen, expected = terminal(40, 10), terminal(40, 10)
    code = run_on(screen, monkeypatch, toy_folder, "--prompt", "Why?", *flags)
    legend = screen.lines()[-2:]
    assert code == 0 and "flow " in legend[0] and "adaptive " in legend[1]
    expected.stream.write(f"seed: 1\n{''.join(WORDS)}\n{commands.stopped(40)}")
    assert screen.lines()[:-2] == expected.lines()
    assert (b"40 tokens, " in screen.written) == (not flags)


def test_a_metric_colours_the_answer_and_has_its_scale_below(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, toy_folder: str
) -> None:
    screen = terminal(70, 20)
    assert run_on(screen, monkeypatch, toy_folder, "--prompt", "Why?", "--color", "logits_entropy") == 0
    assert re.fullmatch(r"logits entropy  0 {26}8\+ bits", screen.lines()[-1])


def test_ctrl_c_leaves_the_answer_and_no_bar(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, toy_folder: str
) -> None:
    screen = terminal(200, 20)
    commands.interrupt_after(monkeypatch, 6)
    assert run_on(screen, monkeypatch, toy_folder, "--prompt", "Why?", "--color", "never") == 130
    lines = screen.lines()
    assert lines[-2:] == ["stopped after 6 tokens: it was interrupted", "interrupted"]
    assert "tokens" not in "".join(lines[:-2])
    assert b"6 tokens" in screen.written


def test_the_bar_is_there_and_goes_where_stdout_is_no_terminal(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, toy_folder: str, capsys: Any
) -> None:
    screen = terminal(200, 20)
    with monkeypatch.context() as patched, screen.reading():
        patched.setenv("TERM", "xterm-256color")
        patched.setattr(sys, "stderr", screen.stream)
        main(["--weights", toy_folder, "--prompt", "Why?", "--seed", "1", "--max-new-tokens", "8"])
    assert b"1 tokens" in screen.written
    assert screen.lines() == ["seed: 1", commands.stopped(8).strip()]
    assert capsys.readouterr().out == "".join(WORDS[:8]) + "\n"


def test_there_is_no_bar_where_stderr_is_no_terminal(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, toy_folder: str, capsys: Any
) -> None:
    screen = terminal(200, 20)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", screen.stream)
        with screen.reading():
            main(["--weights", toy_folder, "--prompt", "Why?", "--max-new-tokens", "8"])
    assert b"tokens" not in screen.written
    assert "\x1b" not in capsys.readouterr().err
