"""Signals that end a command: Ctrl-C, SIGTERM (the machine or the job is taken away), SIGHUP (its terminal is gone).

Whichever it is, what was computed so far is shown and written, and the exit code is 128 plus the signal's number, as
shells count it. A signal that was ignored when the command began, as in a shell's background jobs or under nohup, stays
ignored.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from entropix import distributed

Item = TypeVar("Item")
Handler = Callable[[int, FrameType | None], Any]
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(KeyboardInterrupt):
    """A signal has come that ends the command."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


_latest: int = signal.SIGINT


def ended() -> Ended:
    """The exception that tells of the latest signal which `until_signal` has met."""
    return Ended(_latest)


def _note(number: int) -> None:
    global _latest
    _latest = number


@contextlib.contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Within it these signals, but for those that are ignored, call the handler. Only a process's main thread has any.

    One of several processes hears Ctrl-C alone: it may wait for the others within a program, where no handler runs, and
    has to end there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {n: signal.getsignal(n) for n in (ENDING[:1] if distributed.is_joined() else ENDING)}
    heard = [n for n, before in usual.items() if before not in (signal.SIG_IGN, None)]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, usual[number])


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within it each of these signals raises `Ended`, as Ctrl-C raises KeyboardInterrupt by itself."""

    def end(number: int, frame: FrameType | None) -> None:
        _note(number)
        raise Ended(number)

    with _handled(end):
        yield


def until_signal(items: Iterator[Item]) -> Iterator[Item]:
    """The items up to such a signal, which interrupts waiting for one but nothing that is done with one."""
    _note(signal.SIGINT)
    pressed = waiting = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        _note(number)
        if waiting:
            raise Ended(number)

    with _handled(press):
        try:
            while not pressed:
                waiting = True
                item = next(items, _END)
                waiting = False
                if item is _END:
                    return
                yield item
        except KeyboardInterrupt:
            return


_END: Any = object()
