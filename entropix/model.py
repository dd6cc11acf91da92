"""The Llama forward pass, written out: tokens in; logits, attention scores and new keys and values out.

Keys and values live in two places. The `KVCache` holds the committed past and is only ever *read* by `forward`; the
short `KVTail` takes the newest tokens and is written. `commit` moves a full tail into the cache. A decode loop that
carries only the tail leaves the large cache untouched for many steps, so no compiler has a reason to copy it, and
rows of different lengths need no padding: slot j of a row's cache always holds its j-th token, and slot j of its tail
the j-th after those.

Letters in names: B row, T query position, S cache slot, R tail slot, D width, N query heads, K key/value heads,
G = N/K, H head width, F feed-forward width, V vocabulary, L layer.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from entropix import attention
from entropix.config import ModelConfig
from entropix.sharding import DATA, MODEL, constrain
from entropix.weights import LayerWeights, Weights

NO_PATH = -1


class KVCache(NamedTuple):
    """Keys and values of the committed tokens, one array a layer; slots at `length_B` and beyond are 0."""

    k_LBKHS: tuple[Array, ...]
    v_LBKSH: tuple[Array, ...]
    length_B: Array  # int32

    @property
    def capacity(self) -> int:
        return self.k_LBKHS[0].shape[3]


class KVTail(NamedTuple):
    """Keys and values of the newest tokens. Slot j of row b is position `length_B[b] + j`; `used_B[b]` are filled."""

    k_LBKHR: tuple[Array, ...]
    v_LBKRH: tuple[Array, ...]
    used_B: Array  # int32

    @property
    def size(self) -> int:
        return self.k_LBKHR[0].shape[3]


class Attention(NamedTuple):
    """What the attention metrics are computed from."""

    scores_LBNTS: (
        Array  # float32, q·k/√H before masking and softmax; the last axis is the cache, then the tail
    )
    visible_BTS: (
        Array  # bool: keys at or before the query's own position; never an empty, padded or future slot
    )
    position_BS: Array  # int32: position of each key (meaningful where visible)


def empty_cache(cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> KVCache:
    """A cache of `capacity` slots a row, all empty."""

    def empty(*shape: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((batch, cfg.n_kv_heads, *shape), dtype) for _ in range(cfg.n_layers))

    k, v = empty(cfg.head_dim, capacity), empty(capacity, cfg.head_dim)
    return KVCache(k, v, jnp.zeros(batch, jnp.int32))


def empty_tail(cfg: ModelConfig, batch: int, size: int, dtype: jnp.dtype) -> KVTail:
    """A tail with room for `size` tokens."""
    k, v, _ = empty_cache(cfg, batch, size, dtype)
    return KVTail(k, v, jnp.zeros(batch, jnp.int32))


def lay_out(tree: Any, row_axis: int | None = None) -> Any:
    """The same tree on a mesh: keys and values divided by rows and heads, all other arrays whole on every device.

    row_axis: where the rows of those others are, which are divided too then. So they stay within a program.
    """
    rows = () if row_axis is None else (*(None,) * row_axis, DATA)

    def keys_and_values(node: Any) -> bool:
        return isinstance(node, KVCache | KVTail)

    def place(node: Any) -> Any:
        if not keys_and_values(node):
            return constrain(node, *rows)
        k, v, count_B = node
        k, v = (tuple(constrain(x, DATA, MODEL) for x in arrays) for arrays in (k, v))
        return type(node)(k, v, constrain(count_B, *rows))

    return jax.tree.map(place, tree, is_leaf=keys_and_values)


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with room for `capacity` tokens a row."""
    extra = capacity - cache.capacity
    assert extra >= 0, (capacity, cache.capacity)
    k = tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, extra))) for k in cache.k_LBKHS)
    v = tuple(jnp.pad(v, ((0, 0), (0, 0), (0, extra), (0, 0))) for v in cache.v_LBKSH)
    return KVCache(k, v, cache.length_B)


