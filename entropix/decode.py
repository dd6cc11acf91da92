"""The compiled half of generation: prefill, one decode step, and the loop that runs many steps without the host.

A step is a pure function of its inputs. Rows share a batch and nothing else: each has its own key, strategy, limit
and end. How many steps run before the host looks is a traced number, so chunk length changes neither the program
nor a single token.

A step usually makes one token a row. With drafts it makes several: one forward pass reads the newest token and the
drafted ones after it, and the sampler then goes through these positions in order, each with its own logits, metrics
and key, for as long as what it draws is what was drafted.
"""

from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from entropix import model, speculation
from entropix.config import ModelConfig, SamplerConfig
from entropix.metrics import Metrics, entropy_bits, measure, softmax_parts
from entropix.model import Attention, KVCache, KVTail
from entropix.samplers.base import Candidates, Context, SampleInfo, Sampler, log_normalizer
from entropix.speculation import NO_TOKEN
from entropix.weights import Weights

TAIL_SIZE = 32  # tokens between two commits to the cache: the cost of a commit is spread over so many


class Finish(IntEnum):
    """Why a row ended."""

    RUNNING = 0
    STOP_TOKEN = 1
    LENGTH = 2
    CONTEXT = 3
    NAN = 4
    STOP_STRING = 5
    INTERRUPTED = 6

    @property
    def sentence(self) -> str:
        """For the user."""
        return {
            Finish.RUNNING: "still running",
            Finish.STOP_TOKEN: "the model ended its answer",
            Finish.LENGTH: "max_new_tokens was reached",
            Finish.CONTEXT: "the model's context is full",
            Finish.NAN: "the model's logits were not finite, so this row was stopped",
            Finish.STOP_STRING: "a stop string appeared",
            Finish.INTERRUPTED: "it was interrupted",
        }[self]


class Purpose(IntEnum):
    """What a random key is for; folded in last, so that two uses in one step never share a key."""

    DRAW = 0


class Request(NamedTuple):
    """What stays fixed while a batch is generated."""

    key_B: Array  # one typed key a row
    limit_B: Array  # int32: most tokens to generate
    limit_reason_B: Array  # int32: Finish.LENGTH or Finish.CONTEXT, whichever the limit comes from
    stop_E: Array  # int32: tokens that end a row, padded with NO_TOKEN


class Rows(NamedTuple):
    """What one drawn token changes in each row."""

    token_B: Array  # int32: the newest token, whose key and value are not computed yet
    step_B: Array  # int32: tokens generated so far
    finish_B: Array  # int32: Finish
    sampler: Any  # the sampler's own state


class DecodeState(NamedTuple):
    """What a step hands to the next."""

    rows: Rows
    tail: KVTail
    text_BX: Array  # int32: prompt and answer, for drafts; without drafts X is 0


class Extras(NamedTuple):
    """What a record holds besides the usual. Static: what is not asked for is not in the program."""

    alternatives: int = 0  # how many of the likeliest tokens
    head_entropies: bool = False


_NO_EXTRAS = Extras()


class Alternatives(NamedTuple):
    """The A likeliest tokens of each row, likeliest first."""

    token_BA: Array  # int32
    logprob_BA: Array  # nats, under the model: temperature 1, nothing filtered
    draw_logprob_BA: Array  # nats, under what one draw was made from; -inf for tokens that a filter removed


class StepRecord(NamedTuple):
    """One token of every row, or a buffer of such with a leading axis."""

    token_B: Array  # int32
    live_B: Array  # bool: this row generated this token; where not, the other fields mean nothing
    finish_B: Array  # int32: Finish after the token
    metrics: Metrics
    info: SampleInfo
    alternatives: Alternatives | tuple[()] = ()
    head_entropy_BLN: Array | tuple[()] = ()  # bits: attention entropy of each head of each layer


def row_keys(seed: int, digest_B: Array, occurrence_B: Array) -> Array:
    """One key a row from (seed, what the prompt is, how often the batch has had it before).

    A row's draws therefore do not depend on its place in the batch or on its neighbours, and repeating a prompt
    gives independent samples.
    """

    def row(digest: Array, occurrence: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), digest), occurrence)

    return jax.vmap(row)(digest_B, occurrence_B)


