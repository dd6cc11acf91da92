"""What tests of the command line share: running it on the toy, typing to it, interrupting it."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from entropix.console import cli
from entropix.decoding.batching import ContinuousBatch
from entropix.main import main
from entropix.results import TokenEvent

# Thresholds amid what the toy's random weights give, so that there are several strategies.
MIXED = ("--low-vent-thresh", "2.3", "--high-ent-thresh", "7.1", "--high-vent-thresh", "2.6")


def stopped(n_tokens: int) -> str:
    """What is said of an answer that reached its limit."""
    return f"stopped after {n_tokens} tokens: max_new_tokens was reached\n"


STOPPED = stopped(12)


class Ended(NamedTuple):
    code: int | str | None
    out: str
    err: str


Command = Callable[..., Ended]


def on(folder: str, run_command: Callable[..., tuple[int, str, str]]) -> Command:
    """The command line in this process, on the weights in a folder; 12 tokens and seed 1 unless told otherwise."""

    def run(*args: str, weights: str | Path = folder) -> Ended:
        defaults = ("--weights", str(weights), "--seed", "1", "--max-new-tokens", "12")
        return Ended(*run_command(main, *defaults, *args))

    return run


def ending(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, with no flags of its own; it may end by `sys.exit`, as --help does."""

    def run(*args: str) -> Ended:
        capsys.readouterr()
        try:
            code: int | str | None = cli.run(lambda: main(args))
        except SystemExit as end:
            code = end.code
        return Ended(code, *capsys.readouterr())

    return run


def type_in(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, n_events: int) -> None:
    """The next generation meets a Ctrl-C after so many events; those after it run as usual."""
    usual = ContinuousBatch.run

    def run(*args: Any) -> Iterator[TokenEvent]:
        monkeypatch.setattr(ContinuousBatch, "run", usual)
        for number, event in enumerate(usual(*args)):
            if number == n_events:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(ContinuousBatch, "run", run)
