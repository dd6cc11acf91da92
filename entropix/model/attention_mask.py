"""Where new tokens stand, and which keys each of them sees: one after the other, or side by side as paths that part."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from entropix.model.kv_cache import KVCache, RecentKV


class AttentionMask(NamedTuple):
    """Where new tokens stand, what they see, and which slots of the recent keys and values they take.

    The last axis of keys is the slots of the prefix, if there is one, then the cache's, then the recent ones'.
    """

    query_BT: Array  # int32: positions of the new tokens
    slot_B: Array  # int32: recent slot of the first; the others follow
    visible_BTS: Array  # bool: keys that each may see
    position_BS: Array  # int32: position of each key (meaningful where visible)
    rope_length_B: Array | None = None  # of the text that the tokens are a part of; see `rope.rope_table`


def causal_mask(
    cache: KVCache, recent: RecentKV, n_new: int, rope_length_B: Array | None = None
) -> AttentionMask:
    """Tokens one after the other: token t stands at `cache.end_B + recent.used_B + t` and sees all up to itself.

    What is not there yet lies in every token's future.
    """
    query_BT = (cache.end_B + recent.used_B)[:, None] + jnp.arange(n_new, dtype=jnp.int32)[None, :]
    filled_BS, position_BS = _keys(cache, recent)
    visible_BTS = filled_BS[:, None, :] & (position_BS[:, None, :] <= query_BT[:, :, None])
    return AttentionMask(query_BT, recent.used_B, visible_BTS, position_BS, rope_length_B)


def within_window(mask: AttentionMask, window: int) -> AttentionMask:
    """The same, of which a query sees the last `window` positions alone, its own among them (Beltagy et al. 2020,
    arXiv:2004.05150)."""
    near_BTS = mask.position_BS[:, None, :] > mask.query_BT[:, :, None] - window
    return mask._replace(visible_BTS=mask.visible_BTS & near_BTS)


def tree_mask(cache: KVCache, recent: RecentKV, n_shared: int, n_paths: int, depth: Array) -> AttentionMask:
    """One token of each of several paths that part after the first `used_B` recent tokens.

    The first `n_shared` recent slots are for what the paths share; behind them the first tokens of all paths lie side
    by side, then their second ones, and so on. These are the ones at `depth`, counted from 0. A path sees what it
    shares and its own.
    """
    batch, n_slots = len(cache.length_B), recent.size - n_shared
    start_B = cache.end_B + recent.used_B
    n_before = cache.n_slots + n_shared
    filled_BS, position_BS = _keys(cache, recent)
    shared_BS = (filled_BS & (position_BS < start_B[:, None]))[:, :n_before]
    slot_P = jnp.arange(n_slots, dtype=jnp.int32)
    path_T = jnp.arange(n_paths, dtype=jnp.int32)
    own_TP = (slot_P[None, :] % n_paths == path_T[:, None]) & (slot_P[None, :] // n_paths <= depth)
    return AttentionMask(
        query_BT=jnp.broadcast_to((start_B + depth)[:, None], (batch, n_paths)),
        slot_B=jnp.full(batch, n_shared, jnp.int32) + depth * n_paths,
        visible_BTS=jnp.concatenate(
            [
                jnp.broadcast_to(shared_BS[:, None, :], (batch, n_paths, shared_BS.shape[1])),
                jnp.broadcast_to(own_TP[None], (batch, n_paths, n_slots)),
            ],
            axis=-1,
        ),
        position_BS=jnp.concatenate(
            [position_BS[:, :n_before], start_B[:, None] + slot_P[None, :] // n_paths], axis=1
        ),
    )


def _keys(cache: KVCache, recent: RecentKV) -> tuple[Array, Array]:
    """(filled_BS, position_BS) where every recent slot is taken as filled, one position after the other."""
    batch = len(cache.length_B)
    all_recent_B = jnp.full(batch, recent.size, jnp.int32)
    parts = [(cache.capacity, cache.shared_B, cache.length_B), (recent.size, cache.end_B, all_recent_B)]
    if cache.prefix:
        parts.insert(0, (cache.prefix.capacity, jnp.zeros(batch, jnp.int32), cache.prefix.length_B))
    filled, position = [], []
    for n_slots, start_B, count_B in parts:
        slot_S = jnp.arange(n_slots, dtype=jnp.int32)[None, :]
        filled.append(slot_S < count_B[:, None])
        position.append(start_B[:, None] + slot_S)
    return jnp.concatenate(filled, axis=1), jnp.concatenate(position, axis=1)