def decode_step(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
    n_draft: int,
    extras: Extras,
) -> tuple[DecodeState, StepRecord]:
    """(state, records `[n_draft + 1, B]`) after one forward pass; at least one token for every running row.

    Where no row has a draft, the pass is no wider than without speculation.
    """
    advance = partial(
        _advance,
        weights,
        request,
        cache,
        state,
        sampler_cfg=sampler_cfg,
        cfg=cfg,
        sampler=sampler,
        extras=extras,
    )
    if n_draft == 0:
        return advance(jnp.zeros((len(request.key_B), 0), jnp.int32))
    end_B = cache.length_B + state.tail.used_B + 1
    draft_BK = speculation.lookup(state.text_BX, end_B, n_draft)
    running_B1 = (state.rows.finish_B == Finish.RUNNING)[:, None]

    def without_drafts() -> tuple[DecodeState, StepRecord]:
        state, records = advance(draft_BK[:, :0])

        def padded(leaf_TB: Array) -> Array:
            return jnp.pad(leaf_TB, ((0, n_draft), *((0, 0),) * (leaf_TB.ndim - 1)))

        return state, jax.tree.map(padded, records)

    return jax.lax.cond(
        jnp.any((draft_BK != NO_TOKEN) & running_B1), lambda: advance(draft_BK), without_drafts
    )


def _advance(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    draft_BK: Array,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
    extras: Extras,
) -> tuple[DecodeState, StepRecord]:
    """One forward pass over the newest token and the draft, and all the tokens that follow from it."""
    given_BT = jnp.concatenate([state.rows.token_B[:, None], jnp.maximum(draft_BK, 0)], axis=1)
    logits_BTV, tail, attention = model.forward(weights, given_BT, cache, state.tail, cfg)
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)
    draw = partial(
        _draw_token, request, sampler_cfg=sampler_cfg, sampler=sampler, n_alternatives=extras.alternatives
    )
    n_positions = given_BT.shape[1]
    nothing_B1 = jnp.full_like(draft_BK, NO_TOKEN, shape=(len(draft_BK), 1))
    positions = jax.tree.map(
        lambda leaf_BT: jnp.moveaxis(leaf_BT, 1, 0),
        (Context(logits_BTV, metrics_BT), jnp.concatenate([draft_BK, nothing_B1], axis=1)),
    )
    everyone_B = jnp.ones(len(draft_BK), bool)
    (rows, _), records = jax.lax.scan(draw, (state.rows, everyone_B), positions, unroll=n_positions == 1)
    if extras.head_entropies:
        records = records._replace(head_entropy_BLN=_head_entropies(attention))

    count_B = jnp.sum(records.live_B, axis=0, dtype=jnp.int32)
    text_BX = state.text_BX
    if text_BX.shape[1] > 0:
        end_B = cache.length_B + state.tail.used_B + 1
        text_BX = model.place(text_BX, records.token_B.T, end_B, axis=1)
    tail = tail._replace(used_B=state.tail.used_B + count_B)
    return DecodeState(rows=rows, tail=tail, text_BX=text_BX), records


