"""The Llama forward pass, written out: tokens in; logits, attention scores and new keys and values out.

`forward` reads the committed past (`kv_cache.KVCache`) and writes the newest tokens (`kv_cache.RecentKV`);
`attention_mask` says where these stand and what they see.

Letters in names: B row, T query position, S cache slot, R tail slot, D width, N query heads, K key/value heads,
G = N/K, H head width, F feed-forward width, V vocabulary, L layer.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from entropix.config import ModelConfig
from entropix.metrics import AttentionScores
from entropix.model import attention
from entropix.model.attention_mask import AttentionMask, causal_mask
from entropix.model.kv_cache import KVCache, LayerKV, RecentKV, write_slots
from entropix.model.weights import LayerWeights, Weights
from entropix.sharding import DATA, MODEL, constrain


def forward(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    tail: RecentKV,
    cfg: ModelConfig,
    layout: AttentionMask | None = None,
) -> tuple[Array, RecentKV, AttentionScores]:
    """(logits_BTV float32, the tail with T more tokens, the attention scores of every layer).

    By default the tokens follow each other (`line`). One function serves decoding (T = 1), the check of a draft, the
    scoring of a text and, with `fan`, branches that are rolled forward side by side. Under `jit`, an output that the
    caller drops is never computed.
    """
    if layout is None:
        layout = causal_mask(cache, tail, tokens_BT.shape[1])
    x_BTD, tail, scores = run_layers(weights, tokens_BT, cache, tail, cfg, layout, scored=True)
    with jax.named_scope("unembed"):
        logits_BTV = unembed(weights, rms_norm(x_BTD, weights.norm_D, cfg))
    return logits_BTV, tail, AttentionScores(jnp.stack(scores), layout.visible_BTS, layout.position_BS)


def prefill(weights: Weights, tokens_BT: Array, cache: KVCache, tail: RecentKV, cfg: ModelConfig) -> RecentKV:
    """The tail of `forward`, of tokens of whose logits and scores nothing is wanted: prefill."""
    layout = causal_mask(cache, tail, tokens_BT.shape[1])
    return run_layers(weights, tokens_BT, cache, tail, cfg, layout, scored=False)[1]


def run_layers(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    tail: RecentKV,
    cfg: ModelConfig,
    layout: AttentionMask,
    scored: bool,
) -> tuple[Array, RecentKV, list[Array]]:
    """(x_BTD after the last layer, the tail with the new tokens, score_BNTS of every layer if `scored`, else none)."""
    rotation = rope_table(layout.query_BT, cfg)
    filled = None if scored else cache.max_lengths()

    x_BTD = constrain(weights.embed_VD[tokens_BT], DATA)
    tail_k, tail_v, scores = [], [], []
    for layer, past, newest in zip(
        weights.layers,
        cache.layers(),
        zip(tail.k_LBKHR, tail.v_LBKRH, strict=True),
        strict=True,
    ):
        x_BTD, (k_BKHR, v_BKRH), score_BNTS = transformer_layer(
            layer, x_BTD, past, newest, layout.slot_B, layout.visible_BTS, rotation, filled, cfg
        )
        tail_k.append(k_BKHR)
        tail_v.append(v_BKRH)
        if score_BNTS is not None:
            scores.append(score_BNTS)
    tail = RecentKV(tuple(tail_k), tuple(tail_v), tail.used_B + tokens_BT.shape[1])
    return x_BTD, tail, scores


# Traced once, not once a layer: a third of a warm start's tracing time.
@partial(jax.jit, static_argnames="cfg")
def transformer_layer(
    layer: LayerWeights,
    x_BTD: Array,
    past: tuple[LayerKV, ...],
    newest: LayerKV,
    slot_B: Array,
    visible_BTS: Array,
    rotation: tuple[Array, Array],
    filled: tuple[Array, ...] | None,
    cfg: ModelConfig,
) -> tuple[Array, LayerKV, Array | None]:
    """(x_BTD, newest, score_BNTS) after one layer, without the scores where `filled` is given.

    past: the keys and values of `KVCache.layers`. newest: the tail's, k_BKHR and v_BKRH, which comes out with the new
    tokens written at `slot_B`. rotation: the table of `rope_table`. filled: how many slots of each pair of the past
    are, at most.
    """
    k_BKHR, v_BKRH = newest
    with jax.named_scope("attention"):
        q_BKGTH, k_BKHT, v_BKTH = qkv_projection(
            layer, rms_norm(x_BTD, layer.attn_norm_D, cfg), *rotation, cfg
        )
        k_BKHR = constrain(write_slots(k_BKHR, k_BKHT, slot_B, axis=3), DATA, MODEL)
        v_BKRH = constrain(write_slots(v_BKRH, v_BKTH, slot_B, axis=2), DATA, MODEL)
        seen_BKRH = v_BKRH
        if x_BTD.shape[1] > 1:
            x_BTD, seen_BKRH = isolate_nonfinite(x_BTD, v_BKRH, visible_BTS)
        newest = k_BKHR, seen_BKRH
        score_BNTS = None
        if filled is None:
            mix_BKGTH, score_BKGTS = attention.attention_with_scores(q_BKGTH, past, newest, visible_BTS)
            score_BNTS = constrain(
                score_BKGTS.reshape(len(x_BTD), cfg.n_heads, *score_BKGTS.shape[3:]), DATA, MODEL
            )
        else:
            mix_BKGTH = attention.blockwise_attention(q_BKGTH, past, newest, visible_BTS, filled)
        x_BTD = constrain(x_BTD + output_projection(layer, mix_BKGTH), DATA)
    with jax.named_scope("feed_forward"):
        x_BTD = constrain(x_BTD + feed_forward(layer, rms_norm(x_BTD, layer.ffn_norm_D, cfg)), DATA)
    return x_BTD, (k_BKHR, v_BKRH), score_BNTS


def isolate_nonfinite(x_BTD: Array, v_BKRH: Array, visible_BTS: Array) -> tuple[Array, Array]:
    """(x_BTD, v_BKRH) with which a value that is not finite spoils the tokens that see it, and no other.

    It would spoil all of a pass, since 0 times NaN is NaN: also earlier tokens, and other paths.
    """
    broken_BR = ~jnp.all(jnp.isfinite(v_BKRH), axis=(1, 3))
    seen_BT = jnp.any(visible_BTS[..., -broken_BR.shape[1] :] & broken_BR[:, None], axis=-1)
    whole_BKRH = jnp.where(broken_BR[:, None, :, None], 0, v_BKRH)
    return jnp.where(seen_BT[..., None], jnp.nan, x_BTD), whole_BKRH


def rms_norm(x_BTD: Array, weight_D: Array, cfg: ModelConfig) -> Array:
    """x / sqrt(mean(x²) + eps) · weight, in float32, returned in x's dtype (Zhang & Sennrich 2019)."""
    x32 = x_BTD.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + cfg.norm_eps)
    return (x32 * scale * weight_D.astype(jnp.float32)[None, None]).astype(x_BTD.dtype)


