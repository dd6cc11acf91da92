"""How sure the model is: of its next token, from the logits; of where to look, from the attention of every layer."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.model.transformer import Attention


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
    self_certainty: Array
    """KL(U‖p) = -1/V Σ ln(V·p), at least 0, in nats: how far p is from all V tokens alike (Kang et al. 2025).

    U is uniform over all of the logits, unused tokens of a padded vocabulary included. Every token weighs the same, the
    least likely too: a logit of -1e30 makes it 1e30/V, one of -inf makes it +inf, which a trace shows as null. It is
    therefore always that of the model's own logits, before any filter.
    """


def measure(logits_BTV: Array, attention: Attention) -> Metrics:
    """All metrics at every query position, each `[B, T]`.

    Shapes: logits `[B, T, V]` float32 with at least two tokens in the vocabulary; attention as `model.forward`
    returns it. A row with NaN logits gets NaN; its neighbours are not touched.
    """
    token = softmax_parts(logits_BTV)
    top_prob_BT = 1 / token.total
    surprise_BT = mean_shift(
        token
    )  # of the likeliest token's log-probability over a token drawn from p, in nats
    varentropy_BT = contract(token.exp, jnp.square(token.shift - surprise_BT[..., None])) / token.total

    visible_BNTS = attention.visible_BTS[:, None]
    count_BT = jnp.sum(attention.visible_BTS, axis=-1, dtype=jnp.int32)
    n_BT = count_BT.astype(jnp.float32)
    key = softmax_parts(attention.scores_LBNTS, visible_BNTS)
    entropy_LBNT = entropy_bits(key)
    prob_LBNTS = key.exp / key.total[..., None]
    mean_LBTS = jnp.mean(prob_LBNTS, axis=2)
    deviation_LBNT = total(jnp.abs(prob_LBNTS - mean_LBTS[:, :, None]))
    strength_LBNT = total(jnp.where(visible_BNTS, jnp.abs(attention.scores_LBNTS), 0))

    return Metrics(
        logits_entropy=entropy_bits(token),
        logits_varentropy=varentropy_BT / math.log(2) ** 2,
        attn_entropy=jnp.mean(entropy_LBNT, axis=(0, 2)),
        attn_varentropy=jnp.mean(jnp.var(entropy_LBNT, axis=2), axis=0),
        agreement=jnp.mean(deviation_LBNT, axis=(0, 2)) / n_BT,
        interaction_strength=jnp.mean(strength_LBNT, axis=(0, 2)) / n_BT,
        attn_entropy_normalized=jnp.minimum(
            jnp.mean(entropy_LBNT, axis=(0, 2)) / jnp.log2(jnp.maximum(n_BT, 2)), 1
        ),
        head_agreement=jnp.mean(head_agreement(mean_LBTS, entropy_LBNT), axis=0),
        top_prob=top_prob_BT,
        margin=top_prob_BT * jnp.abs(jnp.expm1(second_shift(token))),
        previous_token_attention=previous_token_attention(mean_LBTS, attention, count_BT),
        self_certainty=self_certainty(logits_BTV, token),
    )


class SoftmaxParts(NamedTuple):
    """softmax(x) = exp / total and log softmax(x) = shift - log total, over the last axis, not yet put together."""

    shift: Array  # x - max x, in nats, at most 0; 0 where exp is 0
    exp: Array  # e^shift; 0 for what is not visible
    total: Array  # sum of exp, without the last axis


def softmax_parts(x: Array, visible: Array | None = None) -> SoftmaxParts:
    """The softmax of x in parts, over the visible entries if told which."""
    masked = x if visible is None else jnp.where(visible, x, -jnp.inf)
    shift = masked - jnp.max(masked, axis=-1, keepdims=True)
    exp = jnp.exp(shift)
    return SoftmaxParts(jnp.where(exp == 0, 0, shift), exp, total(exp))


def mean_shift(parts: SoftmaxParts) -> Array:
    """Σ p·shift, at most 0."""
    return contract(parts.exp, parts.shift) / parts.total


def entropy_bits(parts: SoftmaxParts) -> Array:
    """-Σ p log2 p over the last axis, in bits; 0·log 0 = 0. Neither term is below 0, so nothing cancels."""
    return (jnp.log(parts.total) - mean_shift(parts)) / math.log(2)


def self_certainty(logits: Array, parts: SoftmaxParts) -> Array:
    """KL of the softmax of these logits, given in parts as well, from the uniform distribution, in nats.

    -mean ln p = ln total - mean shift, with the shift of every entry: that of the parts is 0 where exp underflows. The
    vocabulary's size divides inside the logarithm, so that equal logits give exactly 0.
    """
    n = logits.shape[-1]
    shift = logits - jnp.max(logits, axis=-1, keepdims=True)
    return jnp.maximum(jnp.log(parts.total / n) - total(shift) / n, 0)


def second_shift(parts: SoftmaxParts) -> Array:
    """The shift of the second largest entry; 0 if it ties with the largest. Two passes, where sorting takes many."""
    below = jnp.max(jnp.where(parts.shift < 0, parts.shift, -jnp.inf), axis=-1)
    ties = total(jnp.where((parts.shift == 0) & (parts.exp > 0), 1.0, 0.0))
    return jnp.where(ties > 1, 0, below)


def contract(a: Array, b: Array) -> Array:
    """Σ a·b over the last axis in full float32.

    Written as a product of vectors because XLA's CPU backend adds up a plain `sum` one number after the other: over a
    vocabulary the product is five times as fast.
    """
    return jnp.einsum("...i,...i->...", a, b, precision=jax.lax.Precision.HIGHEST)


def total(a: Array) -> Array:
    """Σ a over the last axis."""
    return contract(a, jnp.ones_like(a))


def previous_token_attention(mean_LBTS: Array, attention: Attention, count_BT: Array) -> Array:
    """[B, T]: mean over layers and heads of a on the key at position n - 2; 0 where there is none.

    mean_LBTS: over heads. A sum with one term, not a gather: for the sake of that one number a gather makes XLA's TPU
    backend lay out all probabilities with the heads innermost, padded to 128.
    """
    before_BTS = (attention.position_BS[:, None] == count_BT[..., None] - 2) & attention.visible_BTS
    return jnp.mean(total(jnp.where(before_BTS, mean_LBTS, 0)), axis=0)


def head_agreement(mean_LBTS: Array, entropy_LBNT: Array) -> Array:
    """[L, B, T] in [0, 1]: 1 - JSD / log2 N with JSD = entropy of the heads' mean - mean of the heads' entropies."""
    n_heads = entropy_LBNT.shape[2]
    if n_heads == 1:
        return jnp.ones_like(entropy_LBNT[:, :, 0])
    mixed_LBT = -contract(mean_LBTS, jnp.log2(jnp.where(mean_LBTS > 0, mean_LBTS, 1.0)))
    divergence_LBT = mixed_LBT - jnp.mean(entropy_LBNT, axis=2)
    return jnp.clip(1 - divergence_LBT / math.log2(n_heads), 0.0, 1.0)
