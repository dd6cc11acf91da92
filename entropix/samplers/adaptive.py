"""Samplers whose settings follow the model's confidence, their own past, or a coin."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import SamplerConfig
from entropix.filters import SamplingParams
from entropix.numerics import softmax_parts
from entropix.samplers.base import (
    MIN_TEMPERATURE,
    Candidates,
    Encode,
    Prompts,
    SampleInfo,
    Sampler,
    SamplerInputs,
    draw,
    full_vocabulary,
    is_token,
    keep_argmax,
    stateless,
)

Step = tuple[Array, Any, SampleInfo, Candidates]


# ----- a temperature that follows the entropy ---------------------------------------------------------------


def dynamic_temperature(key_B: Array, state: Any, context: SamplerInputs, cfg: SamplerConfig) -> Step:
    """T = min + (max - min)·(H / log V)^exponent, with min and max = temp ∓ range, as in llama.cpp's `dynatemp`."""
    coldest = jnp.maximum(cfg.temp - cfg.dynatemp_range, MIN_TEMPERATURE)
    warmest = cfg.temp + cfg.dynatemp_range
    share_B = context.metrics.logits_entropy / math.log2(context.logits_BV.shape[-1])
    return _at_temperature(
        key_B, state, context, coldest + (warmest - coldest) * share_B**cfg.dynatemp_exponent
    )


def edt(key_B: Array, state: Any, context: SamplerInputs, cfg: SamplerConfig) -> Step:
    """T = temp·N^(θ / H), with N = 0.8 and H in nats (Zhang 2024, arXiv:2403.14541). Certainty is greedy."""
    entropy_B = jnp.maximum(context.metrics.logits_entropy * math.log(2), jnp.finfo(jnp.float32).tiny)
    return _at_temperature(key_B, state, context, cfg.temp * cfg.edt_base ** (cfg.edt_theta / entropy_B))


def _at_temperature(key_B: Array, state: Any, context: SamplerInputs, temperature_B: Array) -> Step:
    """One draw a row from everything at this temperature, or at the lowest allowed one.

    The largest logit becomes 0 first: divided by a tiny temperature, large ones would round by more than log p may err.
    """
    temperature_B = jnp.maximum(temperature_B, MIN_TEMPERATURE)
    below_BV = context.logits_BV - jnp.max(context.logits_BV, axis=-1, keepdims=True)
    candidates = full_vocabulary(filters.temperature(below_BV, temperature_B))
    token_B, info = draw(key_B, context, candidates, SamplingParams(temperature_B))
    return token_B, state, info, candidates


# ----- rules with more than one strategy --------------------------------------------------------------------


def greedy_threshold(key_B: Array, state: Any, context: SamplerInputs, cfg: SamplerConfig) -> Step:
    """Greedy where the largest p at `temp` is below the threshold, plain sampling elsewhere (arXiv:2510.05987).

    Entropix's opposite: where the model is unsure it takes the likeliest token, for there the others are mostly wrong.
    """
    temperature_B = jnp.full(len(context.logits_BV), cfg.temp, jnp.float32)
    logits_BV = filters.temperature(context.logits_BV, temperature_B)
    greedy_B = 1 / softmax_parts(logits_BV).total < cfg.greedy_threshold
    candidates = full_vocabulary(filters.keep(logits_BV, keep_argmax(logits_BV, ~greedy_B[:, None])))
    top_k_B = jnp.where(greedy_B, 1, logits_BV.shape[-1]).astype(jnp.int32)
    token_B, info = draw(key_B, context, candidates, SamplingParams(temperature_B, top_k_B=top_k_B))
    return token_B, state, info._replace(strategy_B=greedy_B.astype(jnp.int32)), candidates