@jax.named_scope("commit")
def commit(cache: KVCache, tail: KVTail, count_B: Array) -> KVCache:
    """The cache with the first `count_B` tail tokens of each row appended; what follows them becomes 0.

    Every row needs `length + tail.size <= capacity`, or the write would be shifted onto live slots.
    """
    write_k, write_v = (
        jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=slot_axis)) for slot_axis in (2, 1)
    )
    tail_k, tail_v = clear_after(tail.k_LBKHR, tail.v_LBKRH, count_B)
    k = tuple(write_k(old, new, cache.length_B) for old, new in zip(cache.k_LBKHS, tail_k, strict=True))
    v = tuple(write_v(old, new, cache.length_B) for old, new in zip(cache.v_LBKSH, tail_v, strict=True))
    return KVCache(k, v, cache.length_B + count_B)


def truncate(cache: KVCache, length_B: Array) -> KVCache:
    """The cache of the first `length_B` tokens of each row, which are all there."""
    return KVCache(*clear_after(cache.k_LBKHS, cache.v_LBKSH, length_B), length_B)


def forget_unused(tail: KVTail) -> KVTail:
    """The tail without what lies behind its `used_B` tokens: drafts that were wrong, or another row's padding."""
    return KVTail(*clear_after(tail.k_LBKHR, tail.v_LBKRH, tail.used_B), tail.used_B)


def is_finite(cache: KVCache) -> Array:
    """Whether all keys and values are, a single bool."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in (*cache.k_LBKHS, *cache.v_LBKSH)]))


def clear_after(
    k_LBKHS: tuple[Array, ...], v_LBKSH: tuple[Array, ...], count_B: Array
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Keys and values with 0 in the slots from `count_B` on.

    No attention goes there, but 0 times a NaN, left behind by a text that went wrong, would still be NaN.
    """
    filled_BS = jnp.arange(v_LBKSH[0].shape[2], dtype=jnp.int32)[None, :] < count_B[:, None]
    return (
        tuple(jnp.where(filled_BS[:, None, None, :], k, 0) for k in k_LBKHS),
        tuple(jnp.where(filled_BS[:, None, :, None], v, 0) for v in v_LBKSH),
    )


class Layout(NamedTuple):
    """Where new tokens stand, what they see, and where the tail takes their keys and values.

    The last axis of keys is the cache's slots, then the tail's.
    """

    query_BT: Array  # int32: positions of the new tokens
    slot_B: Array  # int32: tail slot of the first; the others follow
    visible_BTS: Array  # bool: keys that each may see
    position_BS: Array  # int32: position of each key (meaningful where visible)


def forward(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    tail: KVTail,
    cfg: ModelConfig,
    layout: Layout | None = None,
) -> tuple[Array, KVTail, Attention]:
    """(logits_BTV float32, the tail with T more tokens, the attention scores of every layer).

    By default the tokens follow each other (`line`). One function serves decoding (T = 1), the check of a draft, the
    scoring of a text and, with `fan`, branches that are rolled forward side by side. Under `jit`, an output that the
    caller drops is never computed.
    """
    if layout is None:
        layout = line(cache, tail, tokens_BT.shape[1])
    x_BTD, tail, scores = _through_layers(weights, tokens_BT, cache, tail, cfg, layout, scored=True)
    with jax.named_scope("unembed"):
        logits_BTV = unembed(weights, rms_norm(x_BTD, weights.norm_D, cfg))
    return logits_BTV, tail, Attention(jnp.stack(scores), layout.visible_BTS, layout.position_BS)


def extend(weights: Weights, tokens_BT: Array, cache: KVCache, tail: KVTail, cfg: ModelConfig) -> KVTail:
    """The tail of `forward`, of tokens of whose logits and scores nothing is wanted: prefill."""
    layout = line(cache, tail, tokens_BT.shape[1])
    return _through_layers(weights, tokens_BT, cache, tail, cfg, layout, scored=False)[1]


