"""Backtracking: where the model has lost its way, take back the last tokens, forbid the choice they began with, go on.

`around` wraps the step that draws a token: before the draw, what was tried is forbidden; after it, a row whose strategy
asks for it stands still instead. The host then takes its newest tokens back (`session`): keys and values lie at their
positions, so that what is left of the cache is exact as it is. The step at which the tokens began draws again with the
same random numbers, from the model's distribution without the tokens tried there before.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import NO_TOKEN, BacktrackConfig
from entropix.decoding.sample_step import Sample, where_row, with_alternatives
from entropix.decoding.state import (
    BacktrackParams,
    Backtracks,
    BatchInputs,
    Before,
    Program,
    RowState,
    StepRecord,
)
from entropix.results import FinishReason
from entropix.samplers.base import Candidates, SampleInfo, SamplerInputs, model_logprob

MAX_FORBIDDEN = 8  # tokens tried at one step; a shape, hence fixed


def params(cfg: BacktrackConfig, strategies: tuple[str, ...]) -> BacktrackParams | None:
    """The configuration, for a sampler with these strategies; None if nothing is ever taken back."""
    if not cfg.is_on:
        return None
    return BacktrackParams(
        tokens=jnp.asarray(cfg.tokens, jnp.int32),
        budget=jnp.asarray(cfg.budget, jnp.int32),
        asks_S=jnp.asarray([name in cfg.strategies for name in strategies]),
    )


def none_yet(batch: int) -> Backtracks:
    """The state of rows at their beginning."""

    def whole(*shape: int, value: int = 0) -> Array:
        return jnp.full((batch, *shape), value, jnp.int32)

    return Backtracks(
        count_B=whole(),
        plain_B=whole(),
        frontier_B=whole(),
        place_B=whole(value=-1),
        forbidden_BF=whole(MAX_FORBIDDEN, value=NO_TOKEN),
    )


# ----- on the device ----------------------------------------------------------------------------------------


def around(sample: Sample, program: Program) -> Sample:
    """The step with backtracking around it, for rows that may take tokens back."""

    def step(
        inputs: BatchInputs, rows: RowState, seen: SamplerInputs
    ) -> tuple[RowState, StepRecord, Candidates]:
        if rows.backtracks is None:  # a path of a fork: what is rolled forward takes nothing back
            return sample(inputs, rows, seen)
        after, record, candidates = sample(inputs, rows, before_draw(rows, seen))
        record = with_alternatives(record, seen.logits_BV, candidates, program)
        return *after_draw(inputs, rows, after, record, seen), candidates

    return step


def before_draw(rows: RowState, seen: SamplerInputs) -> SamplerInputs:
    """What the sampler may see: the logits of tokens that were tried at this step are -inf; the metrics stay."""
    if rows.backtracks is None:
        return seen
    n_tokens = seen.logits_BV.shape[1]
    here_B1 = (rows.backtracks.place_B == rows.step_B)[:, None]
    row_B1 = jnp.arange(len(rows.step_B))[:, None]
    forbidden_BF = rows.backtracks.forbidden_BF
    token_BF = jnp.where(here_B1 & (forbidden_BF >= 0), forbidden_BF, n_tokens)
    return seen._replace(logits_BV=seen.logits_BV.at[row_B1, token_BF].set(-jnp.inf, mode="drop"))


def after_draw(
    inputs: BatchInputs, before: RowState, after: RowState, record: StepRecord, seen: SamplerInputs
) -> tuple[RowState, StepRecord]:
    """Rows and record where rows that want to go back stand still and say so; `seen` is what nothing was taken from."""
    assert before.backtracks is not None and inputs.backtracking is not None
    # What is forbidden counts neither in the log-probability nor in a score that is made of it.
    logprob_B = model_logprob(seen.logits_BV, record.token_B)
    info = record.info._replace(
        logprob_B=logprob_B, score_B=record.info.score_B + logprob_B - record.info.logprob_B
    )
    back_B = record.live_B & wanted(before.backtracks, inputs.backtracking, info, before.step_B)
    live_B = record.live_B & ~back_B
    finish_B = jnp.where(back_B, FinishReason.BACKTRACKING, record.finish_B)
    counted = where_row(live_B, count(before.backtracks, info.injected_B), before.backtracks)
    stood = before._replace(finish_B=finish_B)
    rows = where_row(back_B, stood, after)._replace(backtracks=counted)
    latest_fork_B = None if before.branching is None else before.branching.latest_B
    return rows, record._replace(
        live_B=live_B, finish_B=finish_B, info=info, before=Before(before.sampler, latest_fork_B)
    )


def wanted(backtracks: Backtracks, params: BacktrackParams, info: SampleInfo, step_B: Array) -> Array:
    """bool_B: where to take tokens back instead of drawing one.

    A strategy asks for it; and there are enough tokens, none of them inserted (no logit could forbid that), the budget
    is not used up, the row is not on its way back to where it turned, and the step to which it would lead has room for
    one more forbidden token. So every row ends.
    """
    allowed_B = (backtracks.plain_B >= params.tokens) & (backtracks.count_B < params.budget)
    allowed_B &= step_B >= backtracks.frontier_B
    again_B = backtracks.place_B == step_B - params.tokens
    allowed_B &= ~again_B | (backtracks.forbidden_BF[:, -1] == NO_TOKEN)
    return allowed_B & params.asks_S[info.strategy_B] & ~info.injected_B


def count(backtracks: Backtracks, injected_B: Array) -> Backtracks:
    """The state after one more token."""
    return backtracks._replace(plain_B=jnp.where(injected_B, 0, backtracks.plain_B + 1))


# ----- on the host ------------------------------------------------------------------------------------------


def go_back(rows: Any, row: int, tokens: int, dropped: int, before: Before) -> None:
    """Writes into one row of a `RowState` of numpy arrays that its newest tokens are taken back.

    dropped: the first of them, which is forbidden from now on. before: what there was before it was drawn.
    """
    write_turn(rows.backtracks, row, int(rows.step_B[row]), tokens, dropped)
    rows.step_B[row] -= tokens
    rows.finish_B[row] = FinishReason.RUNNING
    latest_fork_B = None if rows.branching is None else rows.branching.latest_B
    now = Before(rows.sampler, latest_fork_B)
    for leaf, old in zip(jax.tree.leaves(now), jax.tree.leaves(before), strict=True):
        leaf[row] = old


def write_turn(backtracks: Any, row: int, step: int, tokens: int, dropped: int) -> None:
    """Writes into one row of a `Backtracks` of numpy arrays that tokens were taken back at this step, `dropped` being
    the first of them."""
    place = step - tokens
    forbidden_F = backtracks.forbidden_BF[row]
    if backtracks.place_B[row] != place:
        forbidden_F[:] = NO_TOKEN
    forbidden_F[(forbidden_F != NO_TOKEN).sum()] = dropped
    backtracks.count_B[row] += 1
    backtracks.plain_B[row] -= tokens
    backtracks.frontier_B[row] = step
    backtracks.place_B[row] = place
