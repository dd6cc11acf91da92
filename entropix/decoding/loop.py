"""The compiled half of decoding: one step, and the loop that runs many of them without the host; prefill; scoring.

A step is a pure function of its inputs. Rows share a batch and nothing else: each has its own key, strategy, limit
and end. How many steps run before the host looks is a traced number, so chunk length changes neither the program
nor a single token.

What is compiled is declared here and nowhere else (a layer of the model is jitted inside, to be traced once): this file
says what is traced, static, donated and kept on disk.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from entropix import metrics
from entropix.config import ModelConfig
from entropix.decoding import backtracking, sample_step
from entropix.decoding.branch_step import branch_step
from entropix.decoding.kept_programs import kept
from entropix.decoding.sample_step import Sample, plain_step
from entropix.decoding.speculation import draft_step
from entropix.decoding.state import BatchInputs, ChunkEnd, DecodeState, Program, StepRecord
from entropix.metrics import AttentionScores, Metrics
from entropix.model import kv_cache, transformer
from entropix.model.attention_mask import causal_mask
from entropix.model.kv_cache import KVCache
from entropix.model.weights import Weights
from entropix.own_metrics import Metric
from entropix.results import FinishReason
from entropix.samplers.base import SamplerInputs, log_normalizer

RECENT_SLOTS = 32  # tokens between two commits to the cache: the cost of a commit is spread over so many


def decode_step(
    weights: Weights, inputs: BatchInputs, cache: KVCache, state: DecodeState, numbers: Any, program: Program
) -> tuple[DecodeState, StepRecord]:
    """(state, records `[lookahead + 1, B]`) after one forward pass, and those of forks.

    A running row gets one to `program.lookahead + 1` tokens, but none where it waits to fork, is to take tokens back,
    or has logits that are not finite.
    """
    sample: Sample = partial(sample_step.sample_step, numbers=numbers, program=program)
    if state.rows.backtracks is not None:
        sample = backtracking.around(sample, program)
    if program.branching is not None:
        assert program.n_draft == 0 and not program.record.head_entropies
        return branch_step(weights, inputs, cache, state, sample, program)
    if program.n_draft > 0:
        return draft_step(weights, inputs, cache, state, sample, program)
    state, record = plain_step(weights, inputs, cache, state, sample, program)
    return state, jax.tree.map(lambda leaf_B: leaf_B[None], record)


@kept(static=("program",))
@partial(jax.jit, static_argnames=("program",), donate_argnames=("state",))
def decode_chunk(
    weights: Weights,
    inputs: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    until: ChunkEnd,
    numbers: Any,
    program: Program,
) -> tuple[DecodeState, StepRecord, Array]:
    """(state, records `[recent slots, lookahead + 1, B]`, how many of them, by the first axis, are filled).

    Runs `until` its end, or until every row has ended, a row has no room for another step's recent tokens, or the
    records are full. The cache is only read; `commit` the recent tokens before the next chunk if they fill their slots.

    numbers: those of the sampler, as arrays (`inputs.device_numbers`).
    """
    state = kv_cache.lay_out(state, row_axis=0)  # whole again at the end, for the host, and not in every step
    # An inline jit only caches the step's trace, which both eval_shape and the loop need.
    step = jax.jit(partial(decode_step, numbers=numbers, program=program), inline=True)
    size = state.recent.size
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype),
        jax.eval_shape(step, weights, inputs, cache, state)[1],
    )
    blank = kv_cache.lay_out(blank, row_axis=2)

    def go_on(carry: tuple[Array, DecodeState, StepRecord]) -> Array:
        done, state, _ = carry
        running_B = state.rows.finish_B == FinishReason.RUNNING
        full_B = state.recent.used_B + program.lookahead >= size
        # A row that cannot go on counts as more than all that have ended: one exchange between the devices.
        batch = len(running_B)
        blocked = jnp.sum(jnp.where(running_B, jnp.where(full_B, batch, 0), 1))
        return (done < jnp.minimum(until.n_steps, size)) & (blocked < jnp.minimum(until.n_ended, batch))

    def body(carry: tuple[Array, DecodeState, StepRecord]) -> tuple[Array, DecodeState, StepRecord]:
        done, state, records = carry
        state, record = step(weights, inputs, cache, state)
        at_done = partial(jax.lax.dynamic_update_index_in_dim, index=done, axis=0)
        records = jax.tree.map(at_done, records, record)
        return done + 1, kv_cache.lay_out(state, row_axis=0), kv_cache.lay_out(records, row_axis=2)

    done, state, records = jax.lax.while_loop(go_on, body, (jnp.zeros((), jnp.int32), state, blank))
    return kv_cache.lay_out((state, records, done))


@kept(static=("cfg", "from_empty"))
@partial(jax.jit, static_argnames=("cfg", "from_empty"), donate_argnames=("cache",))
def prefill(
    weights: Weights,
    tokens_BT: Array,
    count_B: Array,
    cache: KVCache,
    cfg: ModelConfig,
    from_empty: bool,
    rope_length_B: Array | None = None,
) -> KVCache:
    """The cache with the first `count_B` of these tokens appended to each row; the rest is padding nobody sees.

    `from_empty` promises that the cache holds nothing yet, so that no query looks for keys in it. rope_length_B: as of
    `rope.rope_table`.
    """
    batch, width = tokens_BT.shape
    dtype = cache.k_LBKHS[0].dtype
    past = kv_cache.empty_cache(cfg, batch, 0, dtype) if from_empty else cache
    recent = kv_cache.empty_recent(cfg, batch, width, dtype)
    recent = transformer.prefill(
        weights, tokens_BT, past, recent, cfg, causal_mask(past, recent, width, rope_length_B)
    )
    return kv_cache.lay_out(kv_cache.commit(cache, recent, count_B))


@partial(jax.jit, static_argnames=("cfg", "own"), donate_argnames=("cache",))
def score_tokens(
    weights: Weights,
    text_BX: Array,
    count_B: Array,
    cache: KVCache,
    cfg: ModelConfig,
    own: tuple[Metric, ...] = (),
    rope_length_B: Array | None = None,
) -> tuple[KVCache, Array, dict[str, Array]]:
    """(the cache with T more tokens, logprob_BT of those that follow them, every metric_BT by name) of a piece of text.

    text_BX: T + 1 tokens, of which the last one only follows. Among the metrics is `rank`, int32: 1 plus how many
    tokens are likelier than the one that follows. logprob_BT is in nats, under the model; both it and the metrics are
    what decoding finds after each token of a text that is not longer than `rope_original_length`. Only the first
    `count_B` positions of a row mean anything, the rest is padding that nobody sees. A row needs `length + T <=
    capacity`. rope_length_B: as of `rope.rope_table`, of the whole texts.
    """
    tokens_BT, next_BT = text_BX[:, :-1], text_BX[:, 1:]
    batch, width = tokens_BT.shape
    recent = kv_cache.empty_recent(cfg, batch, width, cache.k_LBKHS[0].dtype)
    mask = causal_mask(cache, recent, width, rope_length_B)
    if own:  # which may ask for the scores of all layers
        logits_BTV, recent, attention = transformer.forward(weights, tokens_BT, cache, recent, cfg, mask)
        seen = sample_step.measured_inputs(logits_BTV, attention, own)
        metrics_BT = {**seen.metrics._asdict(), **(seen.own or {})}
    else:
        logits_BTV, recent, measured = transformer.measured_forward(
            weights, tokens_BT, cache, recent, cfg, mask
        )
        metrics_BT = Metrics(**metrics.token_metrics(logits_BTV), **measured)._asdict()
    logit_BT = jnp.take_along_axis(logits_BTV, next_BT[..., None], axis=-1)[..., 0]
    logprob_BT = logit_BT - log_normalizer(logits_BTV)
    metrics_BT["rank"] = 1 + jnp.sum(logits_BTV > logit_BT[..., None], axis=-1, dtype=jnp.int32)
    return kv_cache.lay_out((kv_cache.commit(cache, recent, count_B), logprob_BT, metrics_BT))


@partial(jax.jit, static_argnames=("cfg", "own"))
def forward(
    weights: Weights,
    tokens_BT: Array,
    cfg: ModelConfig,
    own: tuple[Metric, ...] = (),
    rope_length_B: Array | None = None,
) -> tuple[SamplerInputs, AttentionScores]:
    """(logits and metrics of every position, raw scores) of whole texts; own: metrics of one's own. rope_length_B: as
    of `rope.rope_table`."""
    batch, width = tokens_BT.shape
    dtype = weights.embed_VD.dtype
    past = kv_cache.empty_cache(cfg, batch, 0, dtype)
    recent = kv_cache.empty_recent(cfg, batch, width, dtype)
    mask = causal_mask(past, recent, width, rope_length_B)
    logits_BTV, _, attention = transformer.forward(weights, tokens_BT, past, recent, cfg, mask)
    return kv_cache.lay_out((sample_step.measured_inputs(logits_BTV, attention, own), attention))


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
share_row = jax.jit(_placed(kv_cache.share_row), static_argnames=("n_rows",))
empty_on_prefix = jax.jit(_placed(kv_cache.empty_on_prefix), static_argnames=("n_rows",))
grow = jax.jit(_placed(kv_cache.grow), static_argnames=("capacity",))
narrow = jax.jit(_placed(kv_cache.narrow), static_argnames=("capacity",))
put_rows = jax.jit(_placed(kv_cache.put_rows), donate_argnames=("tree",))
