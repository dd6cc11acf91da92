"""Attention: what new tokens take from the values of the keys that they see.

There are three ways to the same numbers. `attention_with_scores` computes every score at once and returns them all: a
step's attention metrics are made of them. `blockwise_attention` is for a pass whose scores nobody asks for, the reading
of a prompt. It never holds more of them than those of a block of queries with a block of keys, which stay in the fast
memory of a core, and leaves out the blocks of the cache that no row has filled yet. `measured_attention` is for a long
text whose metrics are wanted, but not its scores: it holds those of a block of queries with all keys.

Keys and values come in pairs: `past`, the k_BKHS and v_BKSH of each part of the cache, and `newest`, k_BKHR and v_BKRH
of the recent tokens. A pair without the axis B is the same for all rows: k_KHS and v_KSH. Keys are counted through all
pairs, hence visible_BTS. cap: of all scores, see `numerics.softcap`; 0 for none. Letters are those of `transformer`; in
blocks, t counts the queries of one, s its keys, n the blocks of queries.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from entropix import metrics, numerics
from entropix.model.kv_cache import LayerKV

Carry = TypeVar("Carry")
QUERIES, KEYS = 64, 512  # of a block


class PartialSoftmax(NamedTuple):
    """Attention over some of the keys, in float32: (m, l, o) of online softmax (Milakov & Gimelshein 2018)."""

    max_BKGT: Array  # the largest score; the lowest float for a query that sees none of the keys
    sum_BKGT: Array  # of exp(score - max)
    output_BKGTH: Array  # the values, weighted by exp(score - max)


def attention_with_scores(
    q_BKGTH: Array, past: Sequence[LayerKV], newest: LayerKV, visible_BTS: Array, cap: float = 0.0
) -> tuple[Array, Array]:
    """(output_BKGTH, score_BKGTS): the values, weighed by a softmax over the visible keys; and all scores.

    Scores are q·k/√H in float32, capped where there is a cap, unmasked.
    """
    keys, values = zip(*past, newest, strict=True)
    score_BKGTS = jnp.concatenate([_scores(q_BKGTH, k, cap) for k in keys], axis=-1)
    prob_BKGTS = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], score_BKGTS, -jnp.inf), axis=-1)
    output_BKGTH = reduce(operator.add, map(_weighted_values, _split(prob_BKGTS, keys), values))
    return output_BKGTH.astype(q_BKGTH.dtype), score_BKGTS


def blockwise_attention(
    q_BKGTH: Array,
    past: Sequence[LayerKV],
    newest: LayerKV,
    visible_BTS: Array,
    filled: Sequence[Array],
    cap: float = 0.0,
) -> Array:
    """output_BKGTH as of `attention_with_scores`, from blocks of keys one after the other (Milakov & Gimelshein 2018,
    arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682).

    filled: how many slots of each pair of the past are in use by any row; those behind them are not looked at.
    """

    def of_queries(q_BKGtH: Array, visible_BtS: Array) -> Array:
        *of_past, of_newest = _split(visible_BtS, [k for k, _ in (*past, newest)])
        softmax = _partial_softmax(_visible_scores(q_BKGtH, newest[0], of_newest, cap), newest[1])
        for kv, seen_BtS, count in zip(past, of_past, filled, strict=True):
            softmax = _add_pair(softmax, q_BKGtH, kv, seen_BtS, count, cap)
        return _output(softmax, q_BKGTH.dtype)

    output_BnKGtH = _over_queries(of_queries, (q_BKGTH, 3), (visible_BTS, 1))
    return jnp.moveaxis(output_BnKGtH, 1, 3).reshape(q_BKGTH.shape)


def measured_attention(
    q_BKGTH: Array,
    past: Sequence[LayerKV],
    newest: LayerKV,
    visible_BTS: Array,
    filled: Sequence[Array],
    positions: tuple[Array, Array | None],
    cap: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """(output_BKGTH as of `blockwise_attention`, `metrics.attention_metrics` of this one layer, each [B, T]).

    A block of queries goes twice over the keys: first for attention itself, which keeps the block's scores; then, each
    query's largest score and sum being known, for the sums that metrics are made of. positions: position_BS of the keys
    and query_BT, as of `metrics.AttentionScores`.
    """
    keys = [k for k, _ in (*past, newest)]
    counts = [*filled, jnp.asarray(newest[0].shape[-1], jnp.int32)]
    count_BT = metrics.count_visible(visible_BTS)
    previous_BTS = metrics.previous_key(visible_BTS, *positions, count_BT)

    def of_queries(q_BKGtH: Array, visible_BtS: Array, previous_BtS: Array, count_Bt: Array) -> Any:
        softmax, scores = _no_keys(q_BKGtH), []
        for kv, seen_BtS, count in zip((*past, newest), _split(visible_BtS, keys), counts, strict=True):
            softmax, score_BKGtS = _add_scored_pair(softmax, q_BKGtH, kv, seen_BtS, count, cap)
            scores.append(score_BKGtS)
        parts = zip(scores, _split(visible_BtS, keys), _split(previous_BtS, keys), counts, strict=True)
        sums = reduce(partial(jax.tree.map, operator.add), (_key_sums(softmax, *part) for part in parts))
        measured = metrics.attention_metrics(sums, _by_head(softmax.sum_BKGT), count_Bt)
        return _output(softmax, q_BKGTH.dtype), measured

    arrays = (q_BKGTH, 3), (visible_BTS, 1), (previous_BTS, 1), (count_BT, 1)
    output_BnKGtH, measured = _over_queries(of_queries, *arrays)
    whole = jax.tree.map(lambda leaf_Bnt: leaf_Bnt.reshape(count_BT.shape), measured)
    return jnp.moveaxis(output_BnKGtH, 1, 3).reshape(q_BKGTH.shape), whole


def _over_queries(compute: Callable[..., Any], *arrays: tuple[Array, int]) -> Any:
    """What `compute` makes of each block of queries; the blocks are the second axis. arrays: with their axis T."""
    n_queries = arrays[0][0].shape[arrays[0][1]]
    height = _block(n_queries, QUERIES)

    def of_block(start: Array) -> Any:
        return compute(*(jax.lax.dynamic_slice_in_dim(x, start, height, axis) for x, axis in arrays))

    found = jax.lax.map(of_block, jnp.arange(0, n_queries, height, dtype=jnp.int32))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)


class _Keys(NamedTuple):
    """A block of keys."""

    start: Array
    width: int

    def of(self, x: Array, axis: int = -1) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.width, axis)


def _over_blocks(add: Callable[[_Keys, Carry], Carry], carry: Carry, size: int, count: Array) -> Carry:
    """The carry after `add` of every block of these `size` keys, of which the first `count` are in use."""
    width = _block(size, KEYS)
    if width == 0:
        return carry
    return jax.lax.fori_loop(
        0, -(-count // width), lambda i, carry: add(_Keys(i * width, width), carry), carry
    )


def _add_block(
    softmax: PartialSoftmax, q_BKGTH: Array, kv: LayerKV, visible_BTS: Array, block: _Keys, cap: float
) -> tuple[PartialSoftmax, Array]:
    """(the partial softmax with this block of keys merged in, the block's scores)."""
    score_BKGTs = _visible_scores(q_BKGTH, block.of(kv[0]), block.of(visible_BTS), cap)
    return _merge(softmax, _partial_softmax(score_BKGTs, block.of(kv[1], axis=-2))), score_BKGTs


def _add_pair(
    softmax: PartialSoftmax, q_BKGTH: Array, kv: LayerKV, visible_BTS: Array, count: Array, cap: float
) -> PartialSoftmax:
    """The partial softmax with a pair of keys and values merged in."""

    def add(block: _Keys, softmax: PartialSoftmax) -> PartialSoftmax:
        return _add_block(softmax, q_BKGTH, kv, visible_BTS, block, cap)[0]

    return _over_blocks(add, softmax, visible_BTS.shape[-1], count)


def _add_scored_pair(
    softmax: PartialSoftmax, q_BKGTH: Array, kv: LayerKV, visible_BTS: Array, count: Array, cap: float
) -> tuple[PartialSoftmax, Array]:
    """(as of `_add_pair`, score_BKGTS: -inf where a key is not visible or not in use)."""

    def add(block: _Keys, carry: tuple[PartialSoftmax, Array]) -> tuple[PartialSoftmax, Array]:
        softmax, score_BKGTS = carry
        softmax, score_BKGTs = _add_block(softmax, q_BKGTH, kv, visible_BTS, block, cap)
        return softmax, jax.lax.dynamic_update_slice_in_dim(score_BKGTS, score_BKGTs, block.start, axis=-1)

    blank = jnp.full((*q_BKGTH.shape[:4], visible_BTS.shape[-1]), -jnp.inf, jnp.float32)
    return _over_blocks(add, (softmax, blank), visible_BTS.shape[-1], count)


def _key_sums(
    whole: PartialSoftmax, score_BKGTS: Array, visible_BTS: Array, previous_BTS: Array, count: Array
) -> metrics.KeySums:
    """The sums over these keys, of this one layer, once `whole` is the softmax over all keys."""
    max_BNT, total_BNT = _by_head(whole.max_BKGT), _by_head(whole.sum_BKGT)

    def sums(score_BKGTs: Array, visible_BTs: Array, previous_BTs: Array) -> metrics.KeySums:
        score_BNTs = _by_head(score_BKGTs)
        parts = numerics.SoftmaxParts(*numerics.shifted(score_BNTs, max_BNT), total_BNT)
        return metrics.key_sums(score_BNTs, parts, visible_BTs, previous_BTs)

    def add_block(block: _Keys, result: metrics.KeySums) -> metrics.KeySums:
        more = sums(block.of(score_BKGTS), block.of(visible_BTS), block.of(previous_BTS))
        return jax.tree.map(operator.add, result, more)

    nothing = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(sums, score_BKGTS, visible_BTS, previous_BTS),
    )
    return _over_blocks(add_block, nothing, visible_BTS.shape[-1], count)