def _through_layers(
    weights: Weights,
    tokens_BT: Array,
    cache: KVCache,
    tail: KVTail,
    cfg: ModelConfig,
    layout: Layout,
    scored: bool,
) -> tuple[Array, KVTail, list[Array]]:
    """(x_BTD after the last layer, the tail with the new tokens, score_BNTS of every layer if `scored`, else none)."""
    rotation = rope_table(layout.query_BT, cfg)
    filled = None if scored else jnp.max(cache.length_B)

    x_BTD = constrain(weights.embed_VD[tokens_BT], DATA)
    tail_k, tail_v, scores = [], [], []
    for layer, past, newest in zip(
        weights.layers,
        zip(cache.k_LBKHS, cache.v_LBKSH, strict=True),
        zip(tail.k_LBKHR, tail.v_LBKRH, strict=True),
        strict=True,
    ):
        x_BTD, (k_BKHR, v_BKRH), score_BNTS = block(
            layer, x_BTD, past, newest, layout.slot_B, layout.visible_BTS, rotation, filled, cfg
        )
        tail_k.append(k_BKHR)
        tail_v.append(v_BKRH)
        if score_BNTS is not None:
            scores.append(score_BNTS)
    tail = KVTail(tuple(tail_k), tuple(tail_v), tail.used_B + tokens_BT.shape[1])
    return x_BTD, tail, scores


# Traced once, not once a layer: a third of a warm start's tracing time.
@partial(jax.jit, static_argnames="cfg")
def block(
    layer: LayerWeights,
    x_BTD: Array,
    past: tuple[Array, Array],
    newest: tuple[Array, Array],
    slot_B: Array,
    visible_BTS: Array,
    rotation: tuple[Array, Array],
    filled: Array | None,
    cfg: ModelConfig,
) -> tuple[Array, tuple[Array, Array], Array | None]:
    """(x_BTD, newest, score_BNTS) after one layer, without the scores where `filled` is given.

    past: the cache's keys and values, k_BKHS and v_BKSH. newest: the tail's, k_BKHR and v_BKRH, which comes out with
    the new tokens written at `slot_B`. rotation: the table of `rope_table`. filled: how many slots of the cache are, at
    most.
    """
    k_BKHR, v_BKRH = newest
    with jax.named_scope("attention"):
        q_BKGTH, k_BKHT, v_BKTH = project(layer, rms_norm(x_BTD, layer.attn_norm_D, cfg), *rotation, cfg)
        k_BKHR = constrain(place(k_BKHR, k_BKHT, slot_B, axis=3), DATA, MODEL)
        v_BKRH = constrain(place(v_BKRH, v_BKTH, slot_B, axis=2), DATA, MODEL)
        seen_BKRH = v_BKRH
        if x_BTD.shape[1] > 1:
            x_BTD, seen_BKRH = keep_apart(x_BTD, v_BKRH, visible_BTS)
        newest = k_BKHR, seen_BKRH
        score_BNTS = None
        if filled is None:
            mix_BKGTH, score_BKGTS = attention.scored(q_BKGTH, past, newest, visible_BTS)
            score_BNTS = constrain(
                score_BKGTS.reshape(len(x_BTD), cfg.n_heads, *score_BKGTS.shape[3:]), DATA, MODEL
            )
        else:
            mix_BKGTH = attention.blocked(q_BKGTH, past, newest, visible_BTS, filled)
        x_BTD = constrain(x_BTD + join_heads(layer, mix_BKGTH), DATA)
    with jax.named_scope("feed_forward"):
        x_BTD = constrain(x_BTD + feed_forward(layer, rms_norm(x_BTD, layer.ffn_norm_D, cfg)), DATA)
    return x_BTD, (k_BKHR, v_BKRH), score_BNTS