def qkv_projection(
    layer: LayerWeights, x_BTD: Array, cos_BTH: Array, sin_BTH: Array, cfg: ModelConfig
) -> tuple[Array, Array, Array]:
    """(q_BKGTH, k_BKHT, v_BKTH) of the new tokens: one fused projection, then the rotary embedding on q and k."""
    group = cfg.n_heads // cfg.n_kv_heads
    qkv = linear(x_BTD, layer.qkv).reshape(*x_BTD.shape[:2], *layer.qkv.shape[:-1])
    q_BTKGH, k_BTKH, v_BTKH = qkv[:, :, :, :group], qkv[:, :, :, group], qkv[:, :, :, group + 1]
    q_BTKGH = rotate(q_BTKGH, cos_BTH[:, :, None, None], sin_BTH[:, :, None, None])
    k_BTKH = rotate(k_BTKH, cos_BTH[:, :, None], sin_BTH[:, :, None])
    return q_BTKGH.transpose(0, 2, 3, 1, 4), k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)


def output_projection(layer: LayerWeights, mix_BKGTH: Array) -> Array:
    """x_BTD: the output projection of what all heads have found."""
    mix_BTKGH = mix_BKGTH.transpose(0, 3, 1, 2, 4)
    return linear(mix_BTKGH.reshape(*mix_BTKGH.shape[:2], -1), layer.attn_out)


def feed_forward(layer: LayerWeights, x_BTD: Array) -> Array:
    """SwiGLU: (silu(x·gate) ⊙ x·up) · down (Shazeer 2020)."""
    both = linear(x_BTD, layer.gate_up).reshape(*x_BTD.shape[:2], *layer.gate_up.shape[:-1])
    hidden = jax.nn.silu(both[:, :, :, 0]) * both[:, :, :, 1]
    return linear(hidden.reshape(*x_BTD.shape[:2], -1), layer.down)


def unembed(weights: Weights, x_BTD: Array) -> Array:
    """logits_BTV in float32; a tied model reads its embedding table."""
    table_VD = weights.embed_VD if weights.unembed_VD is None else weights.unembed_VD
    logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)
    return constrain(logits_BTV, DATA, None, MODEL)


def linear(x_BTI: Array, weight: Array) -> Array:
    """x·Wᵀ for a matrix stored `[out, in]`, where either may be several axes; in x and the result they are one.

    XLA's CPU backend takes ten times as long for a product with several.
    """
    return jnp.einsum("BTI,OI->BTO", x_BTI, weight.reshape(-1, x_BTI.shape[-1]))


def rope_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Angle per position of each rotary pair, [H/2] float64: theta^(-2i/H), with Llama 3's stretching if configured.

    Wavelengths longer than original/low_freq_factor are divided by `factor`, shorter than original/high_freq_factor
    stay, those between are interpolated (Llama 3.1 release).
    """
    frequency = cfg.rope_theta ** (-np.arange(0, cfg.head_dim, 2) / cfg.head_dim)
    if (scaling := cfg.rope_scaling) is None:
        return frequency
    turns = scaling.original_context_length * frequency / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return frequency * (keep + (1 - keep) / scaling.factor)


def rope_table(position_BT: Array, cfg: ModelConfig) -> tuple[Array, Array]:
    """cos and sin of every angle, each [B, T, H/2] float32."""
    frequency_11H = rope_frequencies(cfg).astype(np.float32)[None, None]
    angle = position_BT[..., None].astype(jnp.float32) * frequency_11H
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding (Su 2021) of `[..., H]`, with cos and sin of the angles as `[..., H/2]`.

    Component i is rotated with i + H/2, in float32; the result has x's dtype.
    """
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
