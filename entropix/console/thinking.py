"""The thinking with which the answers of reasoning models begin, left out of what is printed: `--hide-thinking`."""

from collections.abc import Iterable, Mapping
from typing import Any

OPEN, CLOSE = "<think>", "</think>"


class Thinking:
    """Splits an answer that comes in pieces, however they are cut.

    Thinking is what stands from OPEN, before which there is white space alone, to the first CLOSE; where the prompt
    has opened it, it is there from the first character on. Blank lines right after it are left out with it. All else
    is the answer, another OPEN included.
    """

    def __init__(self, prompt: str) -> None:
        """prompt: its text, or the end of it."""
        self.is_open = prompt.rstrip().endswith(OPEN)  # what comes next is thinking
        self.is_closed = False  # there was thinking, and it is over
        self._is_answer = False  # so is all that comes
        self._held = ""

    def push(self, piece: str) -> str:
        """What is certain to be answer, now that this has come too."""
        self._held += piece
        bare = self._held.lstrip()
        if not (self.is_open or self.is_closed or self._is_answer):
            if bare.startswith(OPEN):
                self.is_open, self._held = True, bare.removeprefix(OPEN)
            self._is_answer = not (self.is_open or OPEN.startswith(bare))
        if self.is_open:
            before, close, behind = self._held.partition(CLOSE)
            self.is_open, self.is_closed = not close, bool(close)
            self._held = behind if close else before[1 - len(CLOSE) :]
        bare = self._held.lstrip()
        if self.is_closed and not self._is_answer and bare:
            self._is_answer, self._held = True, self._held.removesuffix(bare).rpartition("\n")[2] + bare
        return self._release() if self._is_answer else ""

    def flush(self) -> str:
        """What is answer after all, when nothing more comes."""
        return "" if self.is_open or self.is_closed else self._release()

    def _release(self) -> str:
        text, self._held = self._held, ""
        return text


def told(thinking: Thinking, records: Iterable[Mapping[str, Any]]) -> str:
    """A note about thinking that is not shown: of how many tokens it is, its marks included, and whether the answer
    ended within it; "" where there is none. records: of the answer's tokens."""
    if not (thinking.is_open or thinking.is_closed):
        return ""
    n, end = 0, ""
    for record in records:
        n, end = n + 1, (end + record["text"])[-len(CLOSE) - len(record["text"]) :]
        if CLOSE in end:
            break
    ended = ", in which the answer ended" if thinking.is_open else ""
    return f"[thinking: {n} token{'s' * (n != 1)}{ended}]"
