"""A guard against repetition around any sampler: it lowers the logits of what would repeat, then the sampler decides.

The sampler sees the lowered logits and decides by them alone: what it truncates, which of several draws it keeps and
the `score_B` that says why. The metrics stay those of the model's own logits, and so does `logprob_B`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from entropix.config import NO_TOKEN
from entropix.samplers.base import (
    Candidates,
    Encode,
    Prompts,
    SampleInfo,
    Sampler,
    SamplerInputs,
    model_logprob,
)
from entropix.samplers.numbers import RuleConfig

WINDOW = 256  # newest tokens of prompt and answer that count; a shape, hence fixed
LONGEST = 32  # repeated tokens after which the penalty of going on grows no more
LARGEST_COST = 100.0  # nats: beyond it nothing is drawn anyway, but σ in top-n-sigma would grow
BREAKERS = ("\n", ":", '"', "*")  # where a repetition ends for DRY: p-e-w's list
_LARGEST_GROWTH = 1e30  # finite, so that 0 times it is 0


class Guarded(NamedTuple):
    """The state of a guarded sampler."""

    inner: Any  # the sampler's own
    recent_BW: Array  # int32: the row's newest tokens, newest last; -1 where the text is shorter
    breaker_BQ: Array  # int32: tokens across which no repetition reaches; the same in every row


def is_on(cfg: RuleConfig) -> bool:
    """Whether these numbers ask for a guard."""
    return cfg.repetition_penalty != 1 or cfg.dry_multiplier > 0


@functools.cache
def guarded(sampler: Sampler, special: tuple[int, ...] = ()) -> Sampler:
    """The same sampler, name and strategies included, with the guard before it. Always the same object for one sampler
    and the same tokens, so that it compiles once.

    special: tokens that end a text or mark a turn. They stand in every earlier turn of a conversation: as repetition,
    the next end would be less likely each time. Unless `repetition_special` asks for it they are not lowered.
    """
    return sampler._replace(
        init=functools.partial(init, sampler=sampler),
        step=functools.partial(step, sampler=sampler, special=special),
    )


def init(cfg: RuleConfig, prompts: Prompts, encode: Encode, sampler: Sampler) -> Guarded:
    """The prompts' newest tokens. A breaker is the last token of its text."""
    recent_BW = np.full((len(prompts), WINDOW), NO_TOKEN, np.int32)
    for row, prompt in enumerate(prompts):
        newest = list(prompt)[-WINDOW:]
        recent_BW[row, WINDOW - len(newest) :] = newest
    breakers = [(encode(text) or [NO_TOKEN])[-1] for text in BREAKERS]
    return Guarded(
        sampler.init(cfg, prompts, encode),
        jnp.asarray(recent_BW),
        jnp.tile(jnp.asarray(breakers, jnp.int32), (len(prompts), 1)),
    )


def step(
    key_B: Array,
    state: Guarded,
    seen: SamplerInputs,
    cfg: RuleConfig,
    sampler: Sampler,
    special: tuple[int, ...],
) -> tuple[Array, Guarded, SampleInfo, Candidates]:
    """One token a row by the sampler, from guarded logits."""
    logits_BV = repetition_penalty(seen.logits_BV, state.recent_BW, cfg.repetition_penalty)
    logits_BV -= dry_penalty(logits_BV, state.recent_BW, state.breaker_BQ, cfg)
    if special:
        is_special_V = jnp.asarray(np.isin(np.arange(logits_BV.shape[-1]), special))
        spared_BV = (is_special_V & (cfg.repetition_special == 0))[None, :]
        logits_BV = jnp.where(spared_BV, seen.logits_BV, logits_BV)
    token_B, inner, info, candidates = sampler.step(
        key_B, state.inner, seen._replace(logits_BV=logits_BV), cfg
    )
    recent_BW = jnp.concatenate([state.recent_BW[:, 1:], token_B[:, None]], axis=1)
    info = info._replace(logprob_B=model_logprob(seen.logits_BV, token_B))
    return token_B, Guarded(inner, recent_BW, state.breaker_BQ), info, candidates


def repetition_penalty(logits_BV: Array, recent_BW: Array, penalty: Array | float) -> Array:
    """Logits of recent tokens, divided by the penalty where positive and multiplied where not.

    CTRL divides them all (Keskar 2019, arXiv:1909.05858, with 1.2), which makes a negative logit likelier; the usual
    implementations, like this one, do not.
    """
    seen_BV = _at_tokens(logits_BV, recent_BW, jnp.ones(recent_BW.shape)) > 0
    lowered_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered_BV, logits_BV)


def dry_penalty(logits_BV: Array, recent_BW: Array, breaker_BQ: Array, cfg: RuleConfig) -> Array:
    """What each token would cost, in nats: multiplier·base^(n - allowed) if it would follow n >= allowed tokens that
    it followed before, at most LARGEST_COST, and 0 otherwise. Breakers cost nothing.

    "Don't repeat yourself", by p-e-w, 2024: text-generation-webui, pull request 5677."""
    window = recent_BW.shape[1]
    padded_BX = jnp.pad(recent_BW, ((0, 0), (LONGEST, 0)), constant_values=NO_TOKEN)
    back_K = np.arange(1, LONGEST + 1)
    newest_BK = recent_BW[:, window - back_K]  # the end of the text, backwards
    # What stands before each token.
    earlier_BWK = padded_BX[:, np.arange(window)[:, None] + LONGEST - back_K]
    breaks_BK = jnp.any(newest_BK[..., None] == breaker_BQ[:, None], axis=-1) | (newest_BK == NO_TOKEN)
    same_BWK = (earlier_BWK == newest_BK[:, None]) & ~breaks_BK[:, None]
    repeated_BW = jnp.sum(jnp.cumprod(same_BWK.astype(jnp.float32), axis=-1), axis=-1)
    growth_BW = jnp.minimum(cfg.dry_base ** (repeated_BW - cfg.dry_allowed_length), _LARGEST_GROWTH)
    cost_BW = jnp.minimum(cfg.dry_multiplier * growth_BW, LARGEST_COST)
    is_breaker_BW = jnp.any(recent_BW[..., None] == breaker_BQ[:, None], axis=-1)
    cost_BW = jnp.where((repeated_BW >= cfg.dry_allowed_length) & ~is_breaker_BW, cost_BW, 0)
    return _at_tokens(logits_BV, recent_BW, cost_BW)


def _at_tokens(logits_BV: Array, recent_BW: Array, value_BW: Array) -> Array:
    """[B, V]: the largest of the values that belong to a token, 0 for tokens that are not recent."""
    n_tokens = logits_BV.shape[-1]
    token_BW = jnp.where(recent_BW < 0, n_tokens, recent_BW)  # out of range, so dropped
    return jax.vmap(lambda token_W, value_W: jnp.zeros(n_tokens).at[token_W].max(value_W, mode="drop"))(
        token_BW, value_BW
    )
