"""The forward pass, written out: tokens in; logits, attention scores and new keys and values out.

It is Llama's, with a few switches of `ModelConfig` for its relatives. A switch that is off adds no instruction.

`forward` reads the committed past (`kv_cache.KVCache`) and writes the newest tokens (`kv_cache.RecentKV`);
`attention_mask` says where these stand and what they see.

Letters in names: B row, T query position, S cache slot, R recent slot, D width, N query heads, K key/value heads,
G = N/K, H head width, F feed-forward width, V vocabulary, L layer.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import ModelConfig
from entropix.metrics import AttentionScores
from entropix.model import attention
from entropix.model.attention_mask import AttentionMask, causal_mask, within_window
from entropix.model.kv_cache import KVCache, LayerKV, RecentKV, write_slots
from entropix.model.rope import rope_table, rotate
from entropix.model.weights import Int8Matrix, LayerWeights, Matrix, Weights
from entropix.numerics import scaled, softcap
from entropix.sharding import DATA, MODEL, constrain

SCORED, MEASURED, UNSEEN = "scored", "measured", "unseen"  # what is wanted of the attention


class Places(NamedTuple):
    """What every layer needs to know of where the new tokens stand."""

    rotation: tuple[Array, Array] | None  # cos and sin of `rope_table`; None in a layer without rotation
    slot_B: Array  # int32: recent slot of the first new token
    visible_BTS: Array  # bool: keys that each may see in this layer
    position_BS: Array | None  # of each key, where metrics are wanted
    query_BT: Array | None  # position of each new token, where metrics are wanted of a model with a window
    filled: tuple[Array, ...]
    """How many slots of each part of the past are in use, at most, where scores are not wanted; see `attention`."""


def forward(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    recent: RecentKV,
    cfg: ModelConfig,
    mask: AttentionMask | None = None,
) -> tuple[Array, RecentKV, AttentionScores]:
    """(logits_BTV float32, the recent keys and values with those of T more tokens, the scores of every layer).

    By default the tokens follow each other (`causal_mask`). One function serves decoding (T = 1), the check of a draft,
    the scoring of a text and, with `tree_mask`, branches that are rolled forward side by side. Under `jit`, an output
    that the caller drops is never computed.
    """
    mask = mask or causal_mask(cache, recent, tokens_BT.shape[1])
    masks = layer_masks(mask, cfg)
    x_BTD, recent, scores = run_layers(weights, tokens_BT, cache, recent, cfg, masks, SCORED)
    logits_BTV = unembed(weights, x_BTD, cfg)
    several = jnp.stack([of_layer.visible_BTS for of_layer in masks]) if cfg.global_layers else None
    attention = AttentionScores(
        scores_LBNTS=jnp.stack(scores),
        visible_BTS=mask.visible_BTS if cfg.global_layers else masks[0].visible_BTS,
        position_BS=mask.position_BS,
        query_BT=mask.query_BT if cfg.sliding_window else None,
        visible_LBTS=several,
    )
    return logits_BTV, recent, attention


def measured_forward(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    recent: RecentKV,
    cfg: ModelConfig,
    mask: AttentionMask,
) -> tuple[Array, RecentKV, dict[str, Array]]:
    """As `forward` for a long text, with `metrics.attention_metrics` instead of the scores that they are made of, of
    which there are never more than those of one layer and a block of queries."""
    masks = layer_masks(mask, cfg)
    x_BTD, recent, layers = run_layers(weights, tokens_BT, cache, recent, cfg, masks, MEASURED)
    logits_BTV = unembed(weights, x_BTD, cfg)
    return logits_BTV, recent, jax.tree.map(lambda *leaves: sum(leaves) / cfg.n_layers, *layers)


def prefill(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    recent: RecentKV,
    cfg: ModelConfig,
    mask: AttentionMask,
) -> RecentKV:
    """The keys and values of `forward`, of tokens of whose logits and scores nothing is wanted."""
    masks = layer_masks(mask, cfg)
    return run_layers(weights, tokens_BT, cache, recent, cfg, masks, UNSEEN)[1]


def layer_masks(mask: AttentionMask, cfg: ModelConfig) -> Sequence[AttentionMask]:
    """What each layer sees: all of the mask or, where it has a window, what lies within it."""
    if not cfg.sliding_window:
        return (mask,) * cfg.n_layers
    near = within_window(mask, cfg.sliding_window)
    return [mask if i in cfg.global_layers else near for i in range(cfg.n_layers)]


def run_layers(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    recent: RecentKV,
    cfg: ModelConfig,
    masks: Sequence[AttentionMask],
    wanted: str,
) -> tuple[Array, RecentKV, list[Any]]:
    """(x_BTD after the last layer, the recent keys and values, what is wanted of the attention of every layer).

    masks: of each layer, which differ in what is visible alone. wanted: `SCORED` for score_BNTS, `MEASURED` for metrics
    of the layer, `UNSEEN` for nothing.
    """
    mask = masks[0]
    local = rope_table(mask.query_BT, cfg, local=True) if cfg.rope_local_theta else None
    places = Places(
        rotation=rope_table(mask.query_BT, cfg, rope_length_B=mask.rope_length_B),
        slot_B=mask.slot_B,
        visible_BTS=mask.visible_BTS,
        position_BS=mask.position_BS if wanted == MEASURED else None,
        query_BT=mask.query_BT if wanted == MEASURED and cfg.sliding_window else None,
        filled=() if wanted == SCORED else cache.max_lengths(),
    )
    x_BTD = constrain(scaled(weights.embed_VD[tokens_BT], cfg.embedding_multiplier), DATA)
    recent_k, recent_v, seen = [], [], []
    for i, layer, seen_by, past, newest in zip(
        range(cfg.n_layers),
        weights.layers,
        masks,
        cache.layers(),
        zip(recent.k_LBKHR, recent.v_LBKRH, strict=True),
        strict=True,
    ):
        rotation = places.rotation if i in cfg.global_layers or not cfg.rope_local_theta else local
        rotation = None if i in cfg.no_rope_layers else rotation
        at = places._replace(rotation=rotation, visible_BTS=seen_by.visible_BTS)
        x_BTD, (k_BKHR, v_BKRH), of_layer = transformer_layer(layer, x_BTD, past, newest, at, cfg, wanted)
        recent_k.append(k_BKHR)
        recent_v.append(v_BKRH)
        if of_layer is not None:
            seen.append(of_layer)
    used_B = recent.used_B + tokens_BT.shape[1]
    return x_BTD, RecentKV(tuple(recent_k), tuple(recent_v), used_B), seen


# Traced once, not once a layer: a third of a warm start's tracing time.
@partial(jax.jit, static_argnames=("cfg", "wanted"))
def transformer_layer(
    layer: LayerWeights,
    x_BTD: Array,
    past: tuple[LayerKV, ...],
    newest: LayerKV,
    places: Places,
    cfg: ModelConfig,
    wanted: str,
) -> tuple[Array, LayerKV, Any]:
    """(x_BTD, newest, what is `wanted` of the attention) after one layer; `run_layers` says what that is.

    past: the keys and values of `KVCache.layers`. newest: the recent ones, k_BKHR and v_BKRH, which come out with those
    of the new tokens at `places.slot_B`.
    """
    k_BKHR, v_BKRH = newest
    with jax.named_scope("attention"):
        input_BTD = x_BTD if cfg.norm_after else rms_norm(x_BTD, layer.attn_norm_D, cfg)
        q_BKGTH, k_BKHT, v_BKTH = qkv_projection(layer, input_BTD, places.rotation, cfg)
        k_BKHR = constrain(write_slots(k_BKHR, k_BKHT, places.slot_B, axis=3), DATA, MODEL)
        v_BKRH = constrain(write_slots(v_BKRH, v_BKTH, places.slot_B, axis=2), DATA, MODEL)
        seen_BKRH = v_BKRH
        if x_BTD.shape[1] > 1:
            x_BTD, seen_BKRH = isolate_nonfinite(x_BTD, v_BKRH, places.visible_BTS)
        inputs = q_BKGTH, past, (k_BKHR, seen_BKRH), places.visible_BTS
        cap = cfg.attention_softcap
        found: Any = None
        if wanted == SCORED:
            output_BKGTH, score_BKGTS = attention.attention_with_scores(*inputs, cap)
            score_BNTS = score_BKGTS.reshape(len(x_BTD), cfg.n_heads, *score_BKGTS.shape[3:])
            found = constrain(score_BNTS, DATA, MODEL)
        elif wanted == MEASURED:
            assert places.position_BS is not None
            where = places.position_BS, places.query_BT
            output_BKGTH, found = attention.measured_attention(*inputs, places.filled, where, cap)
        else:
            output_BKGTH = attention.blockwise_attention(*inputs, places.filled, cap)
        norm_D = layer.attn_norm_D if cfg.norm_after else layer.attn_output_norm_D
        x_BTD = residual_sum(x_BTD, output_projection(layer, output_BKGTH), norm_D, cfg)
    with jax.named_scope("feed_forward"):
        input_BTD = x_BTD if cfg.norm_after else rms_norm(x_BTD, layer.ffn_norm_D, cfg)
        norm_D = layer.ffn_norm_D if cfg.norm_after else layer.ffn_output_norm_D
        x_BTD = residual_sum(x_BTD, feed_forward(layer, input_BTD, cfg), norm_D, cfg)
    return x_BTD, (k_BKHR, v_BKRH), found


def residual_sum(x_BTD: Array, update_BTD: Array, norm_D: Array | None, cfg: ModelConfig) -> Array:
    """x and the update of an attention or feed-forward layer, which is normed here where there is such a norm."""
    if norm_D is not None:
        update_BTD = rms_norm(update_BTD, norm_D, cfg)
    return constrain(x_BTD + scaled(update_BTD, cfg.residual_multiplier), DATA)


def isolate_nonfinite(x_BTD: Array, v_BKRH: Array, visible_BTS: Array) -> tuple[Array, Array]:
    """(x_BTD, v_BKRH) with which a value that is not finite spoils the tokens that see it, and no other.

    It would spoil all of a pass, since 0 times NaN is NaN: also earlier tokens, and other paths.
    """
    broken_BR = ~jnp.all(jnp.isfinite(v_BKRH), axis=(1, 3))
    seen_BT = jnp.any(visible_BTS[..., -broken_BR.shape[1] :] & broken_BR[:, None], axis=-1)
    whole_BKRH = jnp.where(broken_BR[:, None, :, None], 0, v_BKRH)
    return jnp.where(seen_BT[..., None], jnp.nan, x_BTD), whole_BKRH


def rms_norm(x: Array, weight: Array, cfg: ModelConfig) -> Array:
    """x / sqrt(mean(x²) + eps) · (weight + offset), in float32, returned in x's dtype (Zhang & Sennrich 2019).

    The mean is over the axes of the weight, which are the last ones of x.
    """
    x32 = x.astype(jnp.float32)
    axes = tuple(range(-weight.ndim, 0))
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axes, keepdims=True) + cfg.norm_eps)
    weight32 = weight.astype(jnp.float32)
    if cfg.norm_offset:
        weight32 += cfg.norm_offset
    return (x32 * scale * weight32[(None,) * (x.ndim - weight.ndim)]).astype(x.dtype)


def qkv_projection(
    layer: LayerWeights, x_BTD: Array, rotation: tuple[Array, Array] | None, cfg: ModelConfig
) -> tuple[Array, Array, Array]:
    """(q_BKGTH, k_BKHT, v_BKTH) of the new tokens: one fused projection, then the rotary embedding on q and k."""
    group = cfg.n_heads // cfg.n_kv_heads
    qkv = linear(x_BTD, layer.qkv).reshape(*x_BTD.shape[:2], *layer.qkv.shape[:-1])
    if layer.qkv_bias is not None:
        qkv += layer.qkv_bias[None, None]
    q_BTKGH, k_BTKH, v_BTKH = qkv[:, :, :, :group], qkv[:, :, :, group], qkv[:, :, :, group + 1]
    if layer.q_norm is not None and layer.k_norm is not None:
        q_BTKGH, k_BTKH = rms_norm(q_BTKGH, layer.q_norm, cfg), rms_norm(k_BTKH, layer.k_norm, cfg)
    # Scores are q·k/√H. Another factor goes into the rotation of q, which is in float32, so that q is rounded once.
    q_factor = cfg.attention_multiplier * math.sqrt(cfg.head_dim) or 1.0
    if rotation is None:
        q_BTKGH = scaled(q_BTKGH, q_factor)
    else:
        q_cos_BTH, q_sin_BTH = (scaled(x_BTH, q_factor)[:, :, None, None] for x_BTH in rotation)
        q_BTKGH = rotate(q_BTKGH, q_cos_BTH, q_sin_BTH)
        k_BTKH = rotate(k_BTKH, *(x_BTH[:, :, None] for x_BTH in rotation))
    return q_BTKGH.transpose(0, 2, 3, 1, 4), k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)


def output_projection(layer: LayerWeights, output_BKGTH: Array) -> Array:
    """x_BTD: the output projection of all heads together."""
    output_BTKGH = output_BKGTH.transpose(0, 3, 1, 2, 4)
    return linear(output_BTKGH.reshape(*output_BTKGH.shape[:2], -1), layer.attn_out)


def feed_forward(layer: LayerWeights, x_BTD: Array, cfg: ModelConfig) -> Array:
    """SwiGLU: (silu(x·gate) ⊙ x·up) · down; or GeGLU, with the approximation of gelu by tanh (Shazeer 2020)."""
    both = linear(x_BTD, layer.gate_up).reshape(*x_BTD.shape[:2], *layer.gate_up.shape[:-1])
    activation = jax.nn.silu if cfg.activation == "silu" else gelu_tanh
    hidden = activation(both[:, :, :, 0]) * both[:, :, :, 1]
    return linear(hidden.reshape(*x_BTD.shape[:2], -1), layer.down)


def gelu_tanh(x: Array) -> Array:
    """x·Φ(x), approximated by tanh, in float32 (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


@jax.named_scope("unembed")
def unembed(weights: Weights, x_BTD: Array, cfg: ModelConfig) -> Array:
    """logits_BTV in float32 of what the last layer leaves: normed, then times a table, in a tied model the embedding's.

    Rows without a token, with which vocabularies are padded, have -inf: they count in no metric and are never drawn.
    """
    x_BTD = rms_norm(x_BTD, weights.norm_D, cfg)
    table_VD = weights.embed_VD if weights.unembed_VD is None else weights.unembed_VD
    if isinstance(table_VD, Int8Matrix):
        logits_BTV = int8_product(x_BTD, table_VD)
    else:
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)
    if cfg.logits_divisor != 1:
        logits_BTV /= cfg.logits_divisor
    if cfg.logits_softcap:
        logits_BTV = softcap(logits_BTV, cfg.logits_softcap)
    if weights.has_token_V is not None:
        logits_BTV = jnp.where(weights.has_token_V[None, None], logits_BTV, -jnp.inf)
    return constrain(logits_BTV, DATA, None, MODEL)


def linear(x_BTI: Array, weight: Matrix) -> Array:
    """x·Wᵀ for a matrix stored `[out, in]`, where either may be several axes; in x and the result they are one.

    XLA's CPU backend takes ten times as long for a product with several.
    """
    if isinstance(weight, Int8Matrix):
        return int8_product(x_BTI, weight).astype(x_BTI.dtype)
    return jnp.einsum("BTI,OI->BTO", x_BTI, weight.reshape(-1, x_BTI.shape[-1]))


def int8_product(x_BTI: Array, weight: Int8Matrix) -> Array:
    """As `linear`, in float32: the scales multiply the sums."""
    value_OI = weight.value.reshape(-1, x_BTI.shape[-1]).astype(x_BTI.dtype)
    sum_BTO = jnp.einsum("BTI,OI->BTO", x_BTI, value_OI, preferred_element_type=jnp.float32)
    return sum_BTO * weight.scale.reshape(1, 1, -1)
