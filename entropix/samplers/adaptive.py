"""Samplers whose settings follow the model's confidence, their own past, or a coin."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import parameter, rule_config
from entropix.filters import SamplingParams
from entropix.numerics import log_softmax, softmax, softmax_parts
from entropix.samplers import numbers
from entropix.samplers.base import (
    MIN_TEMPERATURE,
    Encode,
    Prompts,
    Sampler,
    SamplerInputs,
    StepResult,
    draw,
    full_vocabulary,
    is_token,
    keep_argmax,
    stateless,
)
from entropix.samplers.numbers import RuleConfig, TemperatureConfig

# ----- a temperature that follows the entropy ---------------------------------------------------------------


@rule_config
class DynamicTemperatureConfig(RuleConfig):
    """The numbers of dynamic-temperature."""

    temp: float = numbers.temp(1.0, source="0.8 [llama.cpp]")
    dynatemp_range: float = parameter(
        0.5, "temp plus or minus this, by entropy", 0.0, 100.0, source="0, off [llama.cpp]"
    )
    dynatemp_exponent: float = parameter(
        1.0, "exponent of the entropy's share of its maximum", 0.0, 100.0, source="1 [llama.cpp]"
    )


def dynamic_temperature(
    key_B: Array, state: Any, seen: SamplerInputs, cfg: DynamicTemperatureConfig
) -> StepResult:
    """T = min + (max - min)·(H / log V)^exponent, with min and max = temp ∓ range, as in llama.cpp's `dynatemp`."""
    coldest = jnp.maximum(cfg.temp - cfg.dynatemp_range, MIN_TEMPERATURE)
    warmest = cfg.temp + cfg.dynatemp_range
    share_B = seen.metrics.logits_entropy / math.log2(seen.logits_BV.shape[-1])
    return _at_temperature(key_B, state, seen, coldest + (warmest - coldest) * share_B**cfg.dynatemp_exponent)


@rule_config
class EdtConfig(RuleConfig):
    """The numbers of EDT."""

    temp: float = numbers.temp(1.0, source="tuned for each task [edt]")
    edt_theta: float = parameter(
        1.0, "how strongly low entropy cools", 0.0, 100.0, "nats", source="tuned for each task [edt]"
    )
    edt_base: float = parameter(0.8, "what is raised to theta / entropy", 1e-3, 1.0, source="0.8 [edt]")


def edt(key_B: Array, state: Any, seen: SamplerInputs, cfg: EdtConfig) -> StepResult:
    """T = temp·N^(θ / H), with N = 0.8 and H in nats (Zhang 2024, arXiv:2403.14541). Certainty is greedy."""
    entropy_B = jnp.maximum(seen.metrics.logits_entropy * math.log(2), jnp.finfo(jnp.float32).tiny)
    return _at_temperature(key_B, state, seen, cfg.temp * cfg.edt_base ** (cfg.edt_theta / entropy_B))


def _at_temperature(key_B: Array, state: Any, seen: SamplerInputs, temperature_B: Array) -> StepResult:
    """One draw a row from everything at this temperature, or at the lowest allowed one.

    The largest logit becomes 0 first: divided by a tiny temperature, large ones would round by more than log p may err.
    """
    temperature_B = jnp.maximum(temperature_B, MIN_TEMPERATURE)
    below_BV = seen.logits_BV - jnp.max(seen.logits_BV, axis=-1, keepdims=True)
    candidates = full_vocabulary(filters.temperature(below_BV, temperature_B))
    token_B, info = draw(key_B, seen, candidates, SamplingParams(temperature_B))
    return token_B, state, info, candidates


# ----- rules with more than one strategy --------------------------------------------------------------------


@rule_config
class GreedyThresholdConfig(TemperatureConfig):
    """The numbers of greedy-threshold."""

    greedy_threshold: float = parameter(
        0.3, "greedy where the largest probability is below this", 0.0, 1.0, "probability", source="not found"
    )


def greedy_threshold(key_B: Array, state: Any, seen: SamplerInputs, cfg: GreedyThresholdConfig) -> StepResult:
    """Greedy where the largest p at `temp` is below the threshold, plain sampling elsewhere (arXiv:2510.05987).

    Entropix's opposite: where the model is unsure it takes the likeliest token, for there the others are mostly wrong.
    """
    temperature_B = jnp.full(len(seen.logits_BV), cfg.temp, jnp.float32)
    logits_BV = filters.temperature(seen.logits_BV, temperature_B)
    greedy_B = 1 / softmax_parts(logits_BV).total < cfg.greedy_threshold
    candidates = full_vocabulary(filters.mask_logits(logits_BV, keep_argmax(logits_BV, ~greedy_B[:, None])))
    top_k_B = jnp.where(greedy_B, 1, logits_BV.shape[-1]).astype(jnp.int32)
    token_B, info = draw(key_B, seen, candidates, SamplingParams(temperature_B, top_k_B=top_k_B))
    return token_B, state, info._replace(strategy_B=greedy_B.astype(jnp.int32)), candidates


