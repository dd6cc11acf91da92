"""One token of every row, the plain way: logits and attention scores -> metrics -> rule -> filters -> draw -> record.

Rule, filters and draw are the sampler's (`samplers`). What is optional wraps around `sample_step` from files of its
own: backtracking before and after the draw, drafts and branches around the whole of `plain_step`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array

from entropix.decoding.state import (
    Alternatives,
    BatchInputs,
    DecodeState,
    Program,
    RowState,
    StepRecord,
)
from entropix.metrics import AttentionScores, measure
from entropix.model import transformer
from entropix.model.kv_cache import KVCache
from entropix.model.weights import Weights
from entropix.numerics import entropy_bits, softmax_parts
from entropix.own_metrics import Metric
from entropix.results import FinishReason
from entropix.samplers.base import Candidates, Sampler, SamplerInputs, SeenAttention, log_normalizer
from entropix.sharding import top_k

# (inputs, rows, what the sampler sees) -> (rows, record, the candidates that one draw was made from)
Sample = Callable[[BatchInputs, RowState, SamplerInputs], tuple[RowState, StepRecord, Candidates]]


GENERATOR = "threefry2x32"  # of all random numbers
_DRAW = 0  # folded into the key of a step: what it is for. Without it all answers that were ever drawn would change


def plain_step(
    weights: Weights,
    inputs: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    sample: Sample,
    program: Program,
) -> tuple[DecodeState, StepRecord]:
    """(state, record `[B]`) after one forward pass over the newest token of every row."""
    newest_BT = state.rows.token_B[:, None]
    logits_BTV, recent, attention = transformer.forward(
        weights, newest_BT, cache, state.recent, program.model
    )
    seen = jax.tree.map(lambda leaf_BT: leaf_BT[:, 0], sampler_inputs(logits_BTV, attention, program))
    rows, record, _ = sample(inputs, state.rows, seen)
    if program.record.head_entropies:
        record = record._replace(head_entropy_BLN=head_entropies(attention)[0])
    used_B = state.recent.used_B + record.live_B.astype(jnp.int32)
    return DecodeState(rows, recent._replace(used_B=used_B), state.text_BX), record


def sampler_inputs(logits_BTV: Array, attention: AttentionScores, program: Program) -> SamplerInputs:
    """What the program's sampler may look at, of every position `[B, T]`."""
    seen = measured_inputs(logits_BTV, attention, program.record.metrics)
    if not program.sampler.attention:
        return seen
    scores_BTLNS = attention.scores_LBNTS.transpose(1, 3, 0, 2, 4)
    layers_LBTS = attention.visible_LBTS
    of_layers = None if layers_LBTS is None else layers_LBTS.transpose(1, 2, 0, 3)
    return seen._replace(attention=SeenAttention(scores_BTLNS, attention.visible_BTS, of_layers))


def measured_inputs(
    logits_BTV: Array, attention: AttentionScores, own: Sequence[Metric] = ()
) -> SamplerInputs:
    """The logits and all metrics of every position, `[B, T]`. own: those of one's own."""
    with jax.named_scope("metrics"):
        measured = {metric.name: metric.compute(logits_BTV, attention) for metric in own}
        chex.assert_shape(list(measured.values()), logits_BTV.shape[:2])
        return SamplerInputs(logits_BTV, measure(logits_BTV, attention), measured or None)


