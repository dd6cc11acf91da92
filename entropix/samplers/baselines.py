"""The usual samplers: each is the common chain with all but its own filters left out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import SamplerConfig
from entropix.filters import Settings
from entropix.samplers.base import Candidates, Context, Encode, SampleInfo, Sampler, best, model_logprob


def stateless(cfg: SamplerConfig, batch: int, encode: Encode) -> tuple[()]:
    """No state."""
    return ()


def step(
    key_B: Array, state: Any, context: Context, cfg: SamplerConfig, knobs: tuple[str, ...]
) -> tuple[Array, Any, SampleInfo]:
    """One draw a row, with the config fields named in `knobs` in force and the others off; no knob at all is argmax."""
    batch, vocabulary = context.logits_BV.shape
    dtype = {"top_k": jnp.int32}
    values = {name: jnp.full(batch, getattr(cfg, name), dtype.get(name, jnp.float32)) for name in knobs}
    wanted = Settings(values.get("temp"), values.get("top_p"), values.get("top_k"), values.get("min_p"))

    if not knobs:
        candidates = best(context.logits_BV, 1)
    elif "top_k" in knobs:
        candidates = best(context.logits_BV, cfg.max_top_k)
    else:
        everything_BV = jax.lax.broadcasted_iota(jnp.int32, context.logits_BV.shape, 1)
        candidates = Candidates(context.logits_BV, everything_BV)
    filtered_BC = filters.chain(candidates.logits_BC, wanted)
    drawn = filters.draw(key_B, filtered_BC)
    token_B = filters.at(candidates.token_BC, drawn.token_B)

    all_B = jnp.full(batch, vocabulary if knobs else 1, jnp.int32)
    off = Settings(jnp.ones(batch), jnp.ones(batch), all_B, jnp.zeros(batch))
    shown = {
        name: value
        for settings in (off, wanted)
        for name, value in settings._asdict().items()
        if value is not None
    }
    info = SampleInfo(
        strategy_B=jnp.zeros(batch, jnp.int32),
        **shown,
        kept_B=filters.kept(filtered_BC),
        logprob_B=model_logprob(context.logits_BV, token_B),
        draw_logprob_B=drawn.logprob_B,
        score_B=jnp.full(batch, jnp.nan),
        injected_B=jnp.zeros(batch, bool),
    )
    return token_B, state, info


def _baseline(name: str, summary: str, *knobs: str) -> Sampler:
    return Sampler(name, summary, (name,), stateless, partial(step, knobs=knobs))


GREEDY = _baseline("greedy", "always the most likely token")
TEMPERATURE = _baseline("temperature", "the model's distribution, sharpened or flattened", "temp")
TOP_K = _baseline("top-k", "the k most likely tokens (Fan 2018)", "temp", "top_k")
TOP_P = _baseline("top-p", "nucleus sampling (Holtzman 2019)", "temp", "top_p")
MIN_P = _baseline("min-p", "tokens not much less likely than the likeliest (Nguyen 2024)", "temp", "min_p")
