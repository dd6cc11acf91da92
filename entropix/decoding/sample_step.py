"""What one drawn token does to each row: the sampler, the tests for the end, and the record of it all.

Here nothing knows the model: a position comes as logits and metrics, wherever these are from.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import SamplerConfig
from entropix.decoding import backtracking
from entropix.decoding.branching import Paths
from entropix.metrics import Metrics
from entropix.results import FinishReason
from entropix.samplers.base import (
    Candidates,
    SampleInfo,
    Sampler,
    SamplerInputs,
    log_normalizer,
    model_logprob,
)
from entropix.sharding import top_k


class Purpose(IntEnum):
    """What a random key is for; folded in last, so that two uses in one step never share a key."""

    DRAW = 0


class BatchInputs(NamedTuple):
    """What stays fixed while a batch is generated."""

    key_B: Array  # one typed key a row
    limit_B: Array  # int32: most tokens to generate
    limit_reason_B: (
        Array  # int32: FinishReason.LENGTH or FinishReason.CONTEXT, whichever the limit comes from
    )
    stop_E: Array  # int32: tokens that end a row, padded with NO_TOKEN
    branching: Any = ()  # a `branching.Numbers` where generation branches
    backtracking: Any = ()  # a `backtracking.Numbers` where tokens may be taken back


class RowState(NamedTuple):
    """What one drawn token changes in each row."""

    token_B: Array  # int32: the newest token, whose key and value are not computed yet
    step_B: Array  # int32: tokens generated so far
    finish_B: Array  # int32: FinishReason
    sampler: Any  # the sampler's own state
    forks: Any = ()  # a `branching.BranchState` where generation branches
    retreats: Any = ()  # a `backtracking.Backtracks` where tokens may be taken back


class RecordOptions(NamedTuple):
    """What a record holds besides the usual. Static: what is not asked for is not in the program."""

    alternatives: int = 0  # how many of the likeliest tokens
    head_entropies: bool = False


class Alternatives(NamedTuple):
    """The A likeliest tokens of each row, likeliest first."""

    token_BA: Array  # int32
    logprob_BA: Array  # nats, under the model: temperature 1, nothing filtered
    draw_logprob_BA: Array  # nats, under what one draw was made from; -inf for tokens that a filter removed


class StepRecord(NamedTuple):
    """One token of every row, or a buffer of such with a leading axis."""

    token_B: Array  # int32
    live_B: Array  # bool: this row generated this token; where not, the other fields mean nothing
    finish_B: Array  # int32: FinishReason after the token
    metrics: Metrics
    info: SampleInfo
    alternatives: Alternatives | tuple[()] = ()
    head_entropy_BLN: Array | tuple[()] = ()  # bits: attention entropy of each head of each layer
    paths: Paths | tuple[()] = ()  # where generation branches: what was tried; in the records of forks
    before: Any = ()  # where tokens may be taken back: before this one, (the sampler's state, the latest fork)


def row_keys(seed_B: Array, digest_B: Array, occurrence_B: Array) -> Array:
    """One key a row from (seed, what the prompt is, how often the batch has had both before), all uint32.

    A row's draws therefore do not depend on its place in the batch or on its neighbours, and repeating a prompt
    gives independent samples.
    """

    def row(seed: Array, digest: Array, occurrence: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), digest), occurrence)

    return jax.vmap(row)(seed_B, digest_B, occurrence_B)


def draw_token(
    request: BatchInputs,
    rows: RowState,
    drawing_B: Array,
    context: SamplerInputs,
    sampler_cfg: SamplerConfig,
    sampler: Sampler,
    n_alternatives: int,
) -> tuple[RowState, StepRecord, Candidates]:
    """One token of every row that runs and is `drawing`: the sampler, then the tests for the end. Others stand still.

    The record says by `live_B` which rows have a token. The candidates are those that one draw was made from.
    """
    with jax.named_scope("sampler"):
        key_B = jax.vmap(lambda key, step: jax.random.fold_in(jax.random.fold_in(key, step), Purpose.DRAW))(
            request.key_B, rows.step_B
        )
        allowed = context
        if rows.retreats:
            allowed = backtracking.without_forbidden(rows.retreats, context, rows.step_B)
        token_B, sampler_state, info, candidates = sampler.step(key_B, rows.sampler, allowed, sampler_cfg)
        chex.assert_tree_shape_prefix((token_B, sampler_state, info), rows.token_B.shape)

    running_B = (rows.finish_B == FinishReason.RUNNING) & drawing_B
    # NaN or +inf anywhere in a row's logits makes its entropy NaN.
    finite_B = jnp.isfinite(context.metrics.logits_entropy)
    live_B = running_B & finite_B
    if rows.retreats:
        retreating_B = live_B & backtracking.wanted(rows.retreats, request.backtracking, info, rows.step_B)
        live_B &= ~retreating_B
        # What is forbidden counts neither in the log-probability nor in a score that is made of it.
        logprob_B = model_logprob(context.logits_BV, token_B)
        info = info._replace(logprob_B=logprob_B, score_B=info.score_B + logprob_B - info.logprob_B)
    step_B = rows.step_B + live_B.astype(jnp.int32)
    ended_B = jnp.select(
        [~finite_B, jnp.any(token_B[:, None] == request.stop_E[None, :], axis=-1), step_B >= request.limit_B],
        [
            jnp.full_like(step_B, FinishReason.NAN),
            jnp.full_like(step_B, FinishReason.STOP_TOKEN),
            request.limit_reason_B,
        ],
        jnp.full_like(step_B, FinishReason.RUNNING),
    )
    finish_B = jnp.where(running_B, ended_B, rows.finish_B)
    if rows.retreats:
        finish_B = jnp.where(retreating_B, FinishReason.BACKTRACKING, finish_B)
    record = StepRecord(token_B, live_B, finish_B, context.metrics, info)
    if n_alternatives:
        record = record._replace(alternatives=_alternatives(context.logits_BV, candidates, n_alternatives))
    if rows.retreats:
        record = record._replace(before=(rows.sampler, rows.forks.latest_B if rows.forks else ()))
    moved = rows._replace(token_B=token_B, step_B=step_B, finish_B=finish_B, sampler=sampler_state)
    if rows.retreats:
        moved = moved._replace(retreats=backtracking.count(rows.retreats, info.injected_B))
    stood = rows._replace(step_B=step_B, finish_B=finish_B)
    return where_row(live_B, moved, stood), record, candidates


def where_row(condition_B: Array, these: Any, those: Any) -> Any:
    """A pytree of arrays whose first axis is the row: of these where the condition holds, of those elsewhere."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition_B.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, these, those)


def _alternatives(logits_BV: Array, candidates: Candidates, n: int) -> Alternatives:
    """The n likeliest tokens, or the whole of a smaller vocabulary; of equally likely ones the lower id first."""
    logits_BA, token_BA = top_k(logits_BV, min(n, logits_BV.shape[-1]))
    return Alternatives(
        token_BA=token_BA,
        logprob_BA=logits_BA - log_normalizer(logits_BV)[:, None],
        draw_logprob_BA=draw_logprob(candidates, token_BA),
    )


def draw_logprob(candidates: Candidates, token_BA: Array) -> Array:
    """[B, A] in nats: of these tokens under one draw from the candidates; -inf for tokens that a filter removed."""
    logprob_BC = jax.nn.log_softmax(candidates.logits_BC, axis=-1)
    same_BAC = token_BA[:, :, None] == candidates.token_BC[:, None, :]
    return jnp.max(jnp.where(same_BAC, logprob_BC[:, None, :], -jnp.inf), axis=-1)
