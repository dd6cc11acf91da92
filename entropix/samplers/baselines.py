"""The usual samplers: each is the common chain with all but its own filters left out."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import SamplerConfig
from entropix.filters import SamplingParams
from entropix.samplers.base import (
    Candidates,
    SampleInfo,
    Sampler,
    SamplerInputs,
    draw,
    full_vocabulary,
    stateless,
    top_candidates,
)


def step(
    key_B: Array, state: Any, context: SamplerInputs, cfg: SamplerConfig, knobs: tuple[str, ...]
) -> tuple[Array, Any, SampleInfo, Candidates]:
    """One draw a row, with the config fields named in `knobs` in force and the others off; no knob at all is argmax."""
    batch = len(context.logits_BV)
    dtype = {"top_k": jnp.int32}
    values = {name: jnp.full(batch, getattr(cfg, name), dtype.get(name, jnp.float32)) for name in knobs}
    wanted = SamplingParams(values.get("temp"), values.get("top_p"), values.get("top_k"), values.get("min_p"))
    if not knobs:
        wanted = SamplingParams(top_k_B=jnp.ones(batch, jnp.int32))
        candidates = top_candidates(context.logits_BV, 1)
    elif "top_k" in knobs:
        candidates = top_candidates(context.logits_BV, cfg.max_top_k)
    else:
        candidates = full_vocabulary(context.logits_BV)
    candidates = candidates._replace(logits_BC=filters.chain(candidates.logits_BC, wanted))
    token_B, info = draw(key_B, context, candidates, wanted)
    return token_B, state, info, candidates


def _baseline(name: str, summary: str, *knobs: str) -> Sampler:
    return Sampler(name, summary, (name,), stateless, partial(step, knobs=knobs))


GREEDY = _baseline("greedy", "always the most likely token")
TEMPERATURE = _baseline(
    "temperature", "all tokens, their probabilities sharpened (below 1) or flattened (above 1)", "temp"
)
TOP_K = _baseline("top-k", "the k most likely tokens (Fan 2018)", "temp", "top_k")
TOP_P = _baseline(
    "top-p",
    "the likeliest tokens that together reach the probability p: nucleus sampling (Holtzman 2019)",
    "temp",
    "top_p",
)
MIN_P = _baseline(
    "min-p", "tokens at least min-p times as likely as the likeliest (Nguyen 2024)", "temp", "min_p"
)
