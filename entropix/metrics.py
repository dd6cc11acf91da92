"""How sure the model is: of its next token, from the logits; of where to look, from the attention of every layer."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.numerics import (
    SoftmaxParts,
    contract,
    entropy_bits,
    mean_shift,
    second_shift,
    softmax_parts,
    total,
)


class AttentionScores(NamedTuple):
    """What a forward pass saw: the raw scores of every layer, and the keys that they are of. S counts these keys."""

    scores_LBNTS: Array
    """float32: q·k/√H of each layer and head, before masking and softmax. They are what the softmax is taken of, a
    model's own factor or soft-cap included."""
    visible_BTS: Array
    """bool: keys at or before the query's own position; never an empty, padded or future slot. Where layers see
    different keys, those that any of them sees."""
    position_BS: Array
    """int32: the position of each key in its row's text; meaningful where visible."""
    query_BT: Array | None = None
    """int32: the position of each query, of a model with a sliding window. None where a query sees all keys up to its
    own, whose number tells."""
    visible_LBTS: Array | None = None
    """bool: the keys that are seen in each layer, of a model with a window in some layers alone. None where all layers
    see what `visible_BTS` says."""

    @property
    def visible(self) -> Array:
        """Who sees whom, with the axes of the scores, to go with these: [B, 1, T, S], or [L, B, 1, T, S] where layers
        see different keys."""
        return self.visible_BTS[:, None] if self.visible_LBTS is None else self.visible_LBTS[:, :, None]


class Metrics(NamedTuple):
    """Uncertainty at each position, float32 `[B, T]` (or `[B]` for one step). Rows never mix.

    Below, p is the model's distribution at temperature 1 over its whole vocabulary, and a_lhj the attention that
    head h of layer l pays to key j: the softmax of the raw scores s_lhj over the n visible keys. Entropies are in
    bits, varentropies in bits²; 0·log 0 = 0. Where layers see different keys, n is a layer's own: each metric of
    attention is computed for each layer, then averaged.
    """

    logits_entropy: Array
    """H = -Σ p log2 p, in [0, log2 V] bits (Shannon 1948)."""
    logits_varentropy: Array
    """Σ p (log2 p + H)²: the variance of a token's surprisal, in bits² (Kontoyiannis & Verdú 2013)."""
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

    U is uniform over all tokens that there are: rows of a padded vocabulary, whose logits are -inf, are none. Every
    token weighs the same, the least likely too: a logit of -1e30 makes it 1e30/V. It is always that of the model's own
    logits, before any filter.
    """


def measure(logits_BTV: Array, attention: AttentionScores) -> Metrics:
    """All metrics at every query position, each `[B, T]`.

    Shapes: logits `[B, T, V]` float32 with at least two tokens in the vocabulary; attention as `transformer.forward`
    returns it. A row with NaN logits gets NaN; its neighbours are not touched.
    """
    if attention.visible_LBTS is None:
        parts = attention_parts(attention)
        return Metrics(**token_metrics(logits_BTV), **attention_metrics(*parts))

    def of_layer(score_BNTS: Array, visible_BTS: Array) -> dict[str, Array]:
        alone = AttentionScores(score_BNTS[None], visible_BTS, attention.position_BS, attention.query_BT)
        return attention_metrics(*attention_parts(alone))

    layers = jax.vmap(of_layer)(attention.scores_LBNTS, attention.visible_LBTS)
    return Metrics(
        **token_metrics(logits_BTV), **{name: jnp.mean(of_LBT, axis=0) for name, of_LBT in layers.items()}
    )


def token_metrics(logits_BTV: Array) -> dict[str, Array]:
    """The metrics of the next token's distribution, each `[B, T]`."""
    token = softmax_parts(logits_BTV)
    top_prob_BT = 1 / token.total
    # In nats: how far the log-probability of a token drawn from p lies below the likeliest one's, on average.
    shift_BT = mean_shift(token)
    varentropy_BT = contract(token.exp, jnp.square(token.shift - shift_BT[..., None])) / token.total
    return {
        "logits_entropy": entropy_bits(token),
        "logits_varentropy": varentropy_BT / math.log(2) ** 2,
        "top_prob": top_prob_BT,
        "margin": top_prob_BT * jnp.abs(jnp.expm1(second_shift(logits_BTV))),
        "self_certainty": self_certainty(logits_BTV, token),
    }


def self_certainty(logits: Array, parts: SoftmaxParts) -> Array:
    """KL of the softmax of these logits, given in parts as well, from the uniform distribution, in nats.

    -mean ln p = ln total - mean shift, with the shift of every entry: that of the parts is 0 where exp underflows. The
    number of tokens divides inside the logarithm, so that equal logits give exactly 0. Logits of -inf are no tokens.
    """
    shift = logits - jnp.max(logits, axis=-1, keepdims=True)
    is_token = shift != -jnp.inf
    n = total(is_token.astype(jnp.float32))
    return jnp.maximum(jnp.log(parts.total / n) - total(jnp.where(is_token, shift, 0)) / n, 0)


