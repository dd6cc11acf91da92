"""Rotary embedding (Su 2021): the angle that each pair of components of queries and keys is turned by at a position,
and how it is stretched for long texts.

Letters in names are those of `transformer`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from entropix.config import ModelConfig
from entropix.numerics import scaled


def rope_frequencies(cfg: ModelConfig, local: bool = False) -> np.ndarray:
    """Angle per position of each rotary pair, [H/2] float64: theta^(-2i/H), scaled as configured: linearly (Chen et al.
    2023), pair by pair (LongRoPE, Ding et al. 2024), or by the formula of Llama 3 or YaRN. Where only a part of a head
    is rotated, H is its width. local: those of layers with a window, where they have a theta of their own, and no
    scaling. Where frequencies depend on how long a text is, they are those of short ones.

    Llama 3 divides frequencies of wavelengths longer than original/low_freq_factor by `factor`, leaves those shorter
    than original/high_freq_factor, and interpolates between (Llama 3.1 release).
    """
    if local:
        return unscaled_frequencies(cfg, cfg.rope_local_theta)
    frequency = unscaled_frequencies(cfg, cfg.rope_theta)
    if cfg.rope_divisors:
        return frequency / np.array(cfg.rope_divisors)
    if cfg.yarn is not None:
        return frequency * yarn_factors(cfg)
    if (scaling := cfg.rope_scaling) is None:
        return frequency
    turns = scaling.original_context_length * frequency / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return frequency * (keep + (1 - keep) / scaling.factor)


def unscaled_frequencies(cfg: ModelConfig, theta: float) -> np.ndarray:
    """theta^(-2i/H), [H/2] float64."""
    width = cfg.rotary_dim or cfg.head_dim
    return theta ** (-np.arange(0, width, 2) / width)


def yarn_factors(cfg: ModelConfig) -> np.ndarray:
    """What YaRN multiplies each pair's frequency with, [H/2]: 1 for fast pairs, 1/factor for slow ones, and linear
    interpolation between (Peng et al. 2023)."""
    yarn = cfg.yarn
    assert yarn is not None
    # The pair, not a whole number, that turns so often within the original context.
    fast, slow = (
        cfg.head_dim
        * math.log(yarn.original_context_length / (turns * 2 * math.pi))
        / (2 * math.log(cfg.rope_theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    if yarn.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, cfg.head_dim - 1)
    width = slow - fast or 0.001
    divided = np.clip((np.arange(cfg.head_dim // 2) - fast) / width, 0.0, 1.0)
    return 1 - divided + divided / yarn.factor


def rope_table(
    position_BT: Array, cfg: ModelConfig, local: bool = False, rope_length_B: Array | None = None
) -> tuple[Array, Array]:
    """cos and sin of every angle, each [B, T, H/2] float32; times the factor of attention of YaRN or LongRoPE.

    local: as of `rope_frequencies`. rope_length_B: `ModelConfig.rope_length` of each row's text, of which these tokens
    are a part; None: the text ends with each of them, as in decoding.
    """
    frequency: Any = rope_frequencies(cfg, local).astype(np.float32)[None, None]
    if cfg.rope_original_length:
        length_BT = position_BT + 1 if rope_length_B is None else rope_length_B[:, None]
        frequency = frequencies_at(frequency, length_BT[..., None], cfg)
    angle = position_BT[..., None].astype(jnp.float32) * frequency
    factor = cfg.rope_factor if cfg.yarn is None else cfg.yarn.attention_factor
    return scaled(jnp.cos(angle), factor), scaled(jnp.sin(angle), factor)


def rope_lengths(n_tokens: Sequence[int], cfg: ModelConfig) -> Array | None:
    """rope_length_B of texts of so many tokens; None where frequencies are the same in all texts."""
    if not cfg.rope_original_length:
        return None
    return jnp.asarray([cfg.rope_length(n) for n in n_tokens], jnp.int32)


def frequencies_at(frequency_11H: np.ndarray, length_BT1: Array, cfg: ModelConfig) -> Array:
    """[B, T, H/2] float32: what these frequencies, those of short texts, are in texts of so many tokens.

    LongRoPE divides by other numbers (Ding et al. 2024). Dynamic scaling takes the base theta·g^(H/(H-2)) with g = 1 +
    f·(n - original)/original in a text of n tokens (`rope_type` "dynamic" of transformers).
    """
    original, n_pairs = cfg.rope_original_length, frequency_11H.shape[-1]
    if cfg.rope_long_divisors:
        in_longer = np.array(cfg.rope_divisors) / np.array(cfg.rope_long_divisors)
        longer_11H = (rope_frequencies(cfg) * in_longer).astype(np.float32)
        return jnp.where(length_BT1 > original, longer_11H, frequency_11H)
    beyond_BT1 = jnp.maximum(length_BT1 - original, 0).astype(jnp.float32)
    growth_BT1 = 1 + cfg.rope_dynamic_factor * beyond_BT1 / original
    power_11H = -np.arange(n_pairs, dtype=np.float32)[None, None] / (n_pairs - 1)
    return frequency_11H * growth_BT1**power_11H


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding (Su 2021) of `[..., H]`, with cos and sin of the angles as `[..., H/2]`.

    Component i is rotated with i + H/2, in float32; the result has x's dtype. Components beyond twice as many as there
    are angles stay as they are.
    """
    if (width := 2 * cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :width], cos, sin), x[..., width:]], axis=-1)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
