"""How sure the model is: of its next token, from the logits; of where to look, from the attention of every layer."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.model import Attention


class Metrics(NamedTuple):
    """Uncertainty at each position, float32 `[B, T]` (or `[B]` for one step). Rows never mix.

    Below, p is the model's distribution at temperature 1 over its whole vocabulary, and a_lhj the attention that
    head h of layer l pays to key j: the softmax of the raw scores s_lhj over the n visible keys. Entropies are in
    bits, varentropies in bits²; 0·log 0 = 0.
    """

    logits_entropy: Array
    """H = -Σ p log2 p, in [0, log2 V] bits (Shannon 1948)."""
    logits_varentropy: Array
    """Σ p (log2 p + H)²: the variance of a token's surprise, in bits² (Kontoyiannis & Verdú 2013)."""
    attn_entropy: Array
    """Mean over layers and heads of E_lh = -Σ_j a_lhj log2 a_lhj, in bits."""
    attn_varentropy: Array
    """Mean over layers of the population variance of E_lh across heads, in bits²."""
    agreement: Array
    """Mean over layers, heads and visible keys of |a_lhj - mean_h a_lhj|, in [0, 1).

    The historical name misleads: this is a *deviation*, small when heads agree. `head_agreement` is the true one.
    """
    interaction_strength: Array
    """Mean over layers, heads and visible keys of |s_lhj|, the raw scores q·k/√H."""
    attn_entropy_normalized: Array
    """Mean over layers and heads of E_lh / log2 n, in [0, 1]; 0 where there is a single key."""
    head_agreement: Array
    """1 - (Jensen-Shannon divergence of a layer's heads) / log2 N, averaged over layers, in [0, 1] (Lin 1991)."""
    top_prob: Array
    """The largest p."""
    margin: Array
    """Largest p minus the second largest."""
    previous_token_attention: Array
    """Mean over layers and heads of a on the key just before the query's own; 0 for the first position."""


def measure(logits_BTV: Array, attention: Attention) -> Metrics:
    """All metrics at every query position, each `[B, T]`.

    Shapes: logits `[B, T, V]` float32 with at least two tokens in the vocabulary; attention as `model.forward`
    returns it. A row with NaN logits gets NaN; its neighbours are not touched.
    """
    log_p_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    entropy_BT, varentropy_BT = entropy_and_varentropy(log_p_BTV)
    first_BT, second_BT = jnp.moveaxis(jnp.exp(jax.lax.top_k(log_p_BTV, 2)[0]), -1, 0)

    visible_BNTS = attention.visible_BTS[:, None]
    count_BT = jnp.sum(attention.visible_BTS, axis=-1, dtype=jnp.int32)
    n_BT = count_BT.astype(jnp.float32)
    prob_LBNTS = attention_probabilities(attention)
    entropy_LBNT = entropy_bits(prob_LBNTS)
    mean_LBTS = jnp.mean(prob_LBNTS, axis=2)
    deviation_BT = jnp.mean(jnp.sum(jnp.abs(prob_LBNTS - mean_LBTS[:, :, None]), axis=-1), axis=(0, 2)) / n_BT
    strength_LBNT = jnp.sum(jnp.abs(attention.scores_LBNTS), axis=-1, where=visible_BNTS)
    before_BNTS = (attention.position_BS[:, None, :] == count_BT[:, :, None] - 2)[:, None] & visible_BNTS

    return Metrics(
        logits_entropy=entropy_BT,
        logits_varentropy=varentropy_BT,
        attn_entropy=jnp.mean(entropy_LBNT, axis=(0, 2)),
        attn_varentropy=jnp.mean(jnp.var(entropy_LBNT, axis=2), axis=0),
        agreement=deviation_BT,
        interaction_strength=jnp.mean(strength_LBNT, axis=(0, 2)) / n_BT,
        attn_entropy_normalized=jnp.mean(entropy_LBNT, axis=(0, 2)) / jnp.log2(jnp.maximum(n_BT, 2)),
        head_agreement=jnp.mean(head_agreement(mean_LBTS, entropy_LBNT), axis=0),
        top_prob=first_BT,
        margin=first_BT - second_BT,
        previous_token_attention=jnp.mean(jnp.sum(prob_LBNTS, axis=-1, where=before_BNTS), axis=(0, 2)),
    )


def entropy_and_varentropy(log_p_BTV: Array) -> tuple[Array, Array]:
    """(H in bits, varentropy in bits²) over the last axis of natural log-probabilities; -inf counts as 0·log 0 = 0."""
    p_BTV = jnp.exp(log_p_BTV)
    bits_BTV = jnp.where(p_BTV > 0, log_p_BTV, 0.0) / math.log(2)
    entropy_BT = -jnp.sum(p_BTV * bits_BTV, axis=-1)
    varentropy_BT = jnp.sum(p_BTV * jnp.square(bits_BTV + entropy_BT[..., None]), axis=-1)
    return entropy_BT, varentropy_BT


def attention_probabilities(attention: Attention) -> Array:
    """a_LBNTS: softmax of the raw scores over the visible keys; exactly 0 elsewhere."""
    masked_LBNTS = jnp.where(attention.visible_BTS[:, None], attention.scores_LBNTS, -jnp.inf)
    return jax.nn.softmax(masked_LBNTS, axis=-1)


def entropy_bits(prob: Array) -> Array:
    """-Σ p log2 p over the last axis, in bits; 0·log 0 = 0."""
    return -jnp.sum(prob * jnp.log2(jnp.where(prob > 0, prob, 1.0)), axis=-1)


def head_agreement(mean_LBTS: Array, entropy_LBNT: Array) -> Array:
    """[L, B, T] in [0, 1]: 1 - JSD / log2 N with JSD = entropy of the heads' mean - mean of the heads' entropies."""
    n_heads = entropy_LBNT.shape[2]
    divergence_LBT = entropy_bits(mean_LBTS) - jnp.mean(entropy_LBNT, axis=2)
    return jnp.clip(1 - divergence_LBT / math.log2(max(n_heads, 2)), 0.0, 1.0)