def _by_head(x_BKG: Array) -> Array:
    """[1, B, N, ...] of [B, K, G, ...]: one layer, all its query heads."""
    return x_BKG.reshape(1, len(x_BKG), -1, *x_BKG.shape[3:])


def _output(whole: PartialSoftmax, dtype: jnp.dtype) -> Array:
    return (whole.output_BKGTH / whole.sum_BKGT[..., None]).astype(dtype)


def _no_keys(q_BKGTH: Array) -> PartialSoftmax:
    """Attention over no keys."""
    zeros_BKGTH = jnp.zeros(q_BKGTH.shape, jnp.float32)
    zeros_BKGT = zeros_BKGTH[..., 0]
    return PartialSoftmax(jnp.full_like(zeros_BKGT, jnp.finfo(jnp.float32).min), zeros_BKGT, zeros_BKGTH)


def key_blocks(capacity: int) -> int:
    """How many blocks of keys `blockwise_attention` makes of a cache of so many slots."""
    return capacity // _block(capacity, KEYS)


def query_blocks(n_new: int) -> int:
    """How many blocks of queries it makes of so many new tokens."""
    return n_new // _block(n_new, QUERIES)


def _scores(q_BKGTH: Array, k_BKHS: Array, cap: float) -> Array:
    """q·k/√H in float32, capped where there is a cap."""
    product = _product("BKGTH,BKHS->BKGTS", q_BKGTH, k_BKHS)
    score_BKGTS = product * (1 / math.sqrt(q_BKGTH.shape[-1]))
    return numerics.softcap(score_BKGTS, cap) if cap else score_BKGTS


