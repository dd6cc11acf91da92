"""Any number of prompts in a batch of few rows: a row that has ended takes the next prompt (continuous batching, Yu et
al. 2022, Orca).

Memory is that of the rows, an answer is that of its prompt alone, and no row waits for another to end.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from entropix import sharding
from entropix.config import BATCH_ROWS, GenerateConfig
from entropix.decoding.prefix_cache import COPIED_TOKENS, common_prefix
from entropix.decoding.records import token_record
from entropix.decoding.request import GenerationRequest, PromptRow
from entropix.decoding.session import Session
from entropix.decoding.state import StepRecord
from entropix.decoding.stream_text import RowText
from entropix.results import FinishReason, TokenEvent
from entropix.showing import shown

_MANY = 4  # from so many batches of prompts on it pays to compile smaller programs for the last rows


class Cost(NamedTuple):
    """What an answer took."""

    passes: int  # forward passes of decoding that its row took part in
    computed: int  # tokens, those of discarded paths and those taken back among them


class ContinuousBatch:
    """The prompts of a request in a batch of few rows, and those that are added while it runs.

    `run` gives the events of all of them; the row of an event is the number of its prompt.
    """

    complete: bool = True
    """Whether no more prompts will be added: then rows may leave the batch when the last ones have begun."""

    def __init__(
        self, request: GenerationRequest, most_rows: int = BATCH_ROWS, session: Session | None = None
    ) -> None:
        """most_rows: of the batch, at least 1. session: one whose cache is to be used, instead of a new one."""
        n_prompts = len(request.rows)
        self._session = session or Session(request.model, rows_of(request, most_rows, n_prompts))
        self._n_rows = self._session.n_rows
        self._shrinks = self._session.shrinks or n_prompts >= _MANY * self._n_rows
        self._request = request
        self._waiting: deque[_Waiting] = deque()
        self._answers: list[_Answer | None] = [None] * self._n_rows  # under way, by row
        self._n_added = self._n_computed = 0  # prompts; tokens of those that have ended
        self._earlier_passes = self._session.costs.n_passes
        self._costs: dict[int, Cost] = {}  # by number, of the prompts that have ended
        self.add(request)

    @property
    def n_passes(self) -> int:
        """Forward passes of decoding so far, each of the whole batch."""
        return self._session.costs.n_passes - self._earlier_passes

    @property
    def n_computed(self) -> int:
        """Tokens computed so far; see `Cost`."""
        running = [row for row, answer in enumerate(self._answers) if answer and not answer.text.ended]
        return self._n_computed + int(self._session.costs.computed_B[running].sum())

    def cost(self, number: int) -> Cost:
        """What the answer to a prompt took until now."""
        row = next((i for i, answer in enumerate(self._answers) if answer and answer.number == number), None)
        if number in self._costs or row is None:
            return self._costs.get(number, Cost(0, 0))
        costs = self._session.costs
        return Cost(int(costs.row_passes_B[row]), int(costs.computed_B[row]))

    def add(self, request: GenerationRequest, next_up: bool = False) -> range:
        """Prompts that wait for a row, of a request that differs from the first in its prompts alone. Returns their
        numbers. next_up: they come before those that wait."""
        numbers = range(self._n_added, self._n_added + len(request.rows))
        self._n_added = numbers.stop
        added = [*map(_Waiting, numbers, request.rows)]
        if next_up:
            self._waiting.extendleft(reversed(added))
        else:
            self._waiting.extend(added)
        return numbers

    def end(self, numbers: Collection[int]) -> None:
        """Ends these prompts without further events, whether they run or wait."""
        self._waiting = deque(one for one in self._waiting if one.number not in numbers)
        for row, answer in enumerate(self._answers):
            if answer is not None and answer.number in numbers:
                self._note_end(row)

    def run(self) -> Iterator[TokenEvent]:
        """All events."""
        session, cfg = self._session, self._request.config
        yield from self._begin()
        # Reading several prompts costs little more than reading one: up to an eighth of the rows wait for each other.
        enough = max(1, self._n_rows // 8)
        while session.running or self._waiting:
            if free := session.free if self._waiting else []:
                yield from self._seat(free)
                continue  # a first token may have ended an answer
            session.shrinks = self._shrinks and self.complete and not self._waiting
            chunk = session.advance(_until_next_look(cfg, self._age()), enough if self._waiting else None)
            for row, answer in enumerate(self._answers):
                for event in () if answer is None else answer.events(self._request, row, chunk):
                    if event.finish != FinishReason.RUNNING:
                        self._note_end(row)
                    yield event
            self._let_go()

    def _begin(self) -> Iterator[TokenEvent]:
        """Fills all rows; those that are lacking repeat the last prompt and end at once."""
        self._read_beginning()
        first = self._next(self._n_rows)
        filled = [*first, *first[-1:] * (self._n_rows - len(first))]
        self._session.start(self._request_of(filled))
        if spare := range(len(first), self._n_rows):
            self._session.end(spare, FinishReason.INTERRUPTED)
        yield from self._open(range(len(first)), first)

    def _read_beginning(self) -> None:
        """Reads what all prompts begin with, such as worked examples, once for all of them, if it is much."""
        if not self._session.is_empty or self._n_rows == 1:
            return
        prompts = [one.row.ids for one in self._waiting]
        first, last = min(prompts), max(prompts)  # no others have less in common
        n = min(common_prefix(first, last), min(map(len, prompts)) - 1)
        if self._request.model.config.rope_length(max(map(len, prompts))):
            return  # some are read with other rotary frequencies than such a beginning
        if n >= (COPIED_TOKENS if first != last else 1):
            self._session.share(first[:n])

    def _seat(self, free: Sequence[int]) -> Iterator[TokenEvent]:
        """Gives rows that have ended the prompts that have waited longest."""
        seated = self._next(len(free))
        rows = free[: len(seated)]
        self._session.refill(rows, self._request_of(seated))
        yield from self._open(rows, seated)

    def _open(self, rows: Sequence[int], seated: Sequence["_Waiting"]) -> Iterator[TokenEvent]:
        """The answers to these prompts begin; their first events are those of tokens that are given."""
        for row, one in zip(rows, seated, strict=True):
            self._answers[row] = _Answer(one.number, RowText(self._request))
        for row, (_, prompt) in zip(rows, seated, strict=True):
            answer = self._answers[row]
            if prompt.n_forced and answer is not None and not answer.text.ended:
                event = answer.open(prompt.ids[-prompt.n_forced :])
                if answer.text.ended:
                    self._note_end(row)
                yield event
        self._let_go()

    def _note_end(self, row: int) -> None:
        """An answer has ended; its row is free after the chunk."""
        answer = self._answers[row]
        assert answer is not None
        answer.text.ended = True
        self._costs[answer.number] = self.cost(answer.number)
        self._n_computed += self._costs[answer.number].computed

    def _let_go(self) -> None:
        """Frees the rows of answers that have ended, on the device too."""
        ended = [row for row, answer in enumerate(self._answers) if answer is not None and answer.text.ended]
        self._session.end(ended)
        for row in ended:
            self._answers[row] = None

    def _next(self, most: int) -> list["_Waiting"]:
        """Those that have waited longest."""
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _request_of(self, seated: Sequence["_Waiting"]) -> GenerationRequest:
        """The request of these prompts alone."""
        return dataclasses.replace(self._request, rows=tuple(one.row for one in seated))

    def _age(self) -> int:
        """Tokens of the answers under way, on average."""
        ages = [answer.n_tokens for answer in self._answers if answer is not None]
        return sum(ages) // max(1, len(ages))


def rows_of(request: GenerationRequest, most_rows: int, n_prompts: int) -> int:
    """Rows of a batch for so many prompts: at most `most_rows`, and as many for each group of devices with rows of its
    own. Raises a ValueError for none."""
    if not isinstance(most_rows, int | np.integer) or isinstance(most_rows, bool):
        raise ValueError(f"batch_size must be a whole number, got {shown(most_rows)}")
    if most_rows < 1:
        raise ValueError(f"a batch needs at least one row, got {most_rows}")
    groups = sharding.groups(request.model.mesh)
    return groups * math.ceil(min(n_prompts, most_rows) / groups)


class _Waiting(NamedTuple):
    """A prompt whose turn has not come."""

    number: int
    row: PromptRow


class _Answer:
    """An answer under way."""

    def __init__(self, number: int, text: RowText) -> None:
        self.number, self.text = number, text
        self.n_tokens = 0

    def open(self, given: Sequence[int]) -> TokenEvent:
        """What is there before the first token is drawn, which may be a stop string already."""
        text = ""
        for token in given:
            piece, self.text.ended = self.text.push(token)
            text += piece
            if self.text.ended:
                return TokenEvent(self.number, text, None, FinishReason.STOP_STRING)
        return TokenEvent(self.number, text, None, FinishReason.RUNNING)

    def events(self, request: GenerationRequest, row: int, chunk: StepRecord) -> Iterator[TokenEvent]:
        """Those of one chunk, records `[tokens, B, ...]`."""
        text = self.text
        for i in range(len(chunk.token_B)):
            finish = FinishReason(int(chunk.finish_B[i, row]))
            record = token_record(request, chunk, i, row) if chunk.live_B[i, row] else None
            self.n_tokens += record is not None
            for settled, ending in text.settle(record, finish):
                if text.ended:
                    return
                piece, found = "", False
                if settled is not None and ending != FinishReason.STOP_TOKEN:
                    piece, found = text.push(settled["id"])
                if ending != FinishReason.RUNNING and not found:
                    rest, found = text.flush()
                    piece += rest
                ending = FinishReason.STOP_STRING if found else ending
                text.ended = ending != FinishReason.RUNNING
                yield TokenEvent(self.number, piece, settled, ending)
            if finish == FinishReason.BACKTRACKING:
                return


def _until_next_look(cfg: GenerateConfig, age: int) -> int:
    """Steps of the next chunk. What a row computes past a stop string is lost: 3 tokens, or a quarter of its text."""
    return min(cfg.chunk_length, max(4, age // 4)) if cfg.stop else cfg.chunk_length