@rule_config
class XtcConfig(TemperatureConfig):
    """The numbers of xtc."""

    xtc_threshold: float = parameter(
        0.1,
        "of several tokens at least this likely, all but the last may go",
        0.0,
        1.0,
        "probability",
        source="0.1 [llama.cpp]",
    )
    xtc_probability: float = parameter(
        0.5,
        "how often they go",
        0.0,
        1.0,
        "probability",
        source="0.5 when proposed [llama.cpp], 0 (off) today",
    )


def xtc(key_B: Array, state: Any, seen: SamplerInputs, cfg: XtcConfig) -> StepResult:
    """Exclude top choices: with a given chance, of the tokens with p >= threshold only the least likely one stays.

    By p-e-w, 2024: text-generation-webui, pull request 6335. Tokens below the threshold always stay; where fewer than
    two reach it, nothing happens. p is the model's at `temp`. The original does nothing either where the end of the
    text or a newline would go; here, as in llama.cpp, they are tokens like any other.
    """
    temperature_B = jnp.full(len(seen.logits_BV), cfg.temp, jnp.float32)
    logits_BV = filters.temperature(seen.logits_BV, temperature_B)
    p_BV = softmax(logits_BV)
    above_BV = (p_BV >= cfg.xtc_threshold) & (p_BV > 0)
    spared_B = jnp.argmin(jnp.where(above_BV, p_BV, jnp.inf), axis=-1)
    # The draw keeps the row's own key, so that where the coin says no this is the draw of plain temperature.
    coin_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(key_B)
    excluding_B = (coin_B < cfg.xtc_probability) & (jnp.sum(above_BV, axis=-1) > 1)
    removed_BV = above_BV & ~is_token(logits_BV, spared_B)
    candidates = full_vocabulary(filters.mask_logits(logits_BV, ~(removed_BV & excluding_B[:, None])))
    token_B, info = draw(key_B, seen, candidates, SamplingParams(temperature_B))
    return token_B, state, info._replace(strategy_B=excluding_B.astype(jnp.int32)), candidates


# ----- feedback ---------------------------------------------------------------------------------------------


@rule_config
class MirostatConfig(TemperatureConfig):
    """The numbers of mirostat."""

    mirostat_tau: float = parameter(
        3.0, "the mean surprisal to steer to", 0.0, 100.0, "bits", source="3 [mirostat], 5 [llama.cpp]"
    )
    mirostat_eta: float = parameter(
        0.1,
        "share of an error that is corrected at once",
        0.0,
        1.0,
        source="0.1 [llama.cpp]; 1, of the first algorithm [mirostat]",
    )


class Mirostat(NamedTuple):
    """What mirostat has learnt of each row."""

    mu_B: Array  # bits: tokens more surprising than this are removed


def mirostat_init(cfg: MirostatConfig, prompts: Prompts, encode: Encode) -> Mirostat:
    """μ = 2τ."""
    return Mirostat(jnp.full(len(prompts), 2 * cfg.mirostat_tau, jnp.float32))


def mirostat(key_B: Array, state: Mirostat, seen: SamplerInputs, cfg: MirostatConfig) -> StepResult:
    """Removes tokens with -log2 p > μ, draws, then corrects μ by -η·(-log2 p(token) - τ).

    Mirostat 2.0 (Basu 2021, arXiv:2007.14966). The surprisal is that under the whole distribution at `temp`, as in the
    authors' code; llama.cpp measures it after the truncation. The most likely token always stays.
    """
    temperature_B = jnp.full(len(seen.logits_BV), cfg.temp, jnp.float32)
    logits_BV = filters.temperature(seen.logits_BV, temperature_B)
    surprisal_BV = -log_softmax(logits_BV) / math.log(2)
    kept_BV = keep_argmax(logits_BV, surprisal_BV <= state.mu_B[:, None])
    candidates = full_vocabulary(filters.mask_logits(logits_BV, kept_BV))
    token_B, info = draw(key_B, seen, candidates, SamplingParams(temperature_B))
    error_B = filters.gather(surprisal_BV, token_B) - cfg.mirostat_tau
    return token_B, Mirostat(state.mu_B - cfg.mirostat_eta * error_B), info, candidates


DYNAMIC_TEMPERATURE = Sampler(
    "dynamic-temperature",
    "a temperature that rises with the entropy between two bounds (llama.cpp's dynatemp)",
    ("dynamic-temperature",),
    stateless,
    dynamic_temperature,
    DynamicTemperatureConfig,
)
EDT = Sampler(
    "edt",
    "a temperature that goes to 0, which is greedy, where the entropy does (Zhang 2024)",
    ("edt",),
    stateless,
    edt,
    EdtConfig,
)
MIROSTAT = Sampler(
    "mirostat",
    "cuts off surprising tokens, so that the mean surprisal stays at a target (Basu 2021, version 2)",
    ("mirostat",),
    mirostat_init,
    mirostat,
    MirostatConfig,
)
XTC = Sampler(
    "xtc",
    "against clichés: at times removes the likeliest tokens, all but the last above a threshold (p-e-w 2024)",
    ("plain", "exclude"),
    stateless,
    xtc,
    XtcConfig,
)
GREEDY_THRESHOLD = Sampler(
    "greedy-threshold",
    "draws where the model is sure, greedy where it is not: the opposite of entropix (Li 2025)",
    ("sample", "greedy"),
    stateless,
    greedy_threshold,
    GreedyThresholdConfig,
)