def keep_apart(x_BTD: Array, v_BKRH: Array, visible_BTS: Array) -> tuple[Array, Array]:
    """(x_BTD, v_BKRH) with which a value that is not finite spoils the tokens that see it, and no other.

    It would spoil all of a pass, since 0 times NaN is NaN: also earlier tokens, and other paths.
    """
    broken_BR = ~jnp.all(jnp.isfinite(v_BKRH), axis=(1, 3))
    seen_BT = jnp.any(visible_BTS[..., -broken_BR.shape[1] :] & broken_BR[:, None], axis=-1)
    whole_BKRH = jnp.where(broken_BR[:, None, :, None], 0, v_BKRH)
    return jnp.where(seen_BT[..., None], jnp.nan, x_BTD), whole_BKRH


def place(buffer: Array, new: Array, start_B: Array, axis: int) -> Array:
    """The buffer with `new` written at slots `start_B[b], start_B[b] + 1, …` of row b; what would lie outside is lost.

    For a few new slots, a choice at every slot: rows write in different places, and a scatter would take them in turn.
    """
    if new.shape == buffer.shape:  # only slot 0 leaves room
        return new
    slot = jax.lax.broadcasted_iota(
        jnp.int32, (1,) * axis + (buffer.shape[axis],) + (1,) * (buffer.ndim - axis - 1), axis
    )
    start = start_B.reshape(-1, *(1,) * (buffer.ndim - 1))
    for t in range(new.shape[axis]):
        buffer = jnp.where(slot == start + t, jax.lax.slice_in_dim(new, t, t + 1, axis=axis), buffer)
    return buffer


def line(cache: KVCache, tail: KVTail, n_new: int) -> Layout:
    """Tokens one after the other: token t stands at `cache.length_B + tail.used_B + t` and sees all up to itself.

    The cache is filled up to `length_B`; the tail goes on from there, and what it does not hold yet lies in every
    token's future.
    """
    query_BT = (cache.length_B + tail.used_B)[:, None] + jnp.arange(n_new, dtype=jnp.int32)[None, :]
    filled_BS, position_BS = _keys(cache, tail)
    visible_BTS = filled_BS[:, None, :] & (position_BS[:, None, :] <= query_BT[:, :, None])
    return Layout(query_BT, tail.used_B, visible_BTS, position_BS)


def fan(cache: KVCache, tail: KVTail, stem: int, n_paths: int, depth: Array) -> Layout:
    """One token of each of several paths that part after the tail's first `used_B` tokens.

    The tail has `stem` slots for what the paths share; behind them the first tokens of all paths lie side by side, then
    their second ones, and so on. These are the ones at `depth`, counted from 0. A path sees what it shares and its own.
    """
    batch, n_slots = len(cache.length_B), tail.size - stem
    start_B = cache.length_B + tail.used_B
    filled_BS, position_BS = _keys(cache, tail)
    shared_BS = (filled_BS & (position_BS < start_B[:, None]))[:, : cache.capacity + stem]
    slot_P = jnp.arange(n_slots, dtype=jnp.int32)
    path_T = jnp.arange(n_paths, dtype=jnp.int32)
    own_TP = (slot_P[None, :] % n_paths == path_T[:, None]) & (slot_P[None, :] // n_paths <= depth)
    return Layout(
        query_BT=jnp.broadcast_to((start_B + depth)[:, None], (batch, n_paths)),
        slot_B=jnp.full(batch, stem, jnp.int32) + depth * n_paths,
        visible_BTS=jnp.concatenate(
            [
                jnp.broadcast_to(shared_BS[:, None, :], (batch, n_paths, shared_BS.shape[1])),
                jnp.broadcast_to(own_TP[None], (batch, n_paths, n_slots)),
            ],
            axis=-1,
        ),
        position_BS=jnp.concatenate(
            [position_BS[:, : cache.capacity + stem], start_B[:, None] + slot_P[None, :] // n_paths], axis=1
        ),
    )


def _keys(cache: KVCache, tail: KVTail) -> tuple[Array, Array]:
    """(filled_BS, position_BS) where every slot of the tail is taken as filled, one position after the other."""
    slot_S = jnp.arange(cache.capacity, dtype=jnp.int32)[None, :]
    slot_R = jnp.arange(tail.size, dtype=jnp.int32)[None, :]
    length_B1 = cache.length_B[:, None]
    in_cache_BS = jnp.broadcast_to(slot_S, (len(length_B1), cache.capacity))
    position_BS = jnp.concatenate([in_cache_BS, length_B1 + slot_R], axis=1)
    filled_BS = jnp.concatenate([slot_S < length_B1, jnp.ones((len(length_B1), tail.size), bool)], axis=1)
    return filled_BS, position_BS


def widen(tail: KVTail, n_slots: int) -> KVTail:
    """The tail with so many more slots behind the others."""
    k = tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, n_slots))) for k in tail.k_LBKHR)
    v = tuple(jnp.pad(v, ((0, 0), (0, 0), (0, n_slots), (0, 0))) for v in tail.v_LBKRH)
    return KVTail(k, v, tail.used_B)