def _weighted_values(weight_BKGTS: Array, v_BKSH: Array) -> Array:
    """The values, weighed, in their dtype, and added up in float32."""
    return _product("BKGTS,BKSH->BKGTH", weight_BKGTS.astype(v_BKSH.dtype), v_BKSH)


def _product(equation: str, x_BKGTI: Array, y_BKIJ: Array) -> Array:
    """[B, K, G, T, J] in float32. A y of all rows is read once, not once a row: their query heads become those of a
    single one (Juravsky et al. 2024, arXiv:2402.05099)."""
    product = partial(jnp.einsum, equation, preferred_element_type=jnp.float32)
    if y_BKIJ.ndim == x_BKGTI.ndim - 1:
        return product(x_BKGTI, y_BKIJ)
    batch, heads, group, n_queries, width = x_BKGTI.shape
    together = jnp.moveaxis(x_BKGTI, 0, 1).reshape(1, heads, batch * group, n_queries, width)
    apart = product(together, y_BKIJ[None]).reshape(heads, batch, group, n_queries, -1)
    return jnp.moveaxis(apart, 1, 0)


def _split(x_BTS: Array, keys: Sequence[Array]) -> list[Array]:
    """The parts of the last axis that belong to each of these arrays of keys."""
    ends = list(accumulate(k.shape[-1] for k in keys))
    return jnp.split(x_BTS, ends[:-1], axis=-1)


def _visible_scores(q_BKGTH: Array, k_BKHS: Array, visible_BTS: Array, cap: float) -> Array:
    """score_BKGTS, -inf where a key is not visible."""
    return jnp.where(visible_BTS[:, None, None], _scores(q_BKGTH, k_BKHS, cap), -jnp.inf)


def _partial_softmax(score_BKGTS: Array, v_BKSH: Array) -> PartialSoftmax:
    """Attention over these keys alone."""
    lowest = jnp.finfo(jnp.float32).min
    max_BKGT = jnp.max(score_BKGTS, axis=-1, initial=lowest)
    exp_BKGTS = jnp.exp(score_BKGTS - max_BKGT[..., None])
    return PartialSoftmax(max_BKGT, jnp.sum(exp_BKGTS, axis=-1), _weighted_values(exp_BKGTS, v_BKSH))


def _merge(a: PartialSoftmax, b: PartialSoftmax) -> PartialSoftmax:
    """Attention over the keys of both."""
    max_BKGT = jnp.maximum(a.max_BKGT, b.max_BKGT)
    weight_a, weight_b = jnp.exp(a.max_BKGT - max_BKGT), jnp.exp(b.max_BKGT - max_BKGT)
    return PartialSoftmax(
        max_BKGT,
        a.sum_BKGT * weight_a + b.sum_BKGT * weight_b,
        a.output_BKGTH * weight_a[..., None] + b.output_BKGTH * weight_b[..., None],
    )


def _block(size: int, wanted: int) -> int:
    """The wanted size of a block if it divides the axis, else the whole axis."""
    return wanted if size % wanted == 0 and size > 0 else size
