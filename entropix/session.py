"""The host's half of generation, for token ids: feeds prompts into a cache, launches chunks, reads back records."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from entropix import decode
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decode import TAIL_SIZE, DecodeState, Extras, Finish, Request, Rows, StepRecord
from entropix.loading import Model
from entropix.model import KVCache, empty_cache, empty_tail
from entropix.samplers import Sampler
from entropix.speculation import NO_TOKEN

PREFILL_WIDTHS = (32, 128, 512)  # tokens in one prefill call; each compiles once for each capacity
MIN_CAPACITY = 256  # slots; doubled as the text grows, up to what the context needs


class _Run(NamedTuple):
    """A generation under way."""

    request: Request
    state: DecodeState
    sampler: Sampler
    sampler_cfg: SamplerConfig
    n_steps: Array
    n_draft: int
    extras: Extras
    newest: list[int]  # a row's newest token, whose key and value come with the next step
    tail: list[list[int]]  # the tokens whose keys and values are in the tail


class Session:
    """A batch of rows with their cache.

    `start` feeds a prompt a row; `advance` generates a chunk, as long as `running`; `end` stops rows. The cache is
    kept: a later prompt that begins with what a row's cache holds, like the next turn of a conversation, only
    computes what is new.
    """

    def __init__(self, model: Model, batch: int) -> None:
        self._model = model
        self._cached: list[list[int]] = [
            [] for _ in range(batch)
        ]  # tokens whose keys and values are in the cache
        self._cache: KVCache | None = None
        self._run: _Run | None = None
        self.n_passes = 0  # forward passes of decoding so far

    @property
    def running(self) -> bool:
        """Whether any row has not ended."""
        return self._run is not None and bool(jnp.any(self._run.state.rows.finish_B == Finish.RUNNING))

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        sampler_cfg: SamplerConfig,
        cfg: GenerateConfig,
    ) -> None:
        """Prefills all but the last token of every prompt, so that the first new token is a step like any other.

        Raises a ValueError for an empty prompt, one that leaves no room in the model's context, or one with tokens
        the model does not know, before any work is done.
        """
        assert len(prompts) == len(self._cached), (len(prompts), len(self._cached))
        check_prompts(prompts, self._model)
        self._flush()
        self._prefill([list(prompt[:-1]) for prompt in prompts])
        newest = [prompt[-1] for prompt in prompts]
        rows = Rows(
            token_B=jnp.asarray(newest, jnp.int32),
            step_B=jnp.zeros(len(prompts), jnp.int32),
            finish_B=jnp.full(len(prompts), int(Finish.RUNNING), jnp.int32),
            sampler=sampler.init(sampler_cfg, prompts, self._model.tokenizer.encode),
        )
        self._run = _Run(
            request=make_request(prompts, self._model, cfg),
            state=self._state(rows, newest, cfg.speculate),
            sampler=sampler,
            sampler_cfg=device_config(sampler_cfg),
            n_steps=jnp.asarray(cfg.chunk_length, jnp.int32),
            n_draft=cfg.speculate,
            extras=Extras(cfg.alternatives, cfg.head_entropies),
            newest=newest,
            tail=[[] for _ in prompts],
        )

    def advance(self) -> StepRecord:
        """Up to `chunk_length` more steps of the running rows: their records as numpy arrays `[tokens, B, ...]`.

        A chunk may be shorter: when all rows have ended, or where the tail is full. With drafts a step makes several
        tokens; `live_B` tells which of them are there.
        """
        assert self._run is not None and self._cache is not None
        run, self._run = self._run, None  # the state is donated: after an exception here it is gone
        state, buffer, done = decode.decode_chunk(
            self._model.weights,
            run.request,
            self._cache,
            run.state,
            run.n_steps,
            run.sampler_cfg,
            self._model.config,
            run.sampler,
            n_draft=run.n_draft,
            extras=run.extras,
        )
        n_passes = int(done)
        records: StepRecord = jax.tree.map(
            lambda leaf: leaf[:n_passes].reshape(-1, *leaf.shape[2:]), jax.device_get(buffer)
        )
        for token_B, live_B in zip(records.token_B, records.live_B, strict=True):
            for row in np.flatnonzero(live_B):
                run.tail[row].append(run.newest[row])
                run.newest[row] = int(token_B[row])
        self.n_passes += n_passes
        self._run = run._replace(state=state)
        running = np.flatnonzero(np.asarray(state.rows.finish_B) == Finish.RUNNING)
        if any(len(run.tail[row]) + run.n_draft >= TAIL_SIZE for row in running):
            self._commit()
        return records

    def end(self, rows: Iterable[int], reason: Finish = Finish.STOP_STRING) -> None:
        """Stops those of these rows that are still running."""
        assert self._run is not None
        finish_B = np.array(self._run.state.rows.finish_B)
        finish_B[[row for row in rows if finish_B[row] == Finish.RUNNING]] = reason
        state = self._run.state
        ended = state.rows._replace(finish_B=jnp.asarray(finish_B))
        self._run = self._run._replace(state=state._replace(rows=ended))

    def _commit(self) -> None:
        """Moves the tail into the cache and opens a new one."""
        assert self._run is not None
        run, self._run = self._run, None
        cache, cached = self._take_cache()
        count_B = jnp.asarray([len(tokens) for tokens in run.tail], jnp.int32)
        cache = decode.commit(cache, run.state.tail, count_B)
        self._cache = cache
        self._cached = [held + tokens for held, tokens in zip(cached, run.tail, strict=True)]
        self._reserve(max(map(len, self._cached)) + TAIL_SIZE)
        state = self._state(run.state.rows, run.newest, run.n_draft)
        self._run = run._replace(state=state, tail=[[] for _ in cached])

    def _state(self, rows: Rows, newest: Sequence[int], n_draft: int) -> DecodeState:
        """A state with an empty tail and, for drafts, the whole text so far."""
        assert self._cache is not None
        batch = len(self._cached)
        text_BX = np.zeros((batch, self._cache.capacity + TAIL_SIZE if n_draft else 0), np.int32)
        if n_draft:
            for row, (held, token) in enumerate(zip(self._cached, newest, strict=True)):
                text_BX[row, : len(held) + 1] = [*held, token]
        tail = empty_tail(self._model.config, batch, TAIL_SIZE, self._model.dtype)
        return DecodeState(rows=rows, tail=tail, text_BX=jnp.asarray(text_BX))

    def _take_cache(self) -> tuple[KVCache, list[list[int]]]:
        """The cache and its tokens, to be donated. Should an exception come before they are put back, the session
        starts from nothing, not from a cache that is gone."""
        assert self._cache is not None
        cache, cached = self._cache, self._cached
        self._cache, self._cached = None, [[] for _ in cached]
        return cache, cached

    def _flush(self) -> None:
        """Ends the current run, keeping what it computed."""
        if self._run is not None:
            self._commit()
            self._run = None

    def _rewind(self, length_B: Sequence[int]) -> None:
        """Keeps the first tokens of each row, or nothing at all if a text that went wrong has left NaN among them."""
        if self._cache is None:
            return
        cache, cached = self._take_cache()
        cache = decode.truncate(cache, jnp.asarray(length_B, jnp.int32))
        if bool(decode.is_finite(cache)):
            self._cache = cache
            self._cached = [tokens[:n] for tokens, n in zip(cached, length_B, strict=True)]

    def _prefill(self, rows: Sequence[list[int]]) -> None:
        """Makes the cache hold exactly these tokens, computing only those it does not hold yet."""
        self._rewind([_common_prefix(*pair) for pair in zip(self._cached, rows, strict=True)])
        common = [len(cached) for cached in self._cached]
        widths = _prefill_widths(max(len(row) - n for row, n in zip(rows, common, strict=True)))
        self._reserve(_slots_needed(common, [len(row) for row in rows], widths))
        for width in widths:
            cache, held = self._take_cache()
            new = [row[len(tokens) : len(tokens) + width] for row, tokens in zip(rows, held, strict=True)]
            tokens_BT = np.zeros((len(rows), width), np.int32)
            for row, tokens in enumerate(new):
                tokens_BT[row] = rows[row][0] if rows[row] else 0  # padding: a token that the row has anyway
                tokens_BT[row, : len(tokens)] = tokens
            self._cache = decode.prefill(
                self._model.weights,
                jnp.asarray(tokens_BT),
                jnp.asarray([len(tokens) for tokens in new], jnp.int32),
                cache,
                self._model.config,
                from_empty=not any(held),
            )
            self._cached = [before + tokens for before, tokens in zip(held, new, strict=True)]

    def _reserve(self, slots: int) -> None:
        """Makes room for so many slots in every row."""
        capacity = MIN_CAPACITY
        while capacity < slots:
            capacity *= 2
        if self._cache is None:
            self._cache = empty_cache(self._model.config, len(self._cached), capacity, self._model.dtype)
        elif capacity > self._cache.capacity:
            self._cache = decode.grow(self._cache, capacity)


def check_prompts(prompts: Sequence[Sequence[int]], model: Model) -> None:
    """Raises a ValueError for the first prompt that cannot be continued."""
    if not prompts:
        raise ValueError("no prompt: give at least one")
    context, vocabulary = model.config.context_length, model.config.vocab_size
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: give at least one token")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, but the model's context holds {context} and at least one "
                "must be left for the answer; shorten the prompt"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise ValueError(
                f"prompt {number} has token ids outside 0 to {vocabulary - 1}, the model's vocabulary"
            )


def make_request(prompts: Sequence[Sequence[int]], model: Model, cfg: GenerateConfig) -> Request:
    """Keys, limits and stop tokens of a batch."""
    digests = [zlib.crc32(np.asarray(prompt, np.int32).tobytes()) for prompt in prompts]
    seen: Counter[int] = Counter()
    occurrences = []
    for digest in digests:
        occurrences.append(seen[digest])
        seen[digest] += 1
    room = [model.config.context_length - len(prompt) for prompt in prompts]
    stop_ids = () if cfg.ignore_stop_tokens else model.stop_ids
    stop_E = np.full(1 << max(len(stop_ids) - 1, 7).bit_length(), NO_TOKEN, np.int32)
    stop_E[: len(stop_ids)] = stop_ids
    return Request(
        key_B=decode.row_keys(
            cfg.seed, jnp.asarray(digests, jnp.uint32), jnp.asarray(occurrences, jnp.uint32)
        ),
        limit_B=jnp.asarray([min(cfg.max_new_tokens, left) for left in room], jnp.int32),
        limit_reason_B=jnp.asarray(
            [Finish.LENGTH if cfg.max_new_tokens <= left else Finish.CONTEXT for left in room], jnp.int32
        ),
        stop_E=jnp.asarray(stop_E),
    )


def device_config(cfg: SamplerConfig) -> SamplerConfig:
    """The same numbers as arrays of their field's dtype, so that 1 and 1.0 are the same program."""
    decimal = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), cfg)
    return dataclasses.replace(decimal, top_k=jnp.asarray(cfg.top_k, jnp.int32))


def _prefill_widths(pending: int) -> list[int]:
    """Widths that take so many tokens: the narrowest that takes all that is left, or, where that would be mostly
    padding, the widest that is filled."""
    widths = []
    while pending > 0:
        enough = next((width for width in PREFILL_WIDTHS if width >= pending), PREFILL_WIDTHS[-1])
        filled = max((width for width in PREFILL_WIDTHS if width <= pending), default=PREFILL_WIDTHS[0])
        widths.append(enough if 2 * pending > enough else filled)
        pending -= widths[-1]
    return widths


def _slots_needed(held: Sequence[int], wanted: Sequence[int], widths: Sequence[int]) -> int:
    """Slots a row so that no write of a whole width, nor of a whole tail afterwards, reaches past the end.

    held: tokens in the cache, by row; wanted: tokens that shall be in it.
    """
    slots = max(wanted) + TAIL_SIZE
    for width in widths:
        slots = max(slots, max(held) + width)
        held = [min(n + width, end) for n, end in zip(held, wanted, strict=True)]
    return slots


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
