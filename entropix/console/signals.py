"""Signals that end a command: Ctrl-C, SIGTERM (the machine or the job is taken away), SIGHUP (its terminal is gone).

Whichever it is, what was computed so far is shown and written, and the exit code is 128 plus the signal's number, as
shells count it. A signal that was ignored when the command began, as in a shell's background jobs or under nohup, stays
ignored.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
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


_SWALLOWING = "_xla_gc_callback"  # JAX's, at every collection; Python drops what is raised in such a one
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


def _loads_an_extension(frame: FrameType | None) -> bool:
    """Whether an extension is being imported, which takes an exception for a fault of its own, or crashes of it."""
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within it each of these signals raises `Ended`, as Ctrl-C raises KeyboardInterrupt by itself."""

    def end(number: int, frame: FrameType | None) -> None:
        _note(number)
        if _loads_an_extension(frame):
            os.write(2, b"interrupted\n")  # sys.stderr may be in use, JAX half there
            os._exit(128 + number)
        if frame is not None and frame.f_code.co_name == _SWALLOWING:
            main = threading.main_thread().ident  # once more, a little later, also where it waits
            threading.Timer(0.01, signal.pthread_kill, (main, number)).start()
            return
        raise Ended(number)

    with _handled(end):
        yield


def give_back() -> None:
    """Lets signals other than Ctrl-C end the process as they do by themselves: one of several processes may wait for
    the others where no handler runs."""
    for number in ENDING[1:]:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


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