def sample_step(
    inputs: BatchInputs, rows: RowState, seen: SamplerInputs, numbers: Any, program: Program
) -> tuple[RowState, StepRecord, Candidates]:
    """One token of every row that runs: the sampler, then the tests for the end. Rows that have ended stand still.

    The record says by `live_B` which rows have a token. The candidates are those that one draw was made from.
    numbers: those of the sampler, on the device, for rows that have none of their own.
    """
    with jax.named_scope("sampler"):
        key_B = draw_keys(inputs.key_B, rows.step_B)
        if rows.numbers is None:
            drawn = program.sampler.step(key_B, rows.sampler, seen, numbers)
        else:
            drawn = jax.vmap(_alone(program.sampler))(key_B, rows.sampler, seen, rows.numbers)
        token_B, state, info, candidates = drawn
        chex.assert_tree_shape_prefix((token_B, state, info), rows.token_B.shape)

    running_B = rows.finish_B == FinishReason.RUNNING
    # NaN or +inf anywhere in a row's logits makes its entropy NaN.
    finite_B = jnp.isfinite(seen.metrics.logits_entropy)
    live_B = running_B & finite_B
    step_B = rows.step_B + live_B.astype(jnp.int32)
    ended_B = jnp.select(
        [~finite_B, jnp.any(token_B[:, None] == inputs.stop_E[None, :], axis=-1), step_B >= inputs.limit_B],
        [
            jnp.full_like(step_B, FinishReason.NAN),
            jnp.full_like(step_B, FinishReason.STOP_TOKEN),
            inputs.limit_reason_B,
        ],
        jnp.full_like(step_B, FinishReason.RUNNING),
    )
    finish_B = jnp.where(running_B, ended_B, rows.finish_B)

    record = StepRecord(token_B, live_B, finish_B, seen.metrics, info, seen.own)
    record = with_alternatives(record, seen.logits_BV, candidates, program)
    went_on = rows._replace(token_B=token_B, step_B=step_B, finish_B=finish_B, sampler=state)
    stood = rows._replace(finish_B=finish_B)
    return where_row(live_B, went_on, stood), record, candidates


def _alone(sampler: Sampler) -> Callable[..., Any]:
    """The sampler's step for a single row, without the axis of rows: for numbers that differ from row to row."""

    def step(key: Array, state: Any, seen: SamplerInputs, numbers: Any) -> Any:
        key, state, seen = jax.tree.map(lambda leaf: leaf[None], (key, state, seen))
        return jax.tree.map(lambda leaf: leaf[0], sampler.step(key, state, seen, numbers))

    return step


# ----- keys -------------------------------------------------------------------------------------------------


def row_keys(seed_B: Array, digest_B: Array, occurrence_B: Array) -> Array:
    """One key a row from (seed, what the prompt is, how often the batch has had both before), all uint32.

    A row's draws therefore do not depend on its place in the batch or on its neighbours, and repeating a prompt
    gives independent samples. The generator is part of the key: JAX's Threefry, whatever its environment says, since
    others draw for a whole batch at once.
    """

    def row(seed: Array, digest: Array, occurrence: Array) -> Array:
        key = jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(seed), seed]), impl=GENERATOR)
        return jax.random.fold_in(jax.random.fold_in(key, digest), occurrence)

    return jax.vmap(row)(seed_B, digest_B, occurrence_B)


def draw_keys(key_B: Array, step_B: Array) -> Array:
    """The key of each row's draw at this step of it. A rule that draws more than once folds numbers into it."""

    def row(key: Array, step: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, step), _DRAW)

    return jax.vmap(row)(key_B, step_B)


# ----- records ----------------------------------------------------------------------------------------------


def with_alternatives(
    record: StepRecord, logits_BV: Array, candidates: Candidates, program: Program
) -> StepRecord:
    """The record with the likeliest tokens, or the whole of a smaller vocabulary, if the program wants some; of equally
    likely ones the lower id comes first."""
    n = min(program.record.alternatives, logits_BV.shape[-1])
    if n == 0:
        return record
    logits_BA, token_BA = top_k(logits_BV, n)
    return record._replace(
        alternatives=Alternatives(
            token_BA=token_BA,
            logprob_BA=logits_BA - log_normalizer(logits_BV)[:, None],
            draw_logprob_BA=draw_logprob(candidates, token_BA),
        )
    )


def draw_logprob(candidates: Candidates, token_BA: Array) -> Array:
    """[B, A] in nats: of these tokens under one draw from the candidates; -inf for tokens that a filter removed."""
    logprob_BC = jax.nn.log_softmax(candidates.logits_BC, axis=-1)
    same_BAC = token_BA[:, :, None] == candidates.token_BC[:, None, :]
    return jnp.max(jnp.where(same_BAC, logprob_BC[:, None, :], -jnp.inf), axis=-1)


def head_entropies(attention: AttentionScores) -> Array:
    """[T, B, L, N] in bits: what the metric `attn_entropy` is the mean of, at every query position."""
    entropy_LBNT = entropy_bits(softmax_parts(attention.scores_LBNTS, attention.visible))
    return jnp.transpose(entropy_LBNT, (3, 1, 0, 2))


def where_row(condition_B: Array, these: Any, those: Any) -> Any:
    """A pytree of arrays whose first axis is the row: of these where the condition holds, of those elsewhere."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition_B.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, these, those)
