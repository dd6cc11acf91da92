"""Branching: where the next token is in doubt, try several, see how each goes on, and keep the best.

The token that a sampler drew and the likeliest of those that it might have drawn instead are rolled forward side by
side, each by that same sampler and all with the same random numbers, so that they differ in nothing but the fork. The
path with the best score is kept and the others are discarded. Any sampler will do; what reads a token, the model or a
table in a test, comes as a function. With a single path, or none rolled forward, nothing differs from the sampler's own
answer.

Letters: C path (0 is the drawn token's), D rolled token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import BranchConfig
from entropix.decoding.state import BranchParams, BranchPlan, BranchState, Paths
from entropix.metrics import Metrics
from entropix.samplers.base import Candidates, SampleInfo, SamplerInputs, full_vocabulary
from entropix.sharding import top_k

Rollout = Callable[[Array, Any], tuple[SamplerInputs, Any]]
DrawStep = Callable[[Any, SamplerInputs], tuple[Any, Any]]


def plan(cfg: BranchConfig, strategies: Sequence[str]) -> BranchPlan | None:
    """The static half of a configuration, for a sampler with these strategies; None if it never branches."""
    if not cfg.is_on:
        return None
    return BranchPlan(
        paths=cfg.paths,
        depth=cfg.depth,
        strategies=tuple(strategies.index(name) for name in cfg.strategies if name in strategies),
        score=cfg.score,
        whole=cfg.keep == "path",
        among_kept=cfg.among == "kept",
    )


def params(cfg: BranchConfig) -> BranchParams:
    """The traced half."""
    return BranchParams(
        entropy=jnp.asarray(cfg.entropy or jnp.inf, jnp.float32),
        margin=jnp.asarray(cfg.margin, jnp.float32),
        budget=jnp.asarray(cfg.budget, jnp.int32),
        distance=jnp.asarray(cfg.distance, jnp.int32),
        growth=jnp.asarray(cfg.growth, jnp.float32),
        penalty=jnp.asarray(cfg.penalty, jnp.float32),
    )


def no_forks(batch: int) -> BranchState:
    """The state of rows at their beginning."""
    return BranchState(*(jnp.zeros(batch, jnp.int32) for _ in BranchState._fields))


def no_paths(plan: BranchPlan, batch: int) -> Paths:
    """What is recorded where no row branches."""
    shape = (batch, plan.paths, plan.depth + 1)
    return Paths(
        forked_B=jnp.zeros(batch, bool),
        best_B=jnp.zeros(batch, jnp.int32),
        score_BC=jnp.zeros(shape[:2], jnp.float32),
        token_BCD=jnp.zeros(shape, jnp.int32),
        logprob_BCD=jnp.zeros(shape, jnp.float32),
        live_BCD=jnp.zeros(shape, bool),
    )


def wanted(
    plan: BranchPlan,
    params: BranchParams,
    forks: BranchState,
    info: SampleInfo,
    metrics: Metrics,
    step_B: Array,
) -> Array:
    """bool_B: where to branch. A strategy of the plan, much entropy, or a small margin asks for it; the budget and the
    distance to the latest fork allow it. Never where the token was inserted or nothing else could be tried."""
    strategies = jnp.asarray(plan.strategies, jnp.int32)
    asked_B = jnp.any(info.strategy_B[:, None] == strategies[None, :], axis=-1)
    asked_B |= metrics.logits_entropy > params.entropy
    asked_B |= metrics.margin < params.margin
    allowed_B = (forks.count_B == 0) | (step_B - forks.latest_B >= params.distance)
    allowed_B &= forks.count_B < params.budget
    if plan.among_kept:
        allowed_B &= info.kept_B > 1
    return asked_B & allowed_B & ~info.injected_B


def with_forks(forks: BranchState, forked_B: Array, step_B: Array) -> BranchState:
    """The state after these rows have branched at these steps. Nobody waits any more."""
    return BranchState(
        count_B=forks.count_B + forked_B.astype(jnp.int32),
        latest_B=jnp.where(forked_B, step_B, forks.latest_B),
        waited_B=jnp.zeros_like(forks.waited_B),
    )


def first_tokens(
    plan: BranchPlan, params: BranchParams, token_B: Array, offered: Candidates, seen: SamplerInputs
) -> tuple[Array, Array]:
    """(token_BC, valid_BC): the token that was drawn, then the likeliest others, of equals the one offered first.

    With `growth`, a row has two paths and one more for every so many bits of entropy. A path that there is not, also
    for want of tokens, has the drawn token, which does no harm.
    """
    offered = offered if plan.among_kept else full_vocabulary(seen.logits_BV)
    others_BX = jnp.where(offered.token_BC == token_B[:, None], -jnp.inf, offered.logits_BC)
    missing = max(plan.paths - 1 - others_BX.shape[1], 0)
    others_BX = jnp.pad(others_BX, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    logit_BC, place_BC = top_k(others_BX, plan.paths - 1)
    other_BC = jnp.take_along_axis(jnp.pad(offered.token_BC, ((0, 0), (0, missing))), place_BC, axis=1)
    grown_B = 2 + jnp.floor(seen.metrics.logits_entropy / params.growth)
    count_B = jnp.where(params.growth > 0, jnp.minimum(grown_B, plan.paths), plan.paths).astype(jnp.int32)
    valid_BC = jnp.concatenate([jnp.ones((len(token_B), 1), bool), logit_BC > -jnp.inf], axis=1)
    valid_BC &= jnp.arange(plan.paths)[None, :] < count_B[:, None]
    token_BC = jnp.concatenate([token_B[:, None], other_BC], axis=1)
    return jnp.where(valid_BC, token_BC, token_B[:, None]), valid_BC


def roll(plan: BranchPlan, rows: Any, rollout: Rollout, draw: DrawStep, world: Any) -> tuple[Any, Any, Any]:
    """(rows, world, records `[D, B·C]`) after every path has been rolled forward `depth` tokens.

    rows: those of the paths, `token_B` the newest token of each, the paths of a row side by side. rollout: reads one
    token a path, `[B, C]`, and returns what a sampler may look at, `[B·C]`, and what it has to remember. draw: one
    token a row, as anywhere else.
    """

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
        rows, world = carry
        seen, world = rollout(rows.token_B.reshape(-1, plan.paths), world)
        rows, record = draw(rows, seen)
        return (rows, world), record

    (rows, world), records = jax.lax.scan(step, (rows, world), None, length=plan.depth)
    return rows, world, records


def score_paths(
    plan: BranchPlan,
    params: BranchParams,
    valid_BC: Array,
    broken_BC: Array,
    live_BCD: Array,
    info: SampleInfo,
    metrics: Metrics,
) -> tuple[Array, Array]:
    """(score_BC, best_B): the mean of what the plan scores by over the tokens of a path, the fork's own among them, and
    the path with the largest, the first among equals. Paths that are not valid or broke down (NaN) have -inf; a row
    whose paths all broke down keeps its own. info, metrics: their fields `[B, C, D]`."""
    values_BCD = {
        "logprob": info.logprob_B,
        "margin": metrics.margin,
        "certainty": metrics.self_certainty,
        "entropy": info.logprob_B - params.penalty * metrics.logits_entropy,
    }[plan.score]
    sum_BC = jnp.sum(jnp.where(live_BCD, values_BCD, 0), axis=-1)
    score_BC = sum_BC / jnp.maximum(jnp.sum(live_BCD, axis=-1, dtype=jnp.float32), 1)
    score_BC = jnp.where(valid_BC & ~broken_BC & ~jnp.isnan(score_BC), score_BC, -jnp.inf)
    return score_BC, jnp.argmax(score_BC, axis=-1).astype(jnp.int32)


def pick(leaf_XBC: Array, best_B: Array, axis: int = 0) -> Array:
    """One of the paths `[..., B·C, ...]` of each row, `[..., B, ...]`; `axis` is that of rows and paths."""
    batch = len(best_B)
    shape = (*leaf_XBC.shape[:axis], batch, -1, *leaf_XBC.shape[axis + 1 :])
    index = best_B.reshape(*(1,) * axis, batch, *(1,) * (len(shape) - axis - 1))
    return jnp.take_along_axis(leaf_XBC.reshape(shape), index, axis=axis + 1).squeeze(axis + 1)
