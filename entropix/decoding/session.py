"""The host's half of generation, for token ids: feeds prompts into a cache, launches chunks, reads back records."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from entropix import sharding
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decoding import backtracking, branching, loop
from entropix.decoding.branching import Plan
from entropix.decoding.inputs import check_prompts, device_config, make_request
from entropix.decoding.loop import RECENT_SLOTS, DecodeState
from entropix.decoding.prefix_cache import PrefixCache
from entropix.decoding.sample_step import BatchInputs, RecordOptions, RowState, StepRecord
from entropix.results import FinishReason
from entropix.samplers import Sampler

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
    """A generation under way."""

    request: BatchInputs
    state: DecodeState
    sampler: Sampler
    sampler_cfg: SamplerConfig
    n_steps: Array
    n_draft: int
    extras: RecordOptions
    plan: Plan
    finish_B: np.ndarray  # the state's, known without waiting for a device
    newest: list[int]  # a row's newest token, whose key and value come with the next step
    tail: list[list[int]]  # the tokens whose keys and values are in the tail
    n_back: int  # how many tokens a row takes back; 0 where none does
    before: list[list[Any]]  # where it may: what `StepRecord.before` was for each of its last `n_back` tokens

    @property
    def lookahead(self) -> int:
        """Most tokens that a step may add to a row besides its usual one."""
        return max(self.n_draft, self.plan.lookahead)


class Session:
    """A batch of rows with their cache.

    `start` feeds a prompt a row; `advance` generates a chunk, as long as `running`; `end` stops rows. The cache is
    kept: a later prompt that begins with what a row's cache holds, like the next turn of a conversation, only
    computes what is new. `fork` makes a batch of copies of rows.

    shrinks: rows that have ended leave the batch when at most half of it still runs. What is left is the next power of
    two, so that a batch of B compiles at most log2 B more programs for each capacity. Nobody outside sees it, but for
    what the caches of the rows that left held: it is computed anew if it is asked for again.
    """

    def __init__(self, model: Model, batch: int, shrinks: bool = False) -> None:
        self._model = model
        self._shrinks = shrinks
        self._places = list(range(batch))  # the rows that the batch still holds, by their numbers
        self._finish_B = np.full(batch, FinishReason.RUNNING, np.int32)  # of rows that have left
        self._cache = PrefixCache(model, batch)
        self._run: _Run | None = None
        self.n_passes = 0  # forward passes of decoding so far
        # Of the newest run, by row: the forward passes that it took part in, and the tokens that were computed for it,
        # those rolled forward on discarded paths and those that were taken back among them.
        self.row_passes_B, self.computed_B = np.zeros((2, batch), np.int64)

    @property
    def running(self) -> bool:
        """Whether any row has not ended."""
        return self._run is not None and bool(np.any(self._run.finish_B == FinishReason.RUNNING))

    @_on_mesh
    def start(
        self,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        sampler_cfg: SamplerConfig,
        cfg: GenerateConfig,
        given: Sequence[int] = (),
    ) -> None:
        """Prefills all but the last token of every prompt, so that the first new token is a step like any other.

        given: how many tokens at each prompt's end count among its new ones, of which it may have that many fewer.

        Raises a ValueError for an empty prompt, one that leaves no room in the model's context, or one with tokens
        the model does not know, before any work is done.
        """
        assert len(prompts) == len(self.row_passes_B), (len(prompts), len(self.row_passes_B))
        check_prompts(prompts, self._model)
        self._flush()
        self._bring_back()
        self.row_passes_B[:] = self.computed_B[:] = 0
        self._cache.prefill([list(prompt[:-1]) for prompt in prompts])
        if self._model.mesh is not None and jax.default_backend() == "cpu":
            # XLA lets 32 programs wait for one that runs. The next one waits for room on a thread that this one needs,
            # where a process simulates several devices: both for ever.
            jax.block_until_ready(self._cache.kv)
        newest = [prompt[-1] for prompt in prompts]
        finish_B = np.full(len(prompts), FinishReason.RUNNING, np.int32)
        plan = branching.plan(cfg.branching, sampler.strategies)
        rows = RowState(
            token_B=jnp.asarray(newest, jnp.int32),
            step_B=jnp.asarray(np.zeros(len(prompts), np.int32)),
            finish_B=jnp.asarray(finish_B),
            sampler=sampler.init(sampler_cfg, prompts, self._model.tokenizer.encode),
            forks=branching.no_forks(len(prompts)) if plan.is_on else (),
            retreats=backtracking.none_yet(len(prompts)) if backtracking.is_on(cfg.backtracking) else (),
        )
        self._run = _Run(
            request=make_request(prompts, self._model, sampler, cfg, given),
            state=self._state(rows, newest, cfg.speculate),
            sampler=sampler,
            sampler_cfg=device_config(sampler_cfg),
            n_steps=jnp.asarray(cfg.chunk_length, jnp.int32),
            n_draft=cfg.speculate,
            extras=RecordOptions(cfg.alternatives, cfg.head_entropies),
            plan=plan,
            finish_B=finish_B,
            newest=newest,
            tail=[[] for _ in prompts],
            n_back=cfg.backtracking.tokens if rows.retreats else 0,
            before=[[] for _ in prompts],
        )

    @_on_mesh
    def advance(self, n_steps: int | None = None) -> StepRecord:
        """More steps of the running rows, `chunk_length` unless told: their records as numpy arrays `[tokens, B, ...]`.

        A chunk may be shorter: when all rows have ended, or where the tail is full. With drafts a step makes several
        tokens; `live_B` tells which of them are there.
        """
        if self._shrinks:
            self._shrink()
        assert self._run is not None
        run, self._run = self._run, None  # the state is donated: after an exception here it is gone
        state, buffer, done = loop.decode_chunk(
            self._model.weights,
            run.request,
            self._cache.kv,
            run.state,
            run.n_steps if n_steps is None else jnp.asarray(n_steps, jnp.int32),
            run.sampler_cfg,
            self._model.config,
            run.sampler,
            n_draft=run.n_draft,
            extras=run.extras,
            plan=run.plan,
        )
        filled: StepRecord = jax.tree.map(lambda leaf: leaf[: int(done)], jax.device_get(buffer))
        records = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), filled)
        for i, (token_B, live_B) in enumerate(zip(records.token_B, records.live_B, strict=True)):
            for row in np.flatnonzero(live_B):
                run.tail[row].append(run.newest[row])
                run.newest[row] = int(token_B[row])
                if run.n_back:
                    before = jax.tree.map(lambda leaf, i=i, row=row: leaf[i, row], records.before)
                    run.before[row] = [*run.before[row], before][-run.n_back :]
        self._count(filled, run.plan)
        self._run = run._replace(state=state, finish_B=np.array(state.rows.finish_B))
        if run.n_back:
            self._retreat()
        running = np.flatnonzero(self._run.finish_B == FinishReason.RUNNING)
        if any(len(run.tail[row]) + run.lookahead >= RECENT_SLOTS for row in running):
            self._commit()
        return self._of_all_rows(records)

    def _count(self, records: StepRecord, plan: Plan) -> None:
        """Notes the passes and tokens of a chunk; records `[steps, R, B, ...]`."""
        self.n_passes += len(records.live_B)
        self.row_passes_B[self._places] += records.live_B.any(axis=1).sum(axis=0)
        self.computed_B[self._places] += records.live_B.sum(axis=(0, 1))
        if not plan.is_on:
            return
        paths = jax.tree.map(
            lambda leaf: leaf[:, 0], records.paths
        )  # those of a step are in its first record
        self.n_passes += plan.depth * int(paths.forked_B.any(axis=1).sum())
        self.row_passes_B[self._places] += plan.depth * paths.forked_B.sum(axis=0)
        rolled_SBC = paths.live_BCD[..., 1:].sum(axis=-1)
        if plan.whole:  # the best path's are among the live tokens
            np.put_along_axis(rolled_SBC, paths.best_B[..., None], 0, axis=-1)
        self.computed_B[self._places] += (rolled_SBC.sum(axis=-1) * paths.forked_B).sum(axis=0)

    def _retreat(self) -> None:
        """Takes back the newest tokens of the rows that wait for it."""
        assert self._run is not None
        run, n_back = self._run, self._run.n_back
        waiting = np.flatnonzero(run.finish_B == FinishReason.BACKTRACKING)
        if not len(waiting):
            return
        self._run = None  # in case an interrupt comes between here and the end
        rows = jax.tree.map(np.array, run.state.rows)
        used_B, length_B = np.array(run.state.tail.used_B), [len(tokens) for tokens in self._cache.tokens]
        for place in waiting:
            text = [*self._cache.tokens[place], *run.tail[place], run.newest[place]]
            *kept, run.newest[place] = text[:-n_back]
            backtracking.note(rows.retreats, int(place), int(rows.step_B[place]), n_back, text[-n_back])
            length_B[place] = min(length_B[place], len(kept))
            run.tail[place] = kept[length_B[place] :]
            used_B[place] = len(run.tail[place])
            rows.token_B[place] = run.newest[place]
            rows.step_B[place] -= n_back
            rows.finish_B[place] = FinishReason.RUNNING
            now = (rows.sampler, rows.forks.latest_B if rows.forks else ())
            jax.tree.map(
                lambda leaf, old, place=place: leaf.__setitem__(place, old), now, run.before[place][0]
            )
            run.before[place].clear()
        state = run.state._replace(
            rows=jax.tree.map(jnp.asarray, rows), tail=run.state.tail._replace(used_B=jnp.asarray(used_B))
        )
        self._cache.cut(length_B)
        self._run = run._replace(state=state, finish_B=rows.finish_B)

    @_on_mesh
    def end(self, rows: Iterable[int], reason: FinishReason = FinishReason.STOP_STRING) -> None:
        """Stops those of these rows that are still running."""
        assert self._run is not None
        finish_B = self._run.finish_B.copy()
        wanted = set(rows)
        here = [place for place, row in enumerate(self._places) if row in wanted]
        finish_B[[place for place in here if finish_B[place] == FinishReason.RUNNING]] = reason
        state = self._run.state
        ended = state.rows._replace(finish_B=jnp.asarray(finish_B))
        self._run = self._run._replace(state=state._replace(rows=ended), finish_B=finish_B)

    @_on_mesh
    def fork(self, rows: Sequence[int]) -> None:
        """The batch becomes these of its rows; one may come several times. Ends the current run.

        What is in their caches is copied, not computed; copies of a single row hold it together, if it shares nothing
        yet.
        """
        self._flush()
        self._bring_back()
        self._cache.take(rows)
        self._places = list(range(len(rows)))
        self._finish_B = np.full(len(rows), FinishReason.RUNNING, np.int32)
        self.row_passes_B, self.computed_B = np.zeros((2, len(rows)), np.int64)

    def _bring_back(self) -> None:
        """The whole batch once more, with nothing in the caches of the rows that had left."""
        if len(self._places) == len(self._finish_B):
            return
        place_of = {row: place for place, row in enumerate(self._places)}
        self._cache.take([place_of.get(row) for row in range(len(self._finish_B))])
        self._places = list(range(len(self._finish_B)))

    def _shrink(self) -> None:
        """Lets rows that have ended leave, if at most half of the batch still runs."""
        assert self._run is not None
        run = self._run
        running, ended = np.flatnonzero(run.finish_B == FinishReason.RUNNING), np.flatnonzero(run.finish_B)
        if not 0 < 2 * len(running) <= len(run.finish_B):
            return
        spare = (1 << (len(running) - 1).bit_length()) - len(running)
        places = sorted([*running.tolist(), *ended[:spare].tolist()])
        place_B = jnp.asarray(places, jnp.int32)
        by_row = {name: value for name, value in run.request._asdict().items() if name.endswith("_B")}
        self._run = None  # in case an interrupt comes between here and the end
        self._finish_B[self._places] = run.finish_B
        self._cache.take(places)
        self._places = [self._places[place] for place in places]
        self._run = run._replace(
            request=run.request._replace(**loop.gather_rows(by_row, place_B)),
            state=loop.gather_rows(run.state, place_B),
            finish_B=run.finish_B[places],
            newest=[run.newest[place] for place in places],
            tail=[run.tail[place] for place in places],
            before=[run.before[place] for place in places],
        )

    def _of_all_rows(self, records: StepRecord) -> StepRecord:
        """Records with a column for every row, also for those that have left, which have ended."""
        batch = len(self._finish_B)
        if len(self._places) == batch:
            return records

        def spread(leaf: np.ndarray) -> np.ndarray:
            whole = np.zeros((len(leaf), batch, *leaf.shape[2:]), leaf.dtype)
            whole[:, self._places] = leaf
            return whole

        whole = jax.tree.map(spread, records)
        left_B = ~np.isin(np.arange(batch), self._places)
        whole.finish_B[:, left_B] = self._finish_B[left_B]
        return whole

    def _commit(self) -> None:
        """Moves the tail into the cache and opens a new one."""
        assert self._run is not None
        run, self._run = self._run, None
        self._cache.append(run.state.tail, run.tail)
        state = self._state(run.state.rows, run.newest, run.n_draft)
        self._run = run._replace(state=state, tail=[[] for _ in run.tail])

    def _state(self, rows: RowState, newest: Sequence[int], n_draft: int) -> DecodeState:
        """A state with an empty tail and, for drafts, the whole text so far."""
        batch = len(newest)
        text_BX = np.zeros((batch, self._cache.kv.n_slots + RECENT_SLOTS if n_draft else 0), np.int32)
        if n_draft:
            for row, (held, token) in enumerate(zip(self._cache.tokens, newest, strict=True)):
                text_BX[row, : len(held) + 1] = [*held, token]
        tail = loop.empty_recent(self._model.config, batch, RECENT_SLOTS, self._model.dtype)
        return DecodeState(rows=rows, tail=tail, text_BX=jnp.asarray(text_BX))

    def _flush(self) -> None:
        """Ends the current run, keeping what it computed."""
        if self._run is not None:
            self._commit()
            self._run = None
