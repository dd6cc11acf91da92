"""One decode step in which rows may fork: several paths of a row, rolled forward in one forward pass, the best kept.

    open    the first tokens: the drawn one, and the likeliest that might have been drawn instead
    roll    every path `depth` tokens forward, all paths of all rows in one pass a token
    score   the paths, and choose
    keep    the best path's tokens, keys and values; all else is discarded

The paths of a row are positions of one forward pass, side by side, with the row's cache and recent tokens behind all of
them (`attention_mask.tree_mask`): nothing is copied or computed twice.

The passes of a fork are made with all rows, whoever forks. So a row that is to fork waits for others: it stands still
and, as its step is a pure function of its state, comes to the same again in the next pass, which is made for the others
anyway. All that wait fork as soon as they have lost as much by it as the other rows will.

Letters: C path of a row, BC rows and paths as rows of their own, D token of a path, the fork's own first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.decoding import backtracking, branching
from entropix.decoding.sample_step import Sample, draw_logprob, sampler_inputs, where_row
from entropix.decoding.state import (
    BatchInputs,
    Before,
    BranchPlan,
    DecodeState,
    Paths,
    Program,
    RowState,
    StepRecord,
)
from entropix.metrics import AttentionScores
from entropix.model import kv_cache, transformer
from entropix.model.attention_mask import AttentionMask, tree_mask
from entropix.model.kv_cache import KVCache, RecentKV
from entropix.model.weights import Weights
from entropix.results import FinishReason
from entropix.samplers.base import Candidates, SamplerInputs, is_token, log_normalizer

Forward = Callable[[Array, RecentKV, AttentionMask | None], tuple[Array, RecentKV, AttentionScores]]
_Kept = tuple[RowState, RecentKV, StepRecord]


class _Drawn(NamedTuple):
    """A step without forks: what the sampler made of the newest position of every row."""

    before: RowState
    rows: RowState
    record: StepRecord
    offered: Candidates
    seen: SamplerInputs
    recent: RecentKV


class _Opened(NamedTuple):
    """The paths after their first tokens, `[B·C]`."""

    rows: RowState
    record: StepRecord
    valid_BC: Array  # bool: whether there is this path


def branch_step(
    weights: Weights,
    inputs: BatchInputs,
    cache: KVCache,
    state: DecodeState,
    sample: Sample,
    program: Program,
) -> tuple[DecodeState, StepRecord]:
    """(state, records `[lookahead + 1, B]`): one token a row or, where it forks, those of its best path; none where it
    waits for others to fork too."""
    plan, before = program.branching, state.rows
    forks = before.branching
    assert plan is not None and forks is not None and inputs.branching is not None

    def forward(
        tokens_BT: Array, recent: RecentKV, mask: AttentionMask | None = None
    ) -> tuple[Array, RecentKV, AttentionScores]:
        return transformer.forward(weights, tokens_BT, cache, recent, program.model, mask)

    logits_BTV, recent, attention = forward(before.token_B[:, None], state.recent)
    seen = _flat(sampler_inputs(logits_BTV, attention, program))
    rows, record, offered = sample(inputs, before, seen)
    drawn = _Drawn(before, rows, record, offered, seen, recent)
    may_go_on_B = (rows.finish_B == FinishReason.RUNNING) | (rows.finish_B == FinishReason.STOP_TOKEN)
    asked_B = branching.wanted(plan, inputs.branching, forks, record.info, seen.metrics, before.step_B)
    asked_B &= record.live_B & may_go_on_B
    others_B = (before.finish_B == FinishReason.RUNNING) & ~asked_B
    waited_B = jnp.where(asked_B, forks.waited_B, 0)
    due = jnp.any(asked_B) & (jnp.sum(waited_B) >= plan.depth * jnp.sum(others_B))

    def straight() -> _Kept:
        taken = record._replace(
            live_B=record.live_B & ~asked_B, finish_B=jnp.where(asked_B, before.finish_B, record.finish_B)
        )
        after = where_row(asked_B, before, rows)
        waiting = forks._replace(waited_B=jnp.where(asked_B, waited_B + 1, 0))
        records = _padded([taken], program, branching.no_paths(plan, len(asked_B)))
        return after._replace(branching=waiting), recent, records

    def forked() -> _Kept:
        opened = _open(inputs, drawn, sample, plan)
        ends, path_kv, rolled = _roll(inputs, drawn, opened, cache, forward, sample, program)
        every = jax.tree.map(
            lambda first, later: jnp.concatenate([first[None], later]), opened.record, rolled
        )
        tried = _score(inputs, every, ends, opened, asked_B, plan)
        last = ends if plan.whole else opened.rows
        return _keep(drawn, tried, every, last, path_kv, program)

    rows, recent, records = jax.lax.cond(due, forked, straight)
    used_B = state.recent.used_B + jnp.sum(records.live_B, axis=0, dtype=jnp.int32)
    return DecodeState(rows, recent._replace(used_B=used_B), state.text_BX), records


def _open(inputs: BatchInputs, drawn: _Drawn, sample: Sample, plan: BranchPlan) -> _Opened:
    """The first path of a row is what the sampler did. The others are put through it with all other tokens masked, so
    that what it remembers is what it would, had it drawn them."""
    assert inputs.branching is not None
    before, seen, record = drawn.before, drawn.seen, drawn.record
    allowed = backtracking.before_draw(before, seen)
    token_BC, valid_BC = branching.first_tokens(
        plan, inputs.branching, record.token_B, drawn.offered, allowed
    )
    first_B = token_BC.reshape(-1)
    of_paths = _spread(seen, plan)
    masked_BV = jnp.where(is_token(of_paths.logits_BV, first_B), of_paths.logits_BV, -jnp.inf)
    paths = _spread(before._replace(backtracks=None), plan)  # paths take nothing back
    forced, _, _ = sample(_of_paths(inputs, plan), paths, of_paths._replace(logits_BV=masked_BV))
    is_drawn_B = jnp.arange(len(first_B)) % plan.paths == 0
    rows = where_row(is_drawn_B, _spread(drawn.rows._replace(backtracks=None), plan), forced)
    info = _spread(record.info, plan)
    other = info._replace(
        logprob_B=filters.gather(of_paths.logits_BV, first_B) - _spread(log_normalizer(seen.logits_BV), plan),
        draw_logprob_B=draw_logprob(drawn.offered, token_BC).reshape(-1),
        score_B=jnp.full_like(info.score_B, jnp.nan),
    )
    opening = _spread(record, plan)._replace(
        token_B=first_B, finish_B=rows.finish_B, info=where_row(is_drawn_B, info, other)
    )
    return _Opened(rows, opening, valid_BC)


def _roll(
    inputs: BatchInputs,
    drawn: _Drawn,
    opened: _Opened,
    cache: KVCache,
    forward: Forward,
    sample: Sample,
    program: Program,
) -> tuple[RowState, RecentKV, StepRecord]:
    """(the paths' ends, all that they have computed behind the recent tokens, records `[D, B·C]` of what they drew)."""
    plan, n_shared = program.branching, drawn.recent.size
    assert plan is not None
    own = _of_paths(inputs, plan)

    def rollout(token_BC: Array, world: tuple[RecentKV, Array]) -> tuple[SamplerInputs, Any]:
        """One token of every path; what is carried from one to the next: all paths' keys and values, and the depth."""
        path_kv, depth = world
        mask = tree_mask(cache, path_kv, n_shared, plan.paths, depth)
        logits_BCV, longer_kv, attention = forward(token_BC, path_kv, mask)
        seen = _flat(sampler_inputs(logits_BCV, attention, program))
        return seen, (longer_kv._replace(used_B=path_kv.used_B), depth + 1)

    def draw(paths: RowState, seen: SamplerInputs) -> tuple[RowState, StepRecord]:
        after, record, _ = sample(own, paths, seen)
        if drawn.rows.backtracks is not None:  # to go back to a rolled token: its fork is this step's
            record = record._replace(before=Before(paths.sampler, _spread(drawn.before.step_B, plan)))
        return after, record

    world = (kv_cache.widen(drawn.recent, plan.paths * plan.depth), jnp.zeros((), jnp.int32))
    ends, (path_kv, _), rolled = branching.roll(plan, opened.rows, rollout, draw, world)
    return ends, path_kv, rolled


def _score(
    inputs: BatchInputs, every: StepRecord, ends: RowState, opened: _Opened, asked_B: Array, plan: BranchPlan
) -> Paths:
    """The paths with their scores. every: their records `[D, B·C]`; best_B is 0 in rows that do not fork."""

    def columns(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(len(leaf), -1, plan.paths), 0, -1), tree)

    assert inputs.branching is not None
    valid_BC, live_BCD = opened.valid_BC, columns(every.live_B)
    fork_B = asked_B & jnp.any(valid_BC[:, 1:], axis=1)
    broken_BC = (ends.finish_B == FinishReason.NAN).reshape(-1, plan.paths)
    info, metrics = columns(every.info), columns(every.metrics)
    score_BC, best_B = branching.score_paths(
        plan, inputs.branching, valid_BC, broken_BC, live_BCD, info, metrics
    )
    return Paths(
        forked_B=fork_B,
        best_B=jnp.where(fork_B, best_B, 0),
        score_BC=score_BC,
        token_BCD=columns(every.token_B),
        logprob_BCD=info.logprob_B,
        live_BCD=live_BCD & valid_BC[:, :, None],
    )


