"""Drafts for speculative decoding: what followed when the text last went on like this.

A draft costs no model: text that repeats itself, as a summary, an edit or code does, is its own best guess (prompt
lookup decoding, Saxena 2023). One forward pass reads the newest token and the drafted ones after it, and the sampler
goes through these positions in order, each with its own logits, metrics, state and key, for as long as what it draws
is what was drafted. Drafts change the speed and nothing else.
"""

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import NO_TOKEN
from entropix.decoding.sample_step import Sample, head_entropies, plain_step, sampler_inputs, where_row
from entropix.decoding.state import BatchInputs, DecodeState, Program, RowState, StepRecord
from entropix.model import kv_cache, transformer
from entropix.model.kv_cache import KVCache
from entropix.model.weights import Weights
from entropix.results import FinishReason
from entropix.samplers.base import SamplerInputs

LONGEST_MATCH, SHORTEST_MATCH = 3, 2  # tokens at the end of the text that must have stood there before


def draft_step(
    weights: Weights,
    inputs: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    sample: Sample,
    program: Program,
) -> tuple[DecodeState, StepRecord]:
    """(state, records `[n_draft + 1, B]`) after one forward pass, with `decode_step`'s number of tokens a row.

    Where no running row has a draft, the pass is no wider than without drafts.
    """
    end_B = cache.end_B + state.recent.used_B + 1
    draft_BK = lookup(state.text_BX, end_B, program.n_draft)
    running_B1 = (state.rows.finish_B == FinishReason.RUNNING)[:, None]

    def plain() -> tuple[DecodeState, StepRecord]:
        after, record = plain_step(weights, inputs, cache, state, sample, program)

        def padded(leaf_B: Array) -> Array:
            return jnp.pad(leaf_B[None], ((0, program.n_draft), *((0, 0),) * leaf_B.ndim))

        return after, jax.tree.map(padded, record)

    def drafted() -> tuple[DecodeState, StepRecord]:
        return _checked(weights, inputs, cache, state, draft_BK, sample, program)

    after, records = jax.lax.cond(jnp.any((draft_BK != NO_TOKEN) & running_B1), drafted, plain)
    text_BX = kv_cache.write_slots(state.text_BX, records.token_B.T, end_B, axis=1)
    return after._replace(text_BX=text_BX), records


def _checked(
    weights: Weights,
    inputs: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    draft_BK: Array,
    sample: Sample,
    program: Program,
) -> tuple[DecodeState, StepRecord]:
    """One forward pass over the newest token and the draft, and all the tokens that follow from it."""
    tokens_BT = jnp.concatenate([state.rows.token_B[:, None], jnp.maximum(draft_BK, 0)], axis=1)
    logits_BTV, recent, attention = transformer.forward(
        weights, tokens_BT, cache, state.recent, program.model
    )

    def follow(
        carry: tuple[RowState, Array], position: tuple[SamplerInputs, Array]
    ) -> tuple[tuple[RowState, Array], StepRecord]:
        rows, following_B = carry  # and which rows have drawn what was drafted so far
        seen, drafted_B = position
        after, record, _ = sample(inputs, rows, seen)
        record = record._replace(
            live_B=record.live_B & following_B,
            finish_B=jnp.where(following_B, record.finish_B, rows.finish_B),
        )
        return (where_row(following_B, after, rows), record.live_B & (record.token_B == drafted_B)), record

    nothing_B1 = jnp.full_like(draft_BK, NO_TOKEN, shape=(len(draft_BK), 1))
    seen = sampler_inputs(logits_BTV, attention, program)
    drafted_BT = jnp.concatenate([draft_BK, nothing_B1], axis=1)
    positions = jax.tree.map(lambda leaf_BT: jnp.moveaxis(leaf_BT, 1, 0), (seen, drafted_BT))
    everyone_B = jnp.ones(len(draft_BK), bool)
    (rows, _), records = jax.lax.scan(follow, (state.rows, everyone_B), positions)
    if program.record.head_entropies:
        records = records._replace(head_entropy_BLN=head_entropies(attention))
    used_B = state.recent.used_B + jnp.sum(records.live_B, axis=0, dtype=jnp.int32)
    recent = kv_cache.mask_unused(recent._replace(used_B=used_B))  # without the drafts that were wrong
    return DecodeState(rows, recent, state.text_BX), records


def lookup(text_BX: Array, end_B: Array, n_draft: int) -> Array:
    """draft_BK: the n_draft tokens after the latest earlier place where the text's last tokens stand, or NO_TOKEN.

    text_BX: tokens, int32, of which row b's text is the first `end_B[b]`. Of all earlier places the one with the
    longest match counts, of equally long ones the latest. Where the text ends before the draft does, the draft goes
    round: a text that matches itself p tokens back is taken to repeat every p tokens.
    """
    slot_X = jnp.arange(text_BX.shape[1], dtype=jnp.int32)[None, :]
    last_B1 = end_B[:, None] - 1
    matches_BX = jnp.zeros_like(text_BX)
    so_far_BX = slot_X < last_B1
    for back in range(LONGEST_MATCH):
        wanted_B1 = jnp.take_along_axis(text_BX, jnp.maximum(last_B1 - back, 0), axis=1)
        there_BX = jnp.pad(text_BX, ((0, 0), (back, 0)))[:, : text_BX.shape[1]]
        so_far_BX &= (there_BX == wanted_B1) & (slot_X >= back)
        matches_BX += so_far_BX.astype(jnp.int32)
    best_B1 = jnp.max(matches_BX, axis=1, keepdims=True)
    place_B1 = jnp.max(jnp.where(matches_BX == best_B1, slot_X, -1), axis=1, keepdims=True)
    period_B1 = jnp.maximum(last_B1 - place_B1, 1)
    source_BK = place_B1 + 1 + jnp.arange(n_draft, dtype=jnp.int32)[None, :] % period_B1
    draft_BK = jnp.take_along_axis(text_BX, source_BK, axis=1, mode="clip")
    return jnp.where(best_B1 >= SHORTEST_MATCH, draft_BK, NO_TOKEN)
