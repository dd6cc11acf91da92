"""The usual samplers: each is the common chain with all but its own filters left out."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import rule_config
from entropix.filters import SamplingParams
from entropix.samplers import numbers
from entropix.samplers.base import (
    Sampler,
    SamplerInputs,
    StepResult,
    draw,
    full_vocabulary,
    stateless,
    top_candidates,
)
from entropix.samplers.numbers import RuleConfig, TemperatureConfig


@rule_config
class TopKConfig(TemperatureConfig):
    """The numbers of top-k."""

    top_k: int = numbers.top_k(50, source="40 [llama.cpp], 50 [transformers]")
    max_top_k: int = numbers.max_top_k(128)

    def problem(self) -> str | None:
        return numbers.top_k_problem(self)


@rule_config
class TopPConfig(TemperatureConfig):
    """The numbers of top-p."""

    top_p: float = numbers.top_p(0.95, source="0.95 [llama.cpp]")


@rule_config
class MinPConfig(TemperatureConfig):
    """The numbers of min-p."""

    min_p: float = numbers.min_p(0.1, source="0.05 [llama.cpp]; typically 0.01 to 0.2 [transformers]")


def step(key_B: Array, state: Any, seen: SamplerInputs, cfg: Any, filters_on: tuple[str, ...]) -> StepResult:
    """One draw a row, with the numbers named in `filters_on` in force and no others; with none at all it is argmax."""
    batch = len(seen.logits_BV)
    dtype = {"top_k": jnp.int32}
    values = {name: jnp.full(batch, getattr(cfg, name), dtype.get(name, jnp.float32)) for name in filters_on}
    wanted = SamplingParams(values.get("temp"), values.get("top_p"), values.get("top_k"), values.get("min_p"))
    if not filters_on:
        wanted = SamplingParams(top_k_B=jnp.ones(batch, jnp.int32))
        candidates = top_candidates(seen.logits_BV, 1)
    elif "top_k" in filters_on:
        candidates = top_candidates(seen.logits_BV, cfg.max_top_k)
    else:
        candidates = full_vocabulary(seen.logits_BV)
    candidates = candidates._replace(logits_BC=filters.chain(candidates.logits_BC, wanted))
    token_B, info = draw(key_B, seen, candidates, wanted)
    return token_B, state, info, candidates


def _baseline(name: str, summary: str, config: type[RuleConfig], *filters_on: str) -> Sampler:
    return Sampler(name, summary, (name,), stateless, partial(step, filters_on=filters_on), config)


GREEDY = _baseline("greedy", "always the most likely token", RuleConfig)
TEMPERATURE = _baseline(
    "temperature",
    "all tokens, their probabilities sharpened (below 1) or flattened (above 1)",
    TemperatureConfig,
    "temp",
)
TOP_K = _baseline("top-k", "the k most likely tokens (Fan 2018)", TopKConfig, "temp", "top_k")
TOP_P = _baseline(
    "top-p",
    "the likeliest tokens that together reach the probability p: nucleus sampling (Holtzman 2019)",
    TopPConfig,
    "temp",
    "top_p",
)
MIN_P = _baseline(
    "min-p",
    "tokens at least min-p times as likely as the likeliest (Nguyen 2024)",
    MinPConfig,
    "temp",
    "min_p",
)