def adopt(tail: KVTail, fanned: KVTail, path_B: Array, n_paths: int) -> KVTail:
    """The tail with the keys and values of one path of each row, as `fan` laid them out, behind its `used_B` tokens.

    `used_B` stays: how many of them are wanted is the caller's to say. A row whose path is `NO_PATH` stays as it is:
    what lies ahead of a row is not seen, but 0 times a NaN there would still be NaN.
    """
    start_B = jnp.where(path_B == NO_PATH, tail.size, tail.used_B)  # outside, where it is lost

    def chosen(slots: Array, axis: int) -> Array:
        """[B, K, H, D] or [B, K, D, H] from all slots behind the stem."""
        new = jax.lax.slice_in_dim(slots, tail.size, slots.shape[axis], axis=axis)
        shape = (*new.shape[:axis], -1, n_paths, *new.shape[axis + 1 :])
        index = jnp.maximum(path_B, 0).reshape(-1, *(1,) * (len(shape) - 1))
        return jnp.take_along_axis(new.reshape(shape), index, axis=axis + 1).squeeze(axis + 1)

    pairs_k = zip(tail.k_LBKHR, fanned.k_LBKHR, strict=True)
    pairs_v = zip(tail.v_LBKRH, fanned.v_LBKRH, strict=True)
    return KVTail(
        tuple(place(old, chosen(new, 3), start_B, axis=3) for old, new in pairs_k),
        tuple(place(old, chosen(new, 2), start_B, axis=2) for old, new in pairs_v),
        tail.used_B,
    )


def rms_norm(x_BTD: Array, weight_D: Array, cfg: ModelConfig) -> Array:
    """x / sqrt(mean(x²) + eps) · weight, in float32, returned in x's dtype (Zhang & Sennrich 2019)."""
    x32 = x_BTD.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + cfg.norm_eps)
    return (x32 * scale * weight_D.astype(jnp.float32)[None, None]).astype(x_BTD.dtype)


def project(
    layer: LayerWeights, x_BTD: Array, cos_BTH: Array, sin_BTH: Array, cfg: ModelConfig
) -> tuple[Array, Array, Array]:
    """(q_BKGTH, k_BKHT, v_BKTH) of the new tokens: one fused projection, then the rotary embedding on q and k."""
    group = cfg.n_heads // cfg.n_kv_heads
    qkv = linear(x_BTD, layer.qkv).reshape(*x_BTD.shape[:2], *layer.qkv.shape[:-1])
    q_BTKGH, k_BTKH, v_BTKH = qkv[:, :, :, :group], qkv[:, :, :, group], qkv[:, :, :, group + 1]
    q_BTKGH = rotate(q_BTKGH, cos_BTH[:, :, None, None], sin_BTH[:, :, None, None])
    k_BTKH = rotate(k_BTKH, cos_BTH[:, :, None], sin_BTH[:, :, None])
    return q_BTKGH.transpose(0, 2, 3, 1, 4), k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)


def join_heads(layer: LayerWeights, mix_BKGTH: Array) -> Array:
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
