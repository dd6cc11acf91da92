"""A line below the answer while it comes: which strategies chose its tokens, how many tokens there are, how fast.

The line is never part of the text: before text is written, all below the cursor is erased; afterwards the line is drawn
again on the row below and the cursor goes back to where it was. Nothing else of the terminal is touched, so that a
process that is killed, stopped or resized leaves at most a stray line. At the last column of a row a terminal's cursor
waits for the next character in a way that moving it would end; there, and wherever it is not known on which column the
cursor is, no line is drawn.
"""

import contextlib
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.style import Style

from entropix import metric_labels
from entropix.console import coloring

_CELLS = 20  # of the bar
_PAUSE = 0.1  # seconds between two drawings without text in between
_ERASE = "\x1b[J"  # from the cursor to the end of the screen
_MAKE_ROOM = "\x1bD\x1b[A"  # down, scrolling on the last row, and up again, in the same column
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_NEXT_ROW = "\x1b[B\r"


class StatusLine:
    """Draws the line on a terminal. Whoever writes text there calls `erase` before and `moved` after it."""

    def __init__(
        self, stream: TextIO | None, strategies: Sequence[str], system: ColorSystem | None = None
    ) -> None:
        """stream: the terminal; None for no line at all, whose methods then do nothing."""
        self._stream, self._strategies, self._system = stream, strategies, system
        self._counts = Counter(dict.fromkeys(strategies, 0))
        self._column: int | None = 0
        self._columns = self._width()
        self._is_shown = False
        self._next_time = 0.0

    def count(self, strategy: str) -> None:
        """Notes a token."""
        self._counts[strategy] += 1

    def erase(self) -> None:
        """Makes room for text."""
        if self._is_shown:
            self._write(_ERASE)
            self._is_shown = False

    def moved(self, text: str) -> None:
        """Follows the cursor over text that was written, without codes for colours."""
        self._column = advance(self._column, text, self._columns)

    def draw(self, tokens_per_second: float | None) -> None:
        """Shows how things stand, unless they were shown just now."""
        if self._stream is None or (self._is_shown and time.monotonic() < self._next_time):
            return
        if (columns := self._width()) != self._columns:  # the text was wrapped anew, who knows how
            self.erase()
            self._columns, self._column = columns, None
        if self._column is None or self._column >= columns:
            return
        content = line(self._counts, self._strategies, tokens_per_second, columns - 1, self._system)
        self._write(_ERASE + _MAKE_ROOM + _SAVE + _NEXT_ROW + content + _RESTORE)
        self._is_shown = True
        self._next_time = time.monotonic() + _PAUSE

    def _width(self) -> int:
        """Columns of the terminal; 0, where nothing is drawn, if that is not known or if there is no row below."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if self._stream is not None:
                columns, rows = os.get_terminal_size(self._stream.fileno())
                return columns if rows > 1 else 0
        return 0

    def _write(self, codes: str) -> None:
        assert self._stream is not None
        self._stream.write(codes)
        self._stream.flush()


def advance(column: int | None, text: str, columns: int) -> int | None:
    """The cursor's column after text from `column` on; `columns` itself where it waits at the end of a row.

    None if terminals differ about that: after characters that are no letters, and after emoji and marks, up to the end
    of the line.
    """
    for character in text:
        if character in "\r\n":
            column = 0
        elif column is None:
            continue
        elif not character.isprintable() or unicodedata.category(character) in ("Mn", "Me", "Mc", "So", "Sk"):
            column = None
        else:
            cells = cell_len(character)
            column = column + cells if column + cells <= columns else cells
    return column


def line(
    counts: Counter[str],
    strategies: Sequence[str],
    tokens_per_second: float | None,
    width: int,
    system: ColorSystem | None,
) -> str:
    """How many tokens, how fast, and, of a sampler with several strategies, their shares as a bar and in words.

    The bar has a strategy's initial on its colour. What does not fit into `width` is left out.
    """
    total = counts.total()
    speed = "" if tokens_per_second is None else f", {tokens_per_second:.1f} tokens/s"
    parts = [(f"{total} tokens{speed}", Style())]
    if len(strategies) > 1 and total:
        parts.append(("  ", Style()))
        for name, cells in zip(strategies, shares([counts[name] for name in strategies]), strict=True):
            behind = Color.parse(metric_labels.strategy_color(name, strategies))
            parts.append((name[0] * cells, coloring.on(behind, system)))
        for name in strategies:
            style = coloring.strategy_style(name, strategies, system)
            parts += [("  ", Style()), (f"{name} {counts[name] / total:.0%}", style)]
    shown = ""
    for text, style in parts:
        shown += coloring.paint(text[:width], style, system)
        width -= len(text[:width])
    return shown


def shares(counts: Sequence[int]) -> list[int]:
    """The bar's cells for counts that are not all 0: in proportion, rounded by largest remainder."""
    quotas = [_CELLS * count / sum(counts) for count in counts]
    cells = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda i: cells[i] - quotas[i])
    for i in by_remainder[: _CELLS - sum(cells)]:
        cells[i] += 1
    return cells
