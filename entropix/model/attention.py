"""Attention: what new tokens take from the values of the keys that they see.

There are two ways to the same numbers. `attention_with_scores` computes every score at once and returns them all: the
attention metrics are made of them. `blockwise_attention` is for a pass whose scores nobody asks for, the reading of a
prompt. It never holds more of them than those of a block of queries with a block of keys, which stay in the fast memory
of a core, and leaves out the blocks of the cache that no row has filled yet.

Keys and values come in pairs: `past`, the k_BKHS and v_BKSH of each part of the cache, and `newest`, k_BKHR and v_BKRH
of the recent tokens. A pair without the axis B is the same for all rows: k_KHS and v_KSH. Keys are counted through all
pairs, hence visible_BTS. Letters are those of `transformer`.
"""

import math
import operator
from collections.abc import Sequence
from functools import partial, reduce
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.model.kv_cache import LayerKV

QUERIES, KEYS = 64, 512  # of a block


class PartialSoftmax(NamedTuple):
    """Attention over some of the keys, in float32: (m, l, o) of online softmax (Milakov & Gimelshein 2018)."""

    max_BKGT: Array  # the largest score; the lowest float for a query that sees none of the keys
    sum_BKGT: Array  # of exp(score - max)
    output_BKGTH: Array  # the values, weighted by exp(score - max)


def attention_with_scores(
    q_BKGTH: Array, past: Sequence[LayerKV], newest: LayerKV, visible_BTS: Array
) -> tuple[Array, Array]:
    """(output_BKGTH, score_BKGTS): the values, weighed by a softmax over the visible keys; and all scores.

    Scores are q·k/√H in float32, unmasked.
    """
    keys, values = zip(*past, newest, strict=True)
    score_BKGTS = jnp.concatenate([_scores(q_BKGTH, k) for k in keys], axis=-1)
    prob_BKGTS = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], score_BKGTS, -jnp.inf), axis=-1)
    output_BKGTH = reduce(operator.add, map(_weighted_values, _split(prob_BKGTS, keys), values))
    return output_BKGTH.astype(q_BKGTH.dtype), score_BKGTS


def blockwise_attention(
    q_BKGTH: Array, past: Sequence[LayerKV], newest: LayerKV, visible_BTS: Array, filled: Sequence[Array]
) -> Array:
    """output_BKGTH as of `attention_with_scores`, from blocks of keys one after the other (Milakov & Gimelshein 2018,
    arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682).

    filled: how many slots of each pair of the past are in use by any row; those behind them are not looked at.
    """
    n_queries = q_BKGTH.shape[3]
    height = _block(n_queries, QUERIES)

    def of_queries(start: Array) -> Array:
        """[B, K, G, height, H] of the block of queries from this one on."""
        q_BKGtH = jax.lax.dynamic_slice_in_dim(q_BKGTH, start, height, axis=3)
        visible_BtS = jax.lax.dynamic_slice_in_dim(visible_BTS, start, height, axis=1)
        *of_past, of_newest = _split(visible_BtS, [k for k, _ in (*past, newest)])
        found = _partial_softmax(q_BKGtH, newest, of_newest)
        for kv, seen_BtS, count in zip(past, of_past, filled, strict=True):
            found = _over_blocks(found, q_BKGtH, kv, seen_BtS, count)
        return (found.output_BKGTH / found.sum_BKGT[..., None]).astype(q_BKGTH.dtype)

    output_NBKGtH = jax.lax.map(of_queries, jnp.arange(0, n_queries, height, dtype=jnp.int32))
    return jnp.moveaxis(output_NBKGtH, 0, 3).reshape(q_BKGTH.shape)


def _over_blocks(
    found: PartialSoftmax, q_BKGTH: Array, kv: LayerKV, visible_BTS: Array, count: Array
) -> PartialSoftmax:
    """What was found, and over the blocks of these keys, of which the first `count` are in use."""
    width = _block(visible_BTS.shape[-1], KEYS)

    def with_block(i: Array, found: PartialSoftmax) -> PartialSoftmax:
        block = partial(jax.lax.dynamic_slice_in_dim, start_index=i * width, slice_size=width)
        part = block(kv[0], axis=-1), block(kv[1], axis=-2)
        return _merge(found, _partial_softmax(q_BKGTH, part, block(visible_BTS, axis=2)))

    return jax.lax.fori_loop(0, -(-count // width), with_block, found) if width > 0 else found


def key_blocks(capacity: int) -> int:
    """How many blocks of keys `blockwise_attention` makes of a cache of so many slots."""
    return capacity // _block(capacity, KEYS)


def query_blocks(n_new: int) -> int:
    """How many blocks of queries it makes of so many new tokens."""
    return n_new // _block(n_new, QUERIES)


def _scores(q_BKGTH: Array, k_BKHS: Array) -> Array:
    """q·k/√H in float32."""
    product = _product("BKGTH,BKHS->BKGTS", q_BKGTH, k_BKHS)
    return product * (1 / math.sqrt(q_BKGTH.shape[-1]))


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


def _partial_softmax(q_BKGTH: Array, kv: LayerKV, visible_BTS: Array) -> PartialSoftmax:
    """Attention over these keys alone."""
    k_BKHS, v_BKSH = kv
    lowest = jnp.finfo(jnp.float32).min
    score_BKGTS = jnp.where(visible_BTS[:, None, None], _scores(q_BKGTH, k_BKHS), -jnp.inf)
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
