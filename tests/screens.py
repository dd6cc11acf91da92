"""A terminal to test with: a pseudo-terminal whose screen pyte keeps, history included."""

import fcntl
import os
import select
import struct
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pyte


class Terminal:
    """`stream` is what programs write to."""

    def __init__(self, columns: int, rows: int) -> None:
        self._master, self.slave = os.openpty()
        tty.setcbreak(self.slave)  # no echo; a line feed still returns the carriage
        self.resize(columns, rows)
        self.stream: TextIO = os.fdopen(self.slave, "w", encoding="utf-8", closefd=False)
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._feed = pyte.ByteStream(self._screen)
        self.written = bytearray()
        self.seen: set[str] = set()  # every line that was ever on the screen between two reads

    def resize(self, columns: int, rows: int) -> None:
        """For programs; the emulator's screen stays as it is."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds: float = 0) -> None:
        """Shows what was written since."""
        self.stream.flush()
        while select.select([self._master], [], [], seconds)[0]:
            data = os.read(self._master, 65536)
            self.written += data
            self._feed.feed(data)
            self.seen.update(line.rstrip() for line in self._screen.display)

    def lines(self) -> list[str]:
        """All lines from the first that scrolled away to the last that is not empty."""
        self.read()
        columns = range(self._screen.columns)
        history = ["".join(line[x].data for x in columns) for line in self._screen.history.top]
        lines = [line.rstrip() for line in (*history, *self._screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reads in the background, so that a program that writes much does not wait."""
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                self.read(0.01)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        self.stream.close()
        os.close(self.slave)
        os.close(self._master)
