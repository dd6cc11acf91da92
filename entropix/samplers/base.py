"""What every sampler is: two pure functions over a batch, and one common account of what was done."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import SamplerConfig
from entropix.metrics import Metrics, softmax_parts

Encode = Callable[[str], list[int]]


class Context(NamedTuple):
    """What a sampler may look at."""

    logits_BV: Array  # float32, the model's own, unfiltered
    metrics: Metrics  # one number a row


class SampleInfo(NamedTuple):
    """What a sampler did, one number a row: the same fields for every sampler, so that traces compare.

    Passing the model's logits through `filters.chain` with the recorded temperature, top-p, top-k and min-p gives
    back `kept` and the distribution of `draw_logprob`, for every token that was not injected.
    """

    strategy_B: Array  # index into the sampler's `strategies`
    temperature_B: Array
    top_p_B: Array
    top_k_B: Array
    min_p_B: Array
    kept_B: Array  # tokens that were left to draw from
    logprob_B: Array  # nats, of the token under the model: temperature 1, nothing filtered
    draw_logprob_B: Array  # nats, of the token under what one draw was made from; 0 when it was certain
    score_B: Array  # of the token, for strategies that choose among several draws; NaN elsewhere
    injected_B: Array  # the token was inserted, not chosen


class Sampler(NamedTuple):
    """A named rule. The functions are module-level: a fresh closure would be a fresh compilation.

    `init(cfg, batch, encode)` returns the state, a pytree of arrays whose first axis is the row, `()` when there is
    none. It runs on the host; `encode` turns text into token ids. `step(key_B, state, context, cfg)` returns
    (token_B int32, state, SampleInfo). It is pure, traced under `jit`, treats rows independently and takes all its
    randomness from the row's key.
    """

    name: str
    summary: str
    strategies: tuple[str, ...]
    init: Callable[[SamplerConfig, int, Encode], Any]
    step: Callable[[Array, Any, Context, SamplerConfig], tuple[Array, Any, SampleInfo]]


class Candidates(NamedTuple):
    """The `width` most likely tokens of each row, most likely first."""

    logits_BC: Array
    token_BC: Array  # int32


def best(logits_BV: Array, width: int) -> Candidates:
    """Enough of the vocabulary for any chain whose top-k is at most `width`, at a fraction of a full sort's cost."""
    logits_BC, token_BC = jax.lax.top_k(logits_BV, min(width, logits_BV.shape[-1]))
    return Candidates(logits_BC, token_BC.astype(jnp.int32))


def model_logprob(logits_BV: Array, token_B: Array) -> Array:
    """Log-probability in nats of one token a row under the model itself."""
    return filters.at(logits_BV, token_B) - log_normalizer(logits_BV)


def log_normalizer(logits_BV: Array) -> Array:
    """log Σ exp(logits) of each row: what a logit exceeds its log-probability by."""
    return jnp.max(logits_BV, axis=-1) + jnp.log(softmax_parts(logits_BV).total)