# ----- attention: sums over keys, of all of them or of one block after the other -----------------------------


class KeySums(NamedTuple):
    """What the metrics of attention are made of: sums over the visible keys of each query, of one layer or of several.

    Those over some of the keys and those over the others add up to those over all. a is the attention of a head, ā its
    mean over the heads, s a raw score, and exp and shift are those of `numerics.SoftmaxParts`.
    """

    shift_LBNT: Array  # Σ exp·shift
    deviation_LBNT: Array  # Σ |a - ā|
    strength_LBNT: Array  # Σ |s|
    mixed_LBT: Array  # Σ ā log2 ā
    previous_LBT: Array  # ā on the key just before the query's own


def attention_parts(attention: AttentionScores) -> tuple[KeySums, Array, Array]:
    """What `attention_metrics` takes, of layers that all see the same keys."""
    count_BT = count_visible(attention.visible_BTS)
    key = softmax_parts(attention.scores_LBNTS, attention.visible)
    previous_BTS = previous_key(attention.visible_BTS, attention.position_BS, attention.query_BT, count_BT)
    sums = key_sums(attention.scores_LBNTS, key, attention.visible_BTS, previous_BTS)
    return sums, key.total, count_BT


def count_visible(visible_BTS: Array) -> Array:
    """[B, T] int32: how many keys each query sees."""
    return jnp.sum(visible_BTS, axis=-1, dtype=jnp.int32)


def previous_key(visible_BTS: Array, position_BS: Array, query_BT: Array | None, count_BT: Array) -> Array:
    """[B, T, S] bool: the key just before the query's own, which is nowhere for the first position."""
    end_BT = count_BT if query_BT is None else query_BT + 1
    return (position_BS[:, None] == end_BT[..., None] - 2) & visible_BTS


def key_sums(score_LBNTS: Array, key: SoftmaxParts, visible_BTS: Array, previous_BTS: Array) -> KeySums:
    """The sums over these keys, which may be a part of all keys; `key.total` is that of all.

    The attention on the previous key is a sum with one term, not a gather: for the sake of that one number a gather
    makes XLA's TPU backend lay out all probabilities with the heads innermost, padded to 128.
    """
    prob_LBNTS = key.exp / key.total[..., None]
    mean_LBTS = jnp.mean(prob_LBNTS, axis=-3)
    return KeySums(
        shift_LBNT=contract(key.exp, key.shift),
        deviation_LBNT=total(jnp.abs(prob_LBNTS - mean_LBTS[..., None, :, :])),
        strength_LBNT=total(jnp.where(visible_BTS[:, None], jnp.abs(score_LBNTS), 0)),
        mixed_LBT=contract(mean_LBTS, jnp.log2(jnp.where(mean_LBTS > 0, mean_LBTS, 1.0))),
        previous_LBT=total(jnp.where(previous_BTS, mean_LBTS, 0)),
    )


def attention_metrics(sums: KeySums, total_LBNT: Array, count_BT: Array) -> dict[str, Array]:
    """The metrics of attention, each `[B, T]`, of the sums over all keys of all layers.

    total_LBNT: `SoftmaxParts.total`. count_BT: how many keys each query sees.
    """
    n_BT = count_BT.astype(jnp.float32)
    entropy_LBNT = (jnp.log(total_LBNT) - sums.shift_LBNT / total_LBNT) / math.log(2)
    entropy_BT = jnp.mean(entropy_LBNT, axis=(0, 2))
    return {
        "attn_entropy": entropy_BT,
        "attn_varentropy": jnp.mean(jnp.var(entropy_LBNT, axis=2), axis=0),
        "agreement": jnp.mean(sums.deviation_LBNT, axis=(0, 2)) / n_BT,
        "interaction_strength": jnp.mean(sums.strength_LBNT, axis=(0, 2)) / n_BT,
        "attn_entropy_normalized": jnp.minimum(entropy_BT / jnp.log2(jnp.maximum(n_BT, 2)), 1),
        "head_agreement": jnp.mean(head_agreement(-sums.mixed_LBT, entropy_LBNT), axis=0),
        "previous_token_attention": jnp.mean(sums.previous_LBT, axis=0),
    }


def head_agreement(mixed_LBT: Array, entropy_LBNT: Array) -> Array:
    """[L, B, T] in [0, 1]: 1 - JSD / log2 N with JSD = entropy of the heads' mean - mean of the heads' entropies.

    mixed_LBT: the entropy of the heads' mean, in bits.
    """
    n_heads = entropy_LBNT.shape[2]
    if n_heads == 1:
        return jnp.ones_like(mixed_LBT)
    divergence_LBT = mixed_LBT - jnp.mean(entropy_LBNT, axis=2)
    return jnp.clip(1 - divergence_LBT / math.log2(n_heads), 0.0, 1.0)
