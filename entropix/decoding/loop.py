"""The compiled half of generation: prefill, one decode step, and the loop that runs many steps without the host.

A step is a pure function of its inputs. Rows share a batch and nothing else: each has its own key, strategy, limit
and end. How many steps run before the host looks is a traced number, so chunk length changes neither the program
nor a single token.

A step usually makes one token a row. With drafts it makes several: one forward pass reads the newest token and the
drafted ones after it, and the sampler then goes through these positions in order, each with its own logits, metrics
and key, for as long as what it draws is what was drafted.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import ModelConfig, SamplerConfig
from entropix.decoding import branch_step, sample_step, speculation
from entropix.decoding.branching import Plan
from entropix.decoding.sample_step import BatchInputs, RecordOptions, RowState, StepRecord, draw_token
from entropix.decoding.speculation import NO_TOKEN
from entropix.metrics import AttentionScores, Metrics, measure
from entropix.model import kv_cache, transformer
from entropix.model.kv_cache import KVCache, RecentKV
from entropix.model.weights import Weights
from entropix.numerics import entropy_bits, softmax_parts
from entropix.results import FinishReason
from entropix.samplers.base import Candidates, Sampler, SamplerInputs, log_normalizer

RECENT_SLOTS = 32  # tokens between two commits to the cache: the cost of a commit is spread over so many
_NO_EXTRAS, _NO_BRANCHES = RecordOptions(), Plan()


class DecodeState(NamedTuple):
    """What a step hands to the next."""

    rows: RowState
    tail: RecentKV
    text_BX: Array  # int32: prompt and answer, for drafts; without drafts X is 0


def decode_step(
    weights: Weights,
    request: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
    n_draft: int,
    extras: RecordOptions,
    plan: Plan,
) -> tuple[DecodeState, StepRecord]:
    """(state, records `[n_draft + 1, B]`) after one forward pass; at least one token for every running row.

    Where no row has a draft, the pass is no wider than without speculation. Where rows branch there are no drafts,
    `plan.depth` more passes and `plan.lookahead + 1` records.
    """
    draw = partial(draw_token, sampler_cfg=sampler_cfg, sampler=sampler, n_alternatives=extras.alternatives)
    if plan.is_on:
        assert n_draft == 0 and not extras.head_entropies
        rows, tail, records = branch_step.step(
            weights, request, cache, state.tail, state.rows, draw, cfg, plan
        )
        return DecodeState(rows, _used(state.tail, tail, records), state.text_BX), records
    advance = partial(_advance, weights, request, cache, state, draw=draw, cfg=cfg, extras=extras)
    if n_draft == 0:
        return advance(jnp.zeros((len(request.key_B), 0), jnp.int32))
    end_B = cache.end_B + state.tail.used_B + 1
    draft_BK = speculation.lookup(state.text_BX, end_B, n_draft)
    running_B1 = (state.rows.finish_B == FinishReason.RUNNING)[:, None]

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
    request: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    draft_BK: Array,
    draw: Callable[..., tuple[RowState, StepRecord, Candidates]],
    cfg: ModelConfig,
    extras: RecordOptions,
) -> tuple[DecodeState, StepRecord]:
    """One forward pass over the newest token and the draft, and all the tokens that follow from it."""
    given_BT = jnp.concatenate([state.rows.token_B[:, None], jnp.maximum(draft_BK, 0)], axis=1)
    logits_BTV, tail, attention = transformer.forward(weights, given_BT, cache, state.tail, cfg)
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)

    def follow(
        carry: tuple[RowState, Array], position: tuple[SamplerInputs, Array]
    ) -> tuple[tuple[RowState, Array], StepRecord]:
        rows, following_B = carry  # and which rows have drawn what was drafted so far
        context, drafted_B = position
        rows, record, _ = draw(request, rows, following_B, context)
        return (rows, record.live_B & (record.token_B == drafted_B)), record

    n_positions = given_BT.shape[1]
    nothing_B1 = jnp.full_like(draft_BK, NO_TOKEN, shape=(len(draft_BK), 1))
    positions = jax.tree.map(
        lambda leaf_BT: jnp.moveaxis(leaf_BT, 1, 0),
        (SamplerInputs(logits_BTV, metrics_BT), jnp.concatenate([draft_BK, nothing_B1], axis=1)),
    )
    everyone_B = jnp.ones(len(draft_BK), bool)
    (rows, _), records = jax.lax.scan(follow, (state.rows, everyone_B), positions, unroll=n_positions == 1)
    if extras.head_entropies:
        records = records._replace(head_entropy_BLN=_head_entropies(attention))

    text_BX = state.text_BX
    if text_BX.shape[1] > 0:
        end_B = cache.end_B + state.tail.used_B + 1
        text_BX = kv_cache.write_slots(text_BX, records.token_B.T, end_B, axis=1)
    tail = _used(state.tail, tail, records)
    if n_positions > 1:
        tail = kv_cache.mask_unused(tail)
    return DecodeState(rows=rows, tail=tail, text_BX=text_BX), records


def _used(before: RecentKV, after: RecentKV, records: StepRecord) -> RecentKV:
    """The tail with one more slot in use for every token that a row has drawn."""
    return after._replace(used_B=before.used_B + jnp.sum(records.live_B, axis=0, dtype=jnp.int32))


def _head_entropies(attention: AttentionScores) -> Array:
    """[T, B, L, N] in bits: what the metric `attn_entropy` is the mean of, at every query position."""
    entropy_LBNT = entropy_bits(softmax_parts(attention.scores_LBNTS, attention.visible_BTS[:, None]))
    return jnp.transpose(entropy_LBNT, (3, 1, 0, 2))


@partial(jax.jit, static_argnames=("cfg", "sampler", "n_draft", "extras", "plan"), donate_argnames=("state",))
def decode_chunk(
    weights: Weights,
    request: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    n_steps: Array,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
    n_draft: int = 0,
    extras: RecordOptions = _NO_EXTRAS,
    plan: Plan = _NO_BRANCHES,
) -> tuple[DecodeState, StepRecord, Array]:
    """(state, records `[tail size, R, B]`, how many of them, by the first axis, are filled).

    R is what one step may add to a row: 1, and n_draft or `plan.lookahead` more.

    Runs until `n_steps` are done, a tail has no room for another step, or every row has ended. The cache is only
    read; `commit` the full tail before the next chunk.
    """
    state = kv_cache.lay_out(state, row_axis=0)  # whole again at the end, for the host, and not in every step
    step = jax.jit(  # inline, hence only a memory of its trace, which is wanted twice
        partial(
            decode_step,
            sampler_cfg=sampler_cfg,
            cfg=cfg,
            sampler=sampler,
            n_draft=n_draft,
            extras=extras,
            plan=plan,
        ),
        inline=True,
    )
    size = state.tail.size
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype),
        jax.eval_shape(step, weights, request, cache, state)[1],
    )
    blank = kv_cache.lay_out(blank, row_axis=2)

    def go_on(carry: tuple[Array, DecodeState, StepRecord]) -> Array:
        done, state, _ = carry
        running_B = state.rows.finish_B == FinishReason.RUNNING
        full_B = state.tail.used_B + max(n_draft, plan.lookahead) >= size
        # 0 has ended, 1 goes on, 2 cannot: the largest decides, in a single exchange between the devices.
        return (done < n_steps) & (jnp.max(jnp.where(running_B, jnp.where(full_B, 2, 1), 0)) == 1)

    def body(carry: tuple[Array, DecodeState, StepRecord]) -> tuple[Array, DecodeState, StepRecord]:
        done, state, records = carry
        state, record = step(weights, request, cache, state)
        records = jax.tree.map(lambda buffer, new: buffer.at[done].set(new), records, record)
        return done + 1, kv_cache.lay_out(state, row_axis=0), kv_cache.lay_out(records, row_axis=2)

    done, state, records = jax.lax.while_loop(go_on, body, (jnp.zeros((), jnp.int32), state, blank))
    return kv_cache.lay_out((state, records, done))


@partial(jax.jit, static_argnames=("cfg", "from_empty"), donate_argnames=("cache",))
def prefill(
    weights: Weights, tokens_BT: Array, count_B: Array, cache: KVCache, cfg: ModelConfig, from_empty: bool
) -> KVCache:
    """The cache with the first `count_B` of these tokens appended to each row; the rest is padding nobody sees.

    `from_empty` promises that the cache holds nothing yet, so that no query looks for keys in it.
    """
    batch, width = tokens_BT.shape
    dtype = cache.k_LBKHS[0].dtype
    past = kv_cache.empty_cache(cfg, batch, 0, dtype) if from_empty else cache
    tail = transformer.prefill(weights, tokens_BT, past, kv_cache.empty_recent(cfg, batch, width, dtype), cfg)
    return kv_cache.lay_out(kv_cache.commit(cache, tail, count_B))


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
    tail = kv_cache.empty_recent(cfg, batch, width, cache.k_LBKHS[0].dtype)
    logits_BTV, tail, attention = transformer.forward(weights, tokens_BT, cache, tail, cfg)
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)
    logit_BT = jnp.take_along_axis(logits_BTV, next_BT[..., None], axis=-1)[..., 0]
    logprob_BT = logit_BT - log_normalizer(logits_BTV)
    return kv_cache.lay_out((kv_cache.commit(cache, tail, count_B), logprob_BT, metrics_BT))


def _placed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its result laid out on the mesh."""

    @wraps(function)
    def placed(*args: Any, **options: Any) -> Any:
        return kv_cache.lay_out(function(*args, **options))

    return placed


row_keys = jax.jit(sample_step.row_keys)
empty_cache = jax.jit(_placed(kv_cache.empty_cache), static_argnums=(0, 1, 2, 3))
empty_recent = jax.jit(_placed(kv_cache.empty_recent), static_argnums=(0, 1, 2, 3))
commit = jax.jit(_placed(kv_cache.commit), donate_argnames=("cache",))
truncate = jax.jit(_placed(kv_cache.truncate), donate_argnames=("cache",))
is_finite = jax.jit(_placed(kv_cache.is_finite))
gather_rows = jax.jit(_placed(kv_cache.gather_rows))
share = jax.jit(_placed(kv_cache.share), static_argnames=("n_rows",))
grow = jax.jit(_placed(kv_cache.grow), static_argnames=("capacity",))