def _draw_token(
    request: Request,
    carry: tuple[Rows, Array],
    position: tuple[Context, Array],
    sampler_cfg: SamplerConfig,
    sampler: Sampler,
    n_alternatives: int,
) -> tuple[tuple[Rows, Array], StepRecord]:
    """One token of every row that still follows its draft: sampler, stop test; other rows stand still.

    carry: the rows, and which of them have drawn what was drafted so far. position: what the sampler looks at, and
    the drafted token that its draw is compared with.
    """
    rows, following_B = carry
    context, drafted_B = position
    with jax.named_scope("sampler"):
        key_B = jax.vmap(lambda key, step: jax.random.fold_in(jax.random.fold_in(key, step), Purpose.DRAW))(
            request.key_B, rows.step_B
        )
        token_B, sampler_state, info, candidates = sampler.step(key_B, rows.sampler, context, sampler_cfg)
        chex.assert_tree_shape_prefix((token_B, sampler_state, info), rows.token_B.shape)

    running_B = (rows.finish_B == Finish.RUNNING) & following_B
    # NaN or +inf anywhere in a row's logits makes its entropy NaN.
    finite_B = jnp.isfinite(context.metrics.logits_entropy)
    live_B = running_B & finite_B
    step_B = rows.step_B + live_B.astype(jnp.int32)
    ended_B = jnp.select(
        [~finite_B, jnp.any(token_B[:, None] == request.stop_E[None, :], axis=-1), step_B >= request.limit_B],
        [jnp.full_like(step_B, Finish.NAN), jnp.full_like(step_B, Finish.STOP_TOKEN), request.limit_reason_B],
        jnp.full_like(step_B, Finish.RUNNING),
    )
    finish_B = jnp.where(running_B, ended_B, rows.finish_B)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(live_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    rows = Rows(
        token_B=keep(token_B, rows.token_B),
        step_B=step_B,
        finish_B=finish_B,
        sampler=jax.tree.map(keep, sampler_state, rows.sampler),
    )
    record = StepRecord(token_B, live_B, finish_B, context.metrics, info)
    if n_alternatives:
        record = record._replace(alternatives=_alternatives(context.logits_BV, candidates, n_alternatives))
    return (rows, live_B & (token_B == drafted_B)), record


def _alternatives(logits_BV: Array, candidates: Candidates, n: int) -> Alternatives:
    """The n likeliest tokens, or the whole of a smaller vocabulary; of equally likely ones the lower id first."""
    logits_BA, token_BA = jax.lax.top_k(logits_BV, min(n, logits_BV.shape[-1]))
    draw_logprob_BC = jax.nn.log_softmax(candidates.logits_BC, axis=-1)
    same_BAC = token_BA[:, :, None] == candidates.token_BC[:, None, :]
    return Alternatives(
        token_BA=token_BA,
        logprob_BA=logits_BA - log_normalizer(logits_BV)[:, None],
        draw_logprob_BA=jnp.max(jnp.where(same_BAC, draw_logprob_BC[:, None, :], -jnp.inf), axis=-1),
    )


def _head_entropies(attention: Attention) -> Array:
    """[T, B, L, N] in bits: what the metric `attn_entropy` is the mean of, at every query position."""
    entropy_LBNT = entropy_bits(softmax_parts(attention.scores_LBNTS, attention.visible_BTS[:, None]))
    return jnp.transpose(entropy_LBNT, (3, 1, 0, 2))


@partial(jax.jit, static_argnames=("cfg", "sampler", "n_draft", "extras"), donate_argnames=("state",))
def decode_chunk(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    n_steps: Array,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
    n_draft: int = 0,
    extras: Extras = _NO_EXTRAS,
) -> tuple[DecodeState, StepRecord, Array]:
    """(state, records `[tail size, n_draft + 1, B]`, how many of them, by the first axis, are filled).

    Runs until `n_steps` are done, a tail has no room for another step, or every row has ended. The cache is only
    read; `commit` the full tail before the next chunk.
    """
    step = jax.jit(  # inline, hence only a memory of its trace, which is wanted twice
        partial(
            decode_step, sampler_cfg=sampler_cfg, cfg=cfg, sampler=sampler, n_draft=n_draft, extras=extras
        ),
        inline=True,
    )
    size = state.tail.size
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype),
        jax.eval_shape(step, weights, request, cache, state)[1],
    )

    def go_on(carry: tuple[Array, DecodeState, StepRecord]) -> Array:
        done, state, _ = carry
        running_B = state.rows.finish_B == Finish.RUNNING
        room = jnp.all(~running_B | (state.tail.used_B + n_draft < size))
        return (done < n_steps) & room & jnp.any(running_B)

    def body(carry: tuple[Array, DecodeState, StepRecord]) -> tuple[Array, DecodeState, StepRecord]:
        done, state, records = carry
        state, record = step(weights, request, cache, state)
        records = jax.tree.map(lambda buffer, new: buffer.at[done].set(new), records, record)
        return done + 1, state, records

    done, state, records = jax.lax.while_loop(go_on, body, (jnp.zeros((), jnp.int32), state, blank))
    return state, records, done


@partial(jax.jit, static_argnames=("cfg", "from_empty"), donate_argnames=("cache",))
def prefill(
    weights: Weights, tokens_BT: Array, count_B: Array, cache: KVCache, cfg: ModelConfig, from_empty: bool
) -> KVCache:
    """The cache with the first `count_B` of these tokens appended to each row; the rest is padding nobody sees.

    `from_empty` promises that the cache holds nothing yet, so that no query looks for keys in it.
    """
    batch, width = tokens_BT.shape
    dtype = cache.k_LBKHS[0].dtype
    past = model.empty_cache(cfg, batch, 0, dtype) if from_empty else cache
    _, tail, _ = model.forward(weights, tokens_BT, past, model.empty_tail(cfg, batch, width, dtype), cfg)
    return model.commit(cache, tail, count_B)


@partial(jax.jit, static_argnames="cfg", donate_argnames=("cache",))
def read(
    weights: Weights, tokens_BT: Array, next_BT: Array, count_B: Array, cache: KVCache, cfg: ModelConfig
) -> tuple[KVCache, Array, Metrics]:
    """(the cache with these tokens, logprob_BT of the tokens that follow, metrics_BT) of a piece of given text.

    logprob_BT is in nats, of `next_BT` under the model; both it and the metrics are what decoding finds after each
    token. Only the first `count_B` positions of a row mean anything, the rest is padding that nobody sees. A row needs
    `length + T <= capacity`.
    """
    batch, width = tokens_BT.shape
    tail = model.empty_tail(cfg, batch, width, cache.k_LBKHS[0].dtype)
    logits_BTV, tail, attention = model.forward(weights, tokens_BT, cache, tail, cfg)
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)
    logit_BT = jnp.take_along_axis(logits_BTV, next_BT[..., None], axis=-1)[..., 0]
    return model.commit(cache, tail, count_B), logit_BT - log_normalizer(logits_BTV), metrics_BT


commit = jax.jit(model.commit, donate_argnames=("cache",))
truncate = jax.jit(model.truncate, donate_argnames=("cache",))
is_finite = jax.jit(model.is_finite)
grow = jax.jit(model.grow, static_argnames=("capacity",))
