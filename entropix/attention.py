"""Attention: what new tokens take from the values of the keys that they see.

There are two ways to the same numbers. `scored` computes every score at once and returns them all: the attention
metrics are made of them. `blocked` is for a pass whose scores nobody asks for, the reading of a prompt. It never holds
more of them than those of a block of queries with a block of keys, which stay in the fast memory of a core, and leaves
out the blocks of the cache that no row has filled yet.

Keys and values come as pairs: `past`, k_BKHS and v_BKSH of the cache, and `newest`, k_BKHR and v_BKRH of the tail. Keys
are counted through both, hence visible_BTS. Letters are those of `model`.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

Pair = tuple[Array, Array]

QUERIES, KEYS = 64, 512  # of a block


def scored(q_BKGTH: Array, past: Pair, newest: Pair, visible_BTS: Array) -> tuple[Array, Array]:
    """(mix_BKGTH, score_BKGTS): the values, weighed by a softmax over the visible keys; and all scores.

    Scores are q·k/√H in float32, unmasked.
    """
    (k_BKHS, v_BKSH), (k_BKHR, v_BKRH) = past, newest
    score_BKGTS = jnp.concatenate([_scores(q_BKGTH, k_BKHS), _scores(q_BKGTH, k_BKHR)], axis=-1)
    prob_BKGTS = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], score_BKGTS, -jnp.inf), axis=-1)
    prob_BKGTS = prob_BKGTS.astype(v_BKSH.dtype)
    capacity = v_BKSH.shape[2]
    mix_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", prob_BKGTS[..., :capacity], v_BKSH)
    mix_BKGTH += jnp.einsum("BKGTR,BKRH->BKGTH", prob_BKGTS[..., capacity:], v_BKRH)
    return mix_BKGTH, score_BKGTS


def blocked(q_BKGTH: Array, past: Pair, newest: Pair, visible_BTS: Array, filled: Array) -> Array:
    """mix_BKGTH as of `scored`, from blocks of keys one after the other (Milakov & Gimelshein 2018, arXiv:1805.02867;
    Rabe & Staats 2021, arXiv:2112.05682).

    filled: how many slots of the cache have been filled in any row; those behind them are not looked at.
    """
    n_queries, capacity = q_BKGTH.shape[3], past[0].shape[-1]
    height = _block(n_queries, QUERIES)
    width = _block(capacity, KEYS)

    def rows(start: Array) -> Array:
        """[B, K, G, height, H] of the queries from this one on."""
        q_BKGtH = jax.lax.dynamic_slice_in_dim(q_BKGTH, start, height, axis=3)
        visible_BtS = jax.lax.dynamic_slice_in_dim(visible_BTS, start, height, axis=1)

        def of_cache(i: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            keys = partial(jax.lax.dynamic_slice_in_dim, start_index=i * width, slice_size=width)
            k_BKHs, v_BKsH = keys(past[0], axis=3), keys(past[1], axis=2)
            return _merge(so_far, _part(q_BKGtH, k_BKHs, v_BKsH, keys(visible_BtS, axis=2)))

        found = _part(q_BKGtH, *newest, visible_BtS[..., capacity:])
        if capacity > 0:
            found = jax.lax.fori_loop(0, -(-filled // width), of_cache, found)
        _, total_BKGt, mix_BKGtH = found
        return (mix_BKGtH / total_BKGt[..., None]).astype(q_BKGTH.dtype)

    mix_NBKGtH = jax.lax.map(rows, jnp.arange(0, n_queries, height, dtype=jnp.int32))
    return jnp.moveaxis(mix_NBKGtH, 0, 3).reshape(q_BKGTH.shape)


def key_blocks(capacity: int) -> int:
    """How many blocks of keys `blocked` makes of a cache of so many slots."""
    return capacity // _block(capacity, KEYS)


def query_blocks(n_new: int) -> int:
    """How many blocks of queries it makes of so many new tokens."""
    return n_new // _block(n_new, QUERIES)


def _scores(q_BKGTH: Array, k_BKHS: Array) -> Array:
    product = jnp.einsum("BKGTH,BKHS->BKGTS", q_BKGTH, k_BKHS, preferred_element_type=jnp.float32)
    return product * (1 / math.sqrt(q_BKGTH.shape[-1]))


def _part(q_BKGTH: Array, k_BKHS: Array, v_BKSH: Array, visible_BTS: Array) -> tuple[Array, Array, Array]:
    """Over some keys, in float32: (peak_BKGT, the largest score; total_BKGT, the sum of exp(score - peak);
    mix_BKGTH, the values weighed by these). A query that sees none of the keys has the lowest peak there is."""
    lowest = jnp.finfo(jnp.float32).min
    score_BKGTS = jnp.where(visible_BTS[:, None, None], _scores(q_BKGTH, k_BKHS), -jnp.inf)
    peak_BKGT = jnp.max(score_BKGTS, axis=-1, initial=lowest)
    exp_BKGTS = jnp.exp(score_BKGTS - peak_BKGT[..., None])
    mix_BKGTH = jnp.einsum(
        "BKGTS,BKSH->BKGTH", exp_BKGTS.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32
    )
    return peak_BKGT, jnp.sum(exp_BKGTS, axis=-1), mix_BKGTH


def _merge(a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """What `_part` finds over the keys of both."""
    peak_BKGT = jnp.maximum(a[0], b[0])
    weight_a, weight_b = jnp.exp(a[0] - peak_BKGT), jnp.exp(b[0] - peak_BKGT)
    return (
        peak_BKGT,
        a[1] * weight_a + b[1] * weight_b,
        a[2] * weight_a[..., None] + b[2] * weight_b[..., None],
    )


def _block(size: int, wanted: int) -> int:
    """The wanted size of a block if it divides the axis, else the whole axis."""
    return wanted if size % wanted == 0 and size > 0 else size