def xtc(key_B: Array, state: Any, context: SamplerInputs, cfg: SamplerConfig) -> Step:
    """Exclude top choices: with a given chance, of the tokens with p >= threshold only the least likely one stays.

    By p-e-w, 2024: text-generation-webui, pull request 6335. Tokens below the threshold always stay; where fewer than
    two reach it, nothing happens. p is the model's at `temp`. The original does nothing either where the end of the
    text or a newline would go; here, as in llama.cpp, they are tokens like any other.
    """
    temperature_B = jnp.full(len(context.logits_BV), cfg.temp, jnp.float32)
    logits_BV = filters.temperature(context.logits_BV, temperature_B)
    parts = softmax_parts(logits_BV)
    p_BV = parts.exp / parts.total[:, None]
    above_BV = (p_BV >= cfg.xtc_threshold) & (p_BV > 0)
    spared_B = jnp.argmin(jnp.where(above_BV, p_BV, jnp.inf), axis=-1)
    # The draw keeps the row's own key, so that where the coin says no this is the draw of plain temperature.
    coin_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(key_B)
    excluding_B = (coin_B < cfg.xtc_probability) & (jnp.sum(above_BV, axis=-1) > 1)
    removed_BV = above_BV & ~is_token(logits_BV, spared_B)
    candidates = full_vocabulary(filters.keep(logits_BV, ~(removed_BV & excluding_B[:, None])))
    token_B, info = draw(key_B, context, candidates, SamplingParams(temperature_B))
    return token_B, state, info._replace(strategy_B=excluding_B.astype(jnp.int32)), candidates


# ----- feedback ---------------------------------------------------------------------------------------------


class Mirostat(NamedTuple):
    """What mirostat has learnt of each row."""

    mu_B: Array  # bits: tokens more surprising than this are removed


def mirostat_init(cfg: SamplerConfig, prompts: Prompts, encode: Encode) -> Mirostat:
    """μ = 2τ."""
    return Mirostat(jnp.full(len(prompts), 2 * cfg.mirostat_tau, jnp.float32))


def mirostat(key_B: Array, state: Mirostat, context: SamplerInputs, cfg: SamplerConfig) -> Step:
    """Removes tokens with -log2 p > μ, draws, then corrects μ by -η·(-log2 p(token) - τ).

    Mirostat 2.0 (Basu 2021, arXiv:2007.14966). The surprise is that under the whole distribution at `temp`, as in the
    authors' code; llama.cpp measures it after the truncation. The most likely token always stays.
    """
    temperature_B = jnp.full(len(context.logits_BV), cfg.temp, jnp.float32)
    logits_BV = filters.temperature(context.logits_BV, temperature_B)
    surprise_BV = (
        jnp.log(softmax_parts(logits_BV).total)[:, None]
        - (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    ) / math.log(2)
    kept_BV = keep_argmax(logits_BV, surprise_BV <= state.mu_B[:, None])
    candidates = full_vocabulary(filters.keep(logits_BV, kept_BV))
    token_B, info = draw(key_B, context, candidates, SamplingParams(temperature_B))
    error_B = filters.gather(surprise_BV, token_B) - cfg.mirostat_tau
    return token_B, Mirostat(state.mu_B - cfg.mirostat_eta * error_B), info, candidates


DYNAMIC_TEMPERATURE = Sampler(
    "dynamic-temperature",
    "a temperature that rises with the entropy between two bounds (llama.cpp's dynatemp)",
    ("dynamic-temperature",),
    stateless,
    dynamic_temperature,
)
EDT = Sampler(
    "edt",
    "a temperature that goes to 0, which is greedy, where the entropy does (Zhang 2024)",
    ("edt",),
    stateless,
    edt,
)
MIROSTAT = Sampler(
    "mirostat",
    "cuts off surprising tokens, so that the mean surprise stays at a target (Basu 2021, version 2)",
    ("mirostat",),
    mirostat_init,
    mirostat,
)
XTC = Sampler(
    "xtc",
    "against clichés: at times removes the likeliest tokens, all but the last above a threshold (p-e-w 2024)",
    ("plain", "exclude"),
    stateless,
    xtc,
)
GREEDY_THRESHOLD = Sampler(
    "greedy-threshold",
    "draws where the model is sure, greedy where it is not: the opposite of entropix (Li 2025)",
    ("sample", "greedy"),
    stateless,
    greedy_threshold,
)
