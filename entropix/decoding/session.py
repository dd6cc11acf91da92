"""The host's half of decoding, for token ids: feeds prompts into a cache, launches chunks, reads back records."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from jax import Array

from entropix import sharding
from entropix.checkpoint.loading import Model
from entropix.decoding import backtracking, loop
from entropix.decoding.batch import ActiveRows, Costs, RowTokens
from entropix.decoding.inputs import batch_inputs, device_numbers, first_rows
from entropix.decoding.loop import RECENT_SLOTS
from entropix.decoding.prefix_cache import PrefixCache
from entropix.decoding.request import GenerationRequest, check_prompts
from entropix.decoding.state import BatchInputs, ChunkEnd, DecodeState, Program, RowState, StepRecord
from entropix.numerics import power_of_two
from entropix.results import FinishReason
from entropix.sharding import to_device

Args = ParamSpec("Args")
Out = TypeVar("Out")


def _on_mesh(
    method: Callable[Concatenate["Session", Args], Out],
) -> Callable[Concatenate["Session", Args], Out]:
    """The method, run where the model is."""

    @wraps(method)
    def run(self: "Session", *args: Args.args, **options: Args.kwargs) -> Out:
        with sharding.on(self._model.mesh):
            return method(self, *args, **options)

    return run


class _Run(NamedTuple):
    """A generation under way: what `loop.decode_chunk` takes, and what the host knows of it by itself."""

    inputs: BatchInputs
    state: DecodeState
    numbers: Any
    program: Program
    chunk_length: int  # steps, unless told otherwise
    n_back: int  # how many tokens a row takes back; 0 where none does
    tokens: RowTokens
    finish_B: np.ndarray  # the state's, known without waiting for a device


class Session:
    """A batch of rows with their cache.

    `start` feeds a prompt a row; `advance` generates a chunk, as long as `running`; `end` stops rows, and `refill`
    gives those that have ended another prompt. The cache is kept: a later prompt that begins with what a row's cache
    holds, like the next turn of a conversation, only computes what is new. `share` reads what all rows begin with.

    shrinks: rows that have ended leave the batch when at most half of it still runs. What is left is the next power of
    two, so that a batch of B compiles at most log2 B more programs for each capacity. Nobody outside sees it, but for
    what the caches of the rows that left held: it is computed anew if it is asked for again.
    """

    def __init__(self, model: Model, batch: int, shrinks: bool = False) -> None:
        self._model = model
        self.shrinks = shrinks
        self._active = ActiveRows(batch)
        self._cache = PrefixCache(model, batch)
        self._run: _Run | None = None
        self.costs = Costs(batch)

    @property
    def n_rows(self) -> int:
        """Of the whole batch."""
        return len(self.costs.computed_B)

    @property
    def is_empty(self) -> bool:
        """Whether no row holds anything."""
        return not any(self._cache.tokens)

    @property
    def running(self) -> bool:
        """Whether any row has not ended."""
        return self._run is not None and bool(np.any(self._run.finish_B == FinishReason.RUNNING))

    @_on_mesh
    def start(self, request: GenerationRequest) -> None:
        """Prefills all but the last token of every prompt, so that the first new token is a step like any other.

        Raises a ValueError for an empty prompt, one that leaves no room in the model's context, or one with tokens
        the model does not know, before any work is done.
        """
        prompts = request.prompt_ids
        assert len(prompts) == self.n_rows, (len(prompts), self.n_rows)
        check_prompts(prompts, self._model.config)
        self._flush()
        self._bring_back()
        self.costs.begin(len(prompts))
        self._cache.prefill([list(prompt[:-1]) for prompt in prompts])
        self._wait_for_simulated()
        tokens = RowTokens([prompt[-1] for prompt in prompts])
        rows = first_rows(request)
        self._run = _Run(
            inputs=batch_inputs(request),
            state=self._state(rows, tokens, request.program.n_draft),
            numbers=device_numbers(request.sampler_config),
            program=request.program,
            chunk_length=request.config.chunk_length,
            n_back=request.config.backtracking.tokens if rows.backtracks is not None else 0,
            tokens=tokens,
            finish_B=np.full(len(prompts), FinishReason.RUNNING, np.int32),
        )

    @property
    def free(self) -> list[int]:
        """The rows that have ended and are still in the batch."""
        ended = np.flatnonzero(self._current.finish_B != FinishReason.RUNNING)
        return [self._active.rows[place] for place in ended]

    @_on_mesh
    def refill(self, rows: Sequence[int], request: GenerationRequest) -> None:
        """Rows that are `free` take the prompts of a request that differs from the first one in its prompts alone."""
        self._commit()  # so that what other rows hold can be copied
        places, first, read = self._active.places(rows), 0, []
        for size in _sizes(len(rows), sharding.groups(self._model.mesh)):
            # The last one stands in for those that are lacking.
            members = [min(first + i, len(rows) - 1) for i in range(size)]
            some = request.of_rows(members)
            beside = self._cache.beside([list(prompt[:-1]) for prompt in some.prompt_ids])
            read.append(([places[i] for i in members], some, beside))
            first += size
        for where, some, beside in read:  # when all are read, since they may have been copied from these rows
            self._put(where, some, beside)
        self._cache.shorten()
        run = self._current
        text_BX = self._text(run.tokens, run.program.n_draft)
        self._run = run._replace(state=run.state._replace(text_BX=text_BX))
        self.costs.begin_rows(rows)

    def _put(self, places: Sequence[int], request: GenerationRequest, cache: PrefixCache) -> None:
        """Puts prompts that were read beside the batch into it."""
        run = self._taken()
        self._cache.put(places, cache)
        self._wait_for_simulated()
        tokens = RowTokens([prompt[-1] for prompt in request.prompt_ids])
        run.tokens.put(places, tokens)
        run.finish_B[[*places]] = FinishReason.RUNNING
        recent = loop.empty_recent(self._model.config, len(places), RECENT_SLOTS, self._model.dtype)
        place_K = to_device(places)
        of_rows = (run.state.rows, run.state.recent, run.inputs.by_row())
        new = (first_rows(request), recent, batch_inputs(request).by_row())
        rows, recent, by_row = loop.put_rows(of_rows, new, place_K)
        self._run = run._replace(
            state=run.state._replace(rows=rows, recent=recent), inputs=run.inputs._replace(**by_row)
        )

    @_on_mesh
    def advance(self, n_steps: int | None = None, n_ended: int | None = None) -> StepRecord:
        """More steps of the running rows, the request's `chunk_length` unless told: their records as numpy arrays
        `[tokens, B, ...]`.

        A chunk may be shorter: when `n_ended` rows have ended, by default all, or where the recent slots of a row are
        full. With drafts a step makes several tokens; `live_B` tells which of them are there.
        """
        if self.shrinks:
            self._shrink()
        run = self._taken()  # the state is donated
        state, buffer, done = loop.decode_chunk(
            self._model.weights,
            run.inputs,
            self._cache.kv,
            run.state,
            ChunkEnd(
                to_device(run.chunk_length if n_steps is None else n_steps),
                to_device(len(run.finish_B) if n_ended is None else n_ended),
            ),
            run.numbers,
            run.program,
        )
        filled: StepRecord = jax.tree.map(lambda leaf: leaf[: int(done)], jax.device_get(buffer))
        records = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), filled)
        run.tokens.follow(records, run.n_back)
        self.costs.add(filled, self._active.rows, run.program.branching)
        self._run = run._replace(state=state, finish_B=np.array(state.rows.finish_B))
        self._take_back()
        self._commit_if_full()
        return self._active.spread(records)

    @_on_mesh
    def end(self, rows: Iterable[int], reason: FinishReason = FinishReason.STOP_STRING) -> None:
        """Stops those of these rows that are still running."""
        run = self._current
        finish_B = run.finish_B.copy()
        running = [place for place in self._active.places(rows) if finish_B[place] == FinishReason.RUNNING]
        if not running:
            return
        finish_B[running] = reason
        ended = run.state.rows._replace(finish_B=to_device(finish_B))
        self._run = run._replace(state=run.state._replace(rows=ended), finish_B=finish_B)

    @_on_mesh
    def share(self, text: Sequence[int]) -> None:
        """Reads what all rows are going to begin with once for all of them. Ends the current run."""
        self._run = None
        self._active = ActiveRows(self.n_rows)
        self._cache = PrefixCache(self._model, 1)
        self._cache.prefill([list(text)])
        self._cache.share(self.n_rows)

    @property
    def _current(self) -> _Run:
        """The generation under way."""
        assert self._run is not None
        return self._run

    def _taken(self) -> _Run:
        """The generation under way, which is none until it is put back: an exception or an interrupt before that leaves
        nothing half changed."""
        run, self._run = self._current, None
        return run

    def _bring_back(self) -> None:
        """The whole batch once more, with nothing in the caches of the rows that had left."""
        if not self._active.all_here:
            places = self._active.places_of_all()
            self._cache.take(places)
            self._active = ActiveRows(len(places))

    def _shrink(self) -> None:
        """Lets rows that have ended leave, if at most half of the batch still runs."""
        run = self._current
        is_running = run.finish_B == FinishReason.RUNNING
        running, ended = np.flatnonzero(is_running), np.flatnonzero(~is_running)
        if not 0 < 2 * len(running) <= len(run.finish_B):
            return
        spare = power_of_two(len(running)) - len(running)
        places = sorted([*running.tolist(), *ended[:spare].tolist()])
        place_B = to_device(places)
        by_row = run.inputs.by_row()
        self._taken()
        self._cache.take(places)
        self._active.keep(places, run.finish_B)
        self._run = run._replace(
            inputs=run.inputs._replace(**loop.gather_rows(by_row, place_B)),
            state=loop.gather_rows(run.state, place_B),
            tokens=run.tokens.of(places),
            finish_B=run.finish_B[places],
        )

    def _take_back(self) -> None:
        """Takes back the newest tokens of the rows that wait for it."""
        run = self._current
        waiting = np.flatnonzero(run.finish_B == FinishReason.BACKTRACKING)
        if not len(waiting):
            return
        self._taken()
        rows = jax.tree.map(np.array, run.state.rows)
        used_B, length_B = np.array(run.state.recent.used_B), [len(held) for held in self._cache.tokens]
        for place in map(int, waiting):
            length_B[place], dropped, before = run.tokens.take_back(
                place, self._cache.tokens[place], run.n_back
            )
            used_B[place] = len(run.tokens.recent[place])
            rows.token_B[place] = run.tokens.newest[place]
            backtracking.go_back(rows, place, run.n_back, dropped, before)
        recent = run.state.recent._replace(used_B=to_device(used_B))
        rows_there = jax.tree.map(lambda leaf: to_device(leaf, leaf.dtype), rows)
        state = run.state._replace(rows=rows_there, recent=recent)
        self._cache.cut(length_B)
        self._run = run._replace(state=state, finish_B=rows.finish_B)

    def _commit_if_full(self) -> None:
        """Commits the recent tokens if a running row has no room for another step's."""
        run = self._current
        running = np.flatnonzero(run.finish_B == FinishReason.RUNNING)
        n_used = max((len(run.tokens.recent[place]) for place in running), default=0)
        if n_used + run.program.lookahead >= RECENT_SLOTS:
            self._commit()

    def _commit(self) -> None:
        """Moves the recent tokens into the cache and empties their slots."""
        run = self._taken()
        self._cache.append(run.state.recent, run.tokens.recent)
        run.tokens.recent = [[] for _ in run.tokens.recent]
        self._run = run._replace(state=self._state(run.state.rows, run.tokens, run.program.n_draft))

    def _state(self, rows: RowState, tokens: RowTokens, n_draft: int) -> DecodeState:
        """A state without recent tokens."""
        recent = loop.empty_recent(self._model.config, len(tokens.newest), RECENT_SLOTS, self._model.dtype)
        return DecodeState(rows=rows, recent=recent, text_BX=self._text(tokens, n_draft))

    def _text(self, tokens: RowTokens, n_draft: int) -> Array:
        """text_BX: the whole text so far, for drafts; nothing without any."""
        held = self._cache.tokens
        text_BX = np.zeros((len(held), self._cache.kv.n_slots + RECENT_SLOTS if n_draft else 0), np.int32)
        if n_draft:
            for row, (before, recent, token) in enumerate(
                zip(held, tokens.recent, tokens.newest, strict=True)
            ):
                text_BX[row, : len(before) + len(recent) + 1] = [*before, *recent, token]
        return to_device(text_BX)

    def _flush(self) -> None:
        """Ends the current run, keeping what it computed."""
        if self._run is not None:
            self._commit()
            self._run = None

    def _wait_for_simulated(self) -> None:
        """Where a process simulates several devices, more than 32 waiting programs block each other for ever: the queue
        holds a thread that the running one needs."""
        if self._model.mesh is not None and jax.default_backend() == "cpu":
            jax.block_until_ready(self._cache.kv)


def _sizes(n: int, groups: int) -> Iterator[int]:
    """Sizes of the batches in which n prompts are read: powers of four for each group of devices, so that they are few;
    rather one that is not quite full than many small ones."""
    while n > 0:
        size = groups
        while 2 * size < n:
            size *= 4
        yield size
        n -= size
