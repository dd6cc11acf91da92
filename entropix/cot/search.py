"""The paths of several prompts as they come, in one batch of few rows; `parallel` chooses among them.

A path is a row beside others: one that has ended makes room for the next, of its prompt or of another. What a row draws
depends on its seed and its text, so that a path is the same whatever stands beside it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from entropix.cot.plan import START, Plan
from entropix.cot.prompt_paths import Branch, PathState, PromptPaths
from entropix.decoding.batching import ContinuousBatch, rows_of
from entropix.decoding.request import GenerationRequest
from entropix.decoding.session import Session
from entropix.results import FinishReason, Result, TokenEvent, add


class _Row(NamedTuple):
    """What a row of the batch is busy with."""

    prompt: int  # its number
    path: PathState
    tells_first: bool = False  # it is there for its first token's alternatives


class Search:
    """All paths of some prompts.

    `events` decodes them; the paths stand in `prompts`, of which `is_done` tells when they are all there, and `end`
    closes them when there are no more events, also before their time.
    """

    def __init__(self, request: GenerationRequest, plan: Plan, most_rows: int) -> None:
        """most_rows: of the batch, at least 1."""
        n_prompts = len(request.rows)
        self.plan = plan
        # A prompt that comes twice has the same paths twice, unless it was told to draw as a later one.
        told = request.config.occurrences or [0] * n_prompts
        request = request.with_each(occurrence=told)
        self.prompts = [PromptPaths(request.of_rows([i]), plan) for i in range(n_prompts)]
        n_rows = rows_of(request, most_rows, n_prompts * plan.paths)
        self._batch = ContinuousBatch(
            request.of_rows([]), session=Session(request.model, n_rows, shrinks=True)
        )
        self._rows: dict[int, _Row] = {}  # of answers that have not ended, by their number in the batch
        self._n_left = [0] * n_prompts  # such answers of each prompt
        for number, paths in enumerate(self.prompts):
            if plan.fork == START:
                self._read_first_token(number)
            else:
                self._continue(number, paths.beginnings())
        # Until its first path, or its first token, is there, a prompt has more paths to add.
        self._n_growing = n_prompts if plan.grows or plan.fork == START else 0
        self._batch.complete = self._n_growing == 0

    @property
    def n_passes(self) -> int:
        """Forward passes of decoding so far, each of the whole batch."""
        return self._batch.n_passes

    def is_done(self, number: int) -> bool:
        """Whether all paths of a prompt have ended."""
        return self._n_left[number] == 0

    def events(self) -> Iterator[TokenEvent]:
        """Decodes all paths. The row of an event is its prompt's number."""
        for event in self._batch.run():
            if event.row not in self._rows:
                continue  # a vote that was decided in the same chunk has ended it
            row = self._rows[event.row]
            add([row.path.result], event._replace(row=0))
            if event.finish != FinishReason.RUNNING:
                self._close(event.row)
                self._go_on(row)
            yield event._replace(row=row.prompt)

    def end(self) -> None:
        """Closes what is still open: paths that were running are interrupted, and a prompt without a path gets one."""
        for answer in [*self._rows]:
            self._close(answer)
        for paths in self.prompts:
            if not paths.paths:
                paths.paths.append(_ended(paths, Result(paths.prompt)))

    def _go_on(self, row: _Row) -> None:
        """What follows from the end of a path."""
        number, path, tells_first = row
        paths = self.prompts[number]
        if tells_first:
            self._n_growing -= 1
            if path.result.records:
                branches = paths.from_first_tokens(path.result.records[0])
                self._continue(number, branches, next_up=True)
            else:
                paths.paths.append(path)
        elif self.plan.grows and path is paths.paths[0]:
            self._n_growing -= 1
            self._continue(number, paths.further(), next_up=True)
        elif paths.may_stop():
            paths.decided = True
            rest = [answer for answer, row in self._rows.items() if row.prompt == number]
            self._batch.end(rest)
            for answer in rest:
                self._close(answer)
        self._batch.complete = self._n_growing == 0

    def _read_first_token(self, number: int) -> None:
        """One step of the sampler tells the most likely tokens; what it draws is not used."""
        paths = self.prompts[number]
        [answer] = self._batch.add(paths.request.with_each(most_tokens=[1]))
        first = PathState(Branch([], paths.seed), Result(paths.prompt))
        self._rows[answer] = _Row(number, first, tells_first=True)
        self._n_left[number] += 1

    def _continue(self, number: int, branches: Sequence[Branch], next_up: bool = False) -> None:
        """Continues paths of a prompt. next_up: before those of later prompts begin."""
        if not branches:
            return
        paths = self.prompts[number]
        answers = self._batch.add(paths.request_of(branches), next_up)
        for answer, path in zip(answers, paths.begin(branches), strict=True):
            self._rows[answer] = _Row(number, path)
        self._n_left[number] += len(branches)

    def _close(self, answer: int) -> None:
        """A path has ended, or ends now."""
        number, path, _ = self._rows.pop(answer)
        path.note_cost(self._batch.cost(answer))
        path.result.finish = path.result.finish or FinishReason.INTERRUPTED
        self._n_left[number] -= 1


def _ended(paths: PromptPaths, result: Result) -> PathState:
    """A path that was ended before it began."""
    result.finish = FinishReason.INTERRUPTED
    return PathState(Branch([], paths.seed), result)
