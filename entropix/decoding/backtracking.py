"""Backtracking: where the model has lost its way, take back the last tokens, forbid the choice they began with, go on.

A row that asks for it stands still until the host has taken its newest tokens back (`session`): keys and values lie at
their positions, so that what is left of the cache is exact as it is. The step at which the tokens began then draws
again with the same random numbers, from the model's distribution without the tokens tried there before.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from entropix.config import BacktrackConfig
from entropix.samplers.base import SampleInfo, SamplerInputs

MAX_FORBIDDEN = 8  # tokens tried at one step; a shape, hence fixed
_NO_TOKEN = -1


class Backtracks(NamedTuple):
    """What a row has taken back so far."""

    count_B: Array  # int32
    plain_B: Array  # int32: newest tokens of which none was inserted
    frontier_B: (
        Array  # int32: the step from which the latest was made; there is none before it is reached again
    )
    place_B: Array  # int32: the step to which it led
    forbidden_BF: Array  # int32: tokens tried at that step, -1 where there are fewer


class Numbers(NamedTuple):
    """What the program does not depend on."""

    tokens: Array  # int32: how many to take back
    budget: Array  # int32
    asks_S: Array  # bool: which strategies of the sampler ask for it


def is_on(cfg: BacktrackConfig) -> bool:
    """Whether anything is ever taken back."""
    return cfg.tokens > 0 and cfg.budget > 0


def numbers(cfg: BacktrackConfig, strategies: tuple[str, ...]) -> Numbers:
    """The configuration, for a sampler with these strategies."""
    return Numbers(
        tokens=jnp.asarray(cfg.tokens, jnp.int32),
        budget=jnp.asarray(cfg.budget, jnp.int32),
        asks_S=jnp.asarray([name in cfg.strategies for name in strategies]),
    )


def none_yet(batch: int) -> Backtracks:
    """The state of rows at their beginning."""

    def whole(*shape: int, value: int = 0) -> Array:
        return jnp.full((batch, *shape), value, jnp.int32)

    return Backtracks(whole(), whole(), whole(), whole(value=-1), whole(MAX_FORBIDDEN, value=_NO_TOKEN))


def without_forbidden(retreats: Backtracks, context: SamplerInputs, step_B: Array) -> SamplerInputs:
    """The context with the logits of tokens that may not be drawn at this step at -inf; the metrics stay."""
    n_tokens = context.logits_BV.shape[1]
    here_B1 = (retreats.place_B == step_B)[:, None]
    row_B1 = jnp.arange(len(step_B))[:, None]
    token_BF = jnp.where(here_B1 & (retreats.forbidden_BF >= 0), retreats.forbidden_BF, n_tokens)
    return context._replace(logits_BV=context.logits_BV.at[row_B1, token_BF].set(-jnp.inf, mode="drop"))


def wanted(retreats: Backtracks, numbers: Numbers, info: SampleInfo, step_B: Array) -> Array:
    """bool_B: where to take tokens back instead of drawing one.

    A strategy asks for it; and there are enough tokens, none of them inserted (no logit could forbid that), the budget
    is not used up, the row is not on its way back to where it turned, and the step to which it would lead has room for
    one more forbidden token. So every row ends.
    """
    allowed_B = (retreats.plain_B >= numbers.tokens) & (retreats.count_B < numbers.budget)
    allowed_B &= step_B >= retreats.frontier_B
    again_B = retreats.place_B == step_B - numbers.tokens
    allowed_B &= ~again_B | (retreats.forbidden_BF[:, -1] == _NO_TOKEN)
    return allowed_B & numbers.asks_S[info.strategy_B] & ~info.injected_B


def count(retreats: Backtracks, injected_B: Array) -> Backtracks:
    """The state after one more token."""
    return retreats._replace(plain_B=jnp.where(injected_B, 0, retreats.plain_B + 1))


def note(retreats: Any, row: int, step: int, tokens: int, dropped: int) -> None:
    """Writes a retreat into one row of a state of numpy arrays: from `step`, `dropped` being the first token."""
    place = step - tokens
    forbidden_F = retreats.forbidden_BF[row]
    if retreats.place_B[row] != place:
        forbidden_F[:] = _NO_TOKEN
    forbidden_F[(forbidden_F != _NO_TOKEN).sum()] = dropped
    retreats.count_B[row] += 1
    retreats.plain_B[row] -= tokens
    retreats.frontier_B[row] = step
    retreats.place_B[row] = place