def _keep(
    drawn: _Drawn, tried: Paths, every: StepRecord, last: RowState, path_kv: RecentKV, program: Program
) -> _Kept:
    """The best path of the rows that fork; the plain step of the others, and where all paths went wrong.

    every: the records of all paths `[D, B·C]`. last: the rows after that part of a path which is kept.
    """
    plan, rows, recent = program.branching, drawn.rows, drawn.recent
    assert plan is not None and rows.branching is not None
    kept_B = tried.forked_B & jnp.any(tried.score_BC > -jnp.inf, axis=1)
    best = jax.tree.map(lambda leaf: branching.pick(leaf, tried.best_B), last)
    after = where_row(kept_B, best, rows._replace(backtracks=None))

    chosen = jax.tree.map(lambda leaf: branching.pick(leaf, tried.best_B, axis=1), every)
    is_first_D1 = jnp.arange(len(chosen.live_B))[:, None] == 0
    chosen = chosen._replace(
        live_B=chosen.live_B & (kept_B[None] | is_first_D1),
        finish_B=jnp.where(kept_B[None], chosen.finish_B, rows.finish_B[None]),
    )
    records = [jax.tree.map(lambda leaf, d=d: leaf[d], chosen) for d in range(program.lookahead + 1)]

    backtracks = rows.backtracks
    if backtracks is not None:
        for later in records[1:]:
            counted = backtracking.count(backtracks, later.info.injected_B)
            backtracks = where_row(later.live_B, counted, backtracks)
    forks = branching.with_forks(rows.branching, tried.forked_B, drawn.before.step_B)
    if plan.whole:
        path_B = jnp.where(kept_B, tried.best_B, kv_cache.NO_PATH)
        recent = kv_cache.accept_path(recent, path_kv, path_B, plan.paths)
    return after._replace(branching=forks, backtracks=backtracks), recent, _padded(records, program, tried)


