"""One decode step in which rows may fork: several paths of a row, rolled forward in one forward pass, the best kept.

The paths of a row are positions of one forward pass, side by side, with the row's cache and tail behind all of them
(`layout.fan`): nothing is copied or computed twice. What the best path has computed then moves into the tail.

Letters: C path of a row, BC rows and paths as rows of their own, D token of a path, the fork's own first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import ModelConfig
from entropix.decoding import backtracking, branching
from entropix.decoding.branching import Paths, Plan
from entropix.decoding.sample_step import BatchInputs, RowState, StepRecord, draw_logprob, where_row
from entropix.metrics import AttentionScores, measure
from entropix.model import kv_cache, transformer
from entropix.model.attention_mask import tree_mask
from entropix.model.kv_cache import KVCache, RecentKV
from entropix.model.weights import Weights
from entropix.results import FinishReason
from entropix.samplers.base import Candidates, SamplerInputs, is_token, log_normalizer

Draw = Callable[..., tuple[RowState, StepRecord, Candidates]]


class _Drawn(NamedTuple):
    """A step without forks: what the sampler made of the newest position of every row."""

    before: RowState
    rows: RowState
    record: StepRecord
    offered: Candidates
    context: SamplerInputs
    tail: RecentKV


def step(
    weights: Weights,
    request: BatchInputs,
    cache: KVCache,
    tail: RecentKV,
    before: RowState,
    draw: Draw,
    cfg: ModelConfig,
    plan: Plan,
) -> tuple[RowState, RecentKV, StepRecord]:
    """(rows, tail, records `[plan.lookahead + 1, B]`): one token a row or, where it forks, those of its best path.

    The tail's `used_B` is not that of these tokens. draw: one token a row, `drawing.draw_token`.
    """
    logits_BTV, tail, attention = transformer.forward(weights, before.token_B[:, None], cache, tail, cfg)
    context = contexts(logits_BTV, attention)
    rows, record, offered = draw(request, before, jnp.ones(len(tail.used_B), bool), context)
    drawn = _Drawn(before, rows, record, offered, context, tail)
    may_go_on_B = (rows.finish_B == FinishReason.RUNNING) | (rows.finish_B == FinishReason.STOP_TOKEN)
    asked_B = branching.wanted(
        plan, request.branching, rows.forks, record.info, context.metrics, before.step_B
    )
    asked_B &= record.live_B & may_go_on_B

    def straight() -> tuple[RowState, RecentKV, StepRecord]:
        return rows, tail, _padded([record], plan, branching.no_paths(plan, len(asked_B)))

    def forked() -> tuple[RowState, RecentKV, StepRecord]:
        return _fork(weights, request, cache, drawn, asked_B, draw, cfg, plan)

    return jax.lax.cond(jnp.any(asked_B), forked, straight)


def contexts(logits_BTV: Array, attention: AttentionScores) -> SamplerInputs:
    """What a sampler may look at, of every position as a row of its own, `[B·T]`."""
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), SamplerInputs(logits_BTV, metrics_BT))


def _fork(
    weights: Weights,
    request: BatchInputs,
    cache: KVCache,
    drawn: _Drawn,
    asked_B: Array,
    draw: Draw,
    cfg: ModelConfig,
    plan: Plan,
) -> tuple[RowState, RecentKV, StepRecord]:
    """What `step` returns, where some rows asked for a fork."""
    rows, tail, step_B = drawn.rows, drawn.tail, drawn.before.step_B
    per_path = ("key_B", "limit_B", "limit_reason_B")
    request = request._replace(**{name: _spread(getattr(request, name), plan) for name in per_path})
    everywhere_B = jnp.ones(len(step_B) * plan.paths, bool)
    openers, opening, valid_BC = _open(request, drawn, draw, plan)

    def rollout(
        token_BC: Array, world: tuple[RecentKV, Array]
    ) -> tuple[SamplerInputs, tuple[RecentKV, Array]]:
        fanned, depth = world
        beside = tree_mask(cache, fanned, tail.size, plan.paths, depth)
        logits_BCV, wider, attention = transformer.forward(weights, token_BC, cache, fanned, cfg, beside)
        return contexts(logits_BCV, attention), (wider._replace(used_B=fanned.used_B), depth + 1)

    def draw_path(paths: RowState, context: SamplerInputs) -> tuple[RowState, StepRecord]:
        after, record, _ = draw(request, paths, everywhere_B, context)
        before = (paths.sampler, _spread(step_B, plan)) if rows.retreats else ()
        return after, record._replace(before=before)

    world = (kv_cache.widen(tail, plan.paths * plan.depth), jnp.zeros((), jnp.int32))
    ends, (fanned, _), rolled = branching.roll(plan, openers, rollout, draw_path, world)
    every = jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), opening, rolled)

    fork_B = asked_B & jnp.any(valid_BC[:, 1:], axis=1)
    tried = _judged(request, every, ends, fork_B, valid_BC, plan)
    kept_B = fork_B & jnp.any(tried.score_BC > -jnp.inf, axis=1)  # not if all went wrong
    last = jax.tree.map(lambda leaf: branching.pick(leaf, tried.best_B), ends if plan.whole else openers)
    after = where_row(kept_B, last, rows._replace(retreats=()))
    chosen = jax.tree.map(lambda leaf: branching.pick(leaf, tried.best_B, axis=1), every)
    is_fork_D1 = jnp.arange(len(chosen.live_B))[:, None] == 0
    chosen = chosen._replace(
        live_B=chosen.live_B & (kept_B[None] | is_fork_D1),
        finish_B=jnp.where(kept_B[None], chosen.finish_B, rows.finish_B[None]),
    )
    records = [jax.tree.map(lambda leaf, d=d: leaf[d], chosen) for d in range(plan.lookahead + 1)]
    retreats = rows.retreats
    for later in records[1:] if retreats else ():
        counted = backtracking.count(retreats, later.info.injected_B)
        retreats = where_row(later.live_B, counted, retreats)
    after = after._replace(forks=branching.note(rows.forks, fork_B, step_B), retreats=retreats)
    if plan.whole:
        tail = kv_cache.accept_path(
            tail, fanned, jnp.where(kept_B, tried.best_B, kv_cache.NO_PATH), plan.paths
        )
    return after, tail, _padded(records, plan, tried)


def _open(request: BatchInputs, drawn: _Drawn, draw: Draw, plan: Plan) -> tuple[RowState, StepRecord, Array]:
    """(rows of the paths with their first tokens, the record of these, valid_BC).

    The first path of a row is what the sampler did. The others are put through it with all other tokens masked, so that
    what it remembers is what it would, had it drawn them.
    """
    before, context, record = drawn.before, drawn.context, drawn.record
    allowed = context
    if before.retreats:
        allowed = backtracking.without_forbidden(before.retreats, context, before.step_B)
    token_BC, valid_BC = branching.first_tokens(
        plan, request.branching, record.token_B, drawn.offered, allowed
    )
    opening_B = token_BC.reshape(-1)
    alike = _spread(context, plan)
    masked_BV = jnp.where(is_token(alike.logits_BV, opening_B), alike.logits_BV, -jnp.inf)
    everywhere_B = jnp.ones(len(opening_B), bool)
    unbound = _spread(before._replace(retreats=()), plan)  # paths take nothing back
    forced, _, _ = draw(request, unbound, everywhere_B, alike._replace(logits_BV=masked_BV))
    is_first_B = jnp.arange(len(opening_B)) % plan.paths == 0
    openers = where_row(is_first_B, _spread(drawn.rows._replace(retreats=()), plan), forced)
    info = _spread(record.info, plan)
    other = info._replace(
        logprob_B=filters.gather(alike.logits_BV, opening_B)
        - _spread(log_normalizer(context.logits_BV), plan),
        draw_logprob_B=draw_logprob(drawn.offered, token_BC).reshape(-1),
        score_B=jnp.full_like(info.score_B, jnp.nan),
    )
    opening = _spread(record, plan)._replace(
        token_B=opening_B, finish_B=openers.finish_B, info=where_row(is_first_B, info, other)
    )
    return openers, opening, valid_BC


def _judged(
    request: BatchInputs, every: StepRecord, ends: RowState, fork_B: Array, valid_BC: Array, plan: Plan
) -> Paths:
    """The paths with their scores. every: their records `[D, B·C]`; best_B is 0 in rows that do not fork."""

    def columns(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(len(leaf), -1, plan.paths), 0, -1), tree)

    live_BCD = columns(every.live_B)
    broken_BC = (ends.finish_B == FinishReason.NAN).reshape(-1, plan.paths)
    info, metrics = columns(every.info), columns(every.metrics)
    score_BC, best_B = branching.score_paths(
        plan, request.branching, valid_BC, broken_BC, live_BCD, info, metrics
    )
    return Paths(
        forked_B=fork_B,
        best_B=jnp.where(fork_B, best_B, 0),
        score_BC=score_BC,
        token_BCD=columns(every.token_B),
        logprob_BCD=info.logprob_B,
        live_BCD=live_BCD & valid_BC[:, :, None],
    )


def _spread(tree: Any, plan: Plan) -> Any:
    """Every row as often as it has paths, side by side."""

    def spread(leaf: Array) -> Array:
        several = jnp.broadcast_to(leaf[:, None], (len(leaf), plan.paths, *leaf.shape[1:]))
        return several.reshape(-1, *leaf.shape[1:])

    return jax.tree.map(spread, tree)


def _padded(records: Sequence[StepRecord], plan: Plan, paths: Paths) -> StepRecord:
    """These records as one, `[plan.lookahead + 1, B]`, those that are missing not live; the paths go with the first."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    missing = plan.lookahead + 1 - len(records)

    def pad(leaf: Array, n: int) -> Array:
        return jnp.pad(leaf, ((0, n), *((0, 0),) * (leaf.ndim - 1)))

    first = jax.tree.map(lambda leaf: pad(leaf[None], plan.lookahead), paths)
    return jax.tree.map(lambda leaf: pad(leaf, missing), stacked)._replace(paths=first)
