"""Samplers that only say which tokens stay: each is one function from the distribution at `temp` to a mark a token.

The published rules are stated for a distribution p over the vocabulary; here p is the model's at the config's
temperature, and H its entropy in nats. What stays keeps its relative probabilities.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import parameter, rule_config
from entropix.filters import SamplingParams
from entropix.numerics import contract, entropy_bits, log_softmax, softmax, softmax_parts, total
from entropix.samplers.base import (
    Sampler,
    SamplerInputs,
    StepResult,
    draw,
    full_vocabulary,
    keep_argmax,
    stateless,
)
from entropix.samplers.numbers import RuleConfig, TemperatureConfig
from entropix.sharding import cumsum

Rule = Callable[[Array, Any], Array]  # (logits_BV at the temperature, cfg) -> kept_BV


def step(key_B: Array, state: Any, seen: SamplerInputs, cfg: Any, rule: Rule) -> StepResult:
    """One draw a row from the tokens that the rule keeps."""
    temperature_B = jnp.full(len(seen.logits_BV), cfg.temp, jnp.float32)
    logits_BV = filters.temperature(seen.logits_BV, temperature_B)
    candidates = full_vocabulary(filters.mask_logits(logits_BV, rule(logits_BV, cfg)))
    token_B, info = draw(key_B, seen, candidates, SamplingParams(temperature_B))
    return token_B, state, info, candidates


@rule_config
class TypicalConfig(TemperatureConfig):
    """The numbers of typical."""

    typical_p: float = parameter(
        0.95,
        "mass of the tokens whose surprisal is nearest the entropy",
        0.0,
        1.0,
        "probability",
        source="0.9 [typical]; off [llama.cpp]",
    )


def typical(logits_BV: Array, cfg: TypicalConfig) -> Array:
    """Keeps tokens in order of |-log p - H| until their mass reaches `typical_p` (Meister 2023, arXiv:2202.00666).

    The most likely token may go. Tokens as far from the entropy as the last one stay with it, as in the authors' code.
    At 1 everything stays, whatever the rounding of the sum.
    """
    distance_BV = jnp.abs(log_softmax(logits_BV) + _entropy(logits_BV)[:, None])
    nearest_BV = filters.top_mass(-distance_BV, softmax(logits_BV), filters.reachable(cfg.typical_p))
    # A surprisal as far above the entropy as another is below it ties with it, and does not weigh as much.
    farthest_B = jnp.max(jnp.where(nearest_BV, distance_BV, 0), axis=-1)
    # Where a compiler computes distances twice, and rounds differently, the farthest would not equal itself.
    return nearest_BV | (distance_BV <= farthest_B[:, None])


@rule_config
class EpsilonConfig(TemperatureConfig):
    """The numbers of epsilon."""

    epsilon_cutoff: float = parameter(
        6e-4,
        "drop tokens no likelier than this",
        0.0,
        1.0,
        "probability",
        source="0.0003 to 0.0009, by size of the model [transformers]",
    )


def epsilon(logits_BV: Array, cfg: EpsilonConfig) -> Array:
    """Keeps p > ε (Hewitt 2022, arXiv:2210.15191), and the most likely token."""
    return keep_argmax(logits_BV, softmax(logits_BV) > cfg.epsilon_cutoff)


@rule_config
class EtaConfig(TemperatureConfig):
    """The numbers of eta."""

    eta_cutoff: float = parameter(
        6e-4,
        "the epsilon of a cutoff that falls with the entropy",
        0.0,
        1.0,
        "probability",
        source="0.0003 to 0.002, by size of the model [transformers]",
    )


def eta(logits_BV: Array, cfg: EtaConfig) -> Array:
    """Keeps p > min(ε, √ε·exp(-H)) (Hewitt 2022, arXiv:2210.15191), and the most likely token."""
    scale = jnp.sqrt(jnp.asarray(cfg.eta_cutoff, jnp.float32))
    cutoff_B = jnp.minimum(cfg.eta_cutoff, scale * jnp.exp(-_entropy(logits_BV)))
    return keep_argmax(logits_BV, softmax(logits_BV) > cutoff_B[:, None])


@rule_config
class TopNSigmaConfig(TemperatureConfig):
    """The numbers of top-n-sigma."""

    top_n_sigma: float = parameter(
        1.0,
        "keep logits within so many standard deviations of the largest",
        0.0,
        1000.0,
        source="1 [top-n-sigma]",
    )


def top_n_sigma(logits_BV: Array, cfg: TopNSigmaConfig) -> Array:
    """Keeps logits >= max - n·σ, with σ their standard deviation over the vocabulary (Tang 2024, arXiv:2411.07641).

    A temperature scales both sides, so that it never changes which tokens stay. Logits of -inf do not count.
    """
    below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    finite_BV = below_BV > -jnp.inf
    n_tokens_B = jnp.sum(finite_BV, axis=-1).astype(jnp.float32)
    counted_BV = jnp.where(finite_BV, below_BV, 0)
    # Divided by a power of two, which changes no digit, so that no sum and no square is infinite.
    _, exponent_B = jnp.frexp(jnp.max(-counted_BV, axis=-1))
    scaled_BV = jnp.ldexp(counted_BV, -exponent_B[:, None])
    mean_B = total(scaled_BV) / n_tokens_B
    deviation_BV = jnp.where(finite_BV, scaled_BV - mean_B[:, None], 0)
    sigma_B = jnp.ldexp(jnp.sqrt(contract(deviation_BV, deviation_BV) / n_tokens_B), exponent_B)
    return below_BV >= -cfg.top_n_sigma * sigma_B[:, None]


def p_less(logits_BV: Array, cfg: TemperatureConfig) -> Array:
    """Keeps p >= Σ p², the chance that two draws agree (Tan 2025, arXiv:2509.23234). No number to set.

    Both sides are multiplied by the square of the softmax's total: equal logits then compare exactly, and all stay.
    """
    parts = softmax_parts(logits_BV)
    collision_B = contract(parts.exp, parts.exp)
    return keep_argmax(logits_BV, parts.exp * parts.total[:, None] >= collision_B[:, None])


@rule_config
class TopHConfig(TemperatureConfig):
    """The numbers of top-h."""

    top_h_alpha: float = parameter(
        0.4,
        "share of the entropy that the kept tokens may have",
        0.0,
        1.0,
        "ratio",
        source="0.4 [top-h]; typically 0.3 to 0.6 [transformers]",
    )


def top_h(logits_BV: Array, cfg: TopHConfig) -> Array:
    """Keeps the longest prefix, most likely first, whose own entropy is at most α·H (top-H 2025, arXiv:2509.02510).

    The token that would exceed α·H does not stay; the most likely one always does. A prefix's entropy, of its tokens'
    probabilities divided by their sum, grows with every token, because the next one is no likelier than any in it. So
    no sort is needed: a binary search for the bits of the likeliest token that is too much (of non-negative floats,
    bits order like values), then one for how many of its equals fit.
    """
    parts = softmax_parts(logits_BV)
    bits_BV = jax.lax.bitcast_convert_type(parts.exp, jnp.int32)
    ceiling_B = jnp.where(cfg.top_h_alpha >= 1, jnp.inf, cfg.top_h_alpha * _entropy(logits_BV))

    def fits(weight_B: Array, energy_B: Array) -> Array:
        """Whether tokens of these sums, Σ exp and Σ exp·shift, are not too many: their entropy is at most α·H."""
        some_B = jnp.where(weight_B > 0, weight_B, 1)
        return jnp.log(some_B) - energy_B / some_B <= ceiling_B

    terms = parts.exp, parts.exp * parts.shift

    def sums(kept_BV: Array) -> tuple[Array, ...]:
        return tuple(total(jnp.where(kept_BV, term_BV, 0)) for term_BV in terms)

    def lower(i: Array, bound_B: Array) -> Array:
        higher_B = bound_B + jax.lax.shift_left(jnp.int32(1), 29 - i)  # the bits of 1.0 are below 2³⁰
        return jnp.where(fits(*sums(bits_BV >= higher_B[:, None])), bound_B, higher_B)

    bound_B = jax.lax.fori_loop(0, 30, lower, jnp.zeros(len(logits_BV), jnp.int32))
    above_BV, equal_BV = bits_BV > bound_B[:, None], bits_BV == bound_B[:, None]
    weight_B, energy_B = sums(above_BV)
    each_B, each_energy_B = (jnp.max(jnp.where(equal_BV, x_BV, -jnp.inf), axis=-1) for x_BV in terms)
    n_equals_B = jnp.sum(equal_BV, axis=-1, dtype=jnp.int32)
    n_bits = logits_BV.shape[-1].bit_length()

    def more(i: Array, count_B: Array) -> Array:
        more_B = count_B + jax.lax.shift_left(jnp.int32(1), n_bits - 1 - i)
        n_B = more_B.astype(jnp.float32)
        fit_B = fits(weight_B + n_B * each_B, energy_B + n_B * each_energy_B)
        return jnp.where((more_B <= n_equals_B) & fit_B, more_B, count_B)

    count_B = jax.lax.fori_loop(0, n_bits, more, jnp.zeros_like(n_equals_B))
    rank_BV = cumsum(equal_BV.astype(jnp.int32))
    # Tokens of probability 0 change no entropy: without this, all of them would stay wherever H rounds to 0.
    possible_BV = (parts.exp > 0) | (ceiling_B == jnp.inf)[:, None]
    return keep_argmax(logits_BV, possible_BV & (above_BV | (equal_BV & (rank_BV <= count_B[:, None]))))


def _entropy(logits_BV: Array) -> Array:
    """H in nats."""
    return entropy_bits(softmax_parts(logits_BV)) * math.log(2)


def truncation(name: str, summary: str, rule: Rule, config: type[RuleConfig] = TemperatureConfig) -> Sampler:
    """The sampler that draws from what the rule keeps; `rule` must be a module-level function, and `config` have its
    numbers and a temperature."""
    return Sampler(name, summary, (name,), stateless, partial(step, rule=rule), config)


TYPICAL = truncation(
    "typical",
    "tokens whose surprisal is nearest the expected one, the entropy (Meister 2023)",
    typical,
    TypicalConfig,
)
EPSILON = truncation("epsilon", "tokens above a fixed probability (Hewitt 2022)", epsilon, EpsilonConfig)
ETA = truncation(
    "eta", "tokens above a probability that falls as the entropy rises (Hewitt 2022)", eta, EtaConfig
)
TOP_N_SIGMA = truncation(
    "top-n-sigma",
    "tokens whose logit is within n standard deviations of the largest (Tang 2024)",
    top_n_sigma,
    TopNSigmaConfig,
)
P_LESS = truncation(
    "p-less", "tokens at least as likely as two draws are to be the same token (Tan 2025)", p_less
)
TOP_H = truncation(
    "top-h",
    "the likeliest tokens, as many as have no more than a share of the entropy (top-H 2025)",
    top_h,
    TopHConfig,
)