# ----- rows and paths ---------------------------------------------------------------------------------------


def _flat(seen: SamplerInputs) -> SamplerInputs:
    """Every position `[B, T]` as a row of its own, `[B·T]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)


def _spread(tree: Any, plan: BranchPlan) -> Any:
    """Every row as often as it has paths, side by side."""

    def spread(leaf: Array) -> Array:
        several = jnp.broadcast_to(leaf[:, None], (len(leaf), plan.paths, *leaf.shape[1:]))
        return several.reshape(-1, *leaf.shape[1:])

    return jax.tree.map(spread, tree)


def _of_paths(inputs: BatchInputs, plan: BranchPlan) -> BatchInputs:
    """The inputs with a row for each path."""
    return inputs._replace(**_spread(inputs.by_row(), plan))


def _padded(records: Sequence[StepRecord], program: Program, paths: Paths) -> StepRecord:
    """These records as one, `[lookahead + 1, B]`, those that are missing not live; the paths go with the first."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    missing = program.lookahead + 1 - len(records)

    def pad(leaf: Array, n: int) -> Array:
        return jnp.pad(leaf, ((0, n), *((0, 0),) * (leaf.ndim - 1)))

    first = jax.tree.map(lambda leaf: pad(leaf[None], program.lookahead), paths)
    return jax.tree.map(lambda leaf: pad(leaf, missing), stacked)._replace(paths=first)
