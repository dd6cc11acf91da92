"""Keys and values of the tokens so far: where they lie, and how they get there.

The newest tokens are in a short write buffer, `RecentKV`, which a decode step writes. All others are in the `KVCache`,
which it only *reads*: `commit` moves a full buffer there. A decode loop that carries only the buffer leaves the large
cache untouched for many steps, so no compiler has a reason to copy it, and rows of different lengths need no padding:
slot j of a row's cache always holds the j-th of the tokens that are there, and recent slot j the j-th after those.

Rows whose texts begin alike, such as several paths of one prompt, may hold that beginning once: the `SharedPrefix` of a
cache. Keys and values are always in the order prefix, cache, recent.

Letters in names are those of `transformer`; S is a slot of the cache or of the prefix, R one of the recent.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import ModelConfig
from entropix.sharding import DATA, MODEL, constrain

NO_PATH = -1

LayerKV = tuple[Array, Array]  # keys and values of one layer


class SharedPrefix(NamedTuple):
    """Keys and values of a text that rows begin with, one array a layer; slot j is position j, and row b's text begins
    with the first `length_B[b]` of its tokens."""

    k_LKHS: tuple[Array, ...]
    v_LKSH: tuple[Array, ...]
    length_B: Array  # int32

    @property
    def capacity(self) -> int:
        return self.k_LKHS[0].shape[-1]


class KVCache(NamedTuple):
    """Keys and values of the committed tokens, one array a layer; slots at `length_B` and beyond are 0.

    Slot j of row b is position `shared_B[b] + j`.
    """

    k_LBKHS: tuple[Array, ...]
    v_LBKSH: tuple[Array, ...]
    length_B: Array  # int32: filled slots
    prefix: SharedPrefix | None = None

    @property
    def capacity(self) -> int:
        return self.k_LBKHS[0].shape[3]

    @property
    def shared_B(self) -> Array:
        """How many tokens of each row are in the prefix."""
        return self.prefix.length_B if self.prefix else jnp.zeros_like(self.length_B)

    @property
    def end_B(self) -> Array:
        """How many tokens each row has: the position of the first that is not here."""
        return self.prefix.length_B + self.length_B if self.prefix else self.length_B

    @property
    def n_slots(self) -> int:
        """Of each row, those that it shares included: as many as a token has scores, without those of recent ones."""
        return self.capacity + (self.prefix.capacity if self.prefix else 0)

    def layers(self) -> Iterator[tuple[LayerKV, ...]]:
        """Keys and values of each layer: those of the prefix, if there is one, and the rows' own."""
        own = zip(self.k_LBKHS, self.v_LBKSH, strict=True)
        if not self.prefix:
            return ((pair,) for pair in own)
        return zip(zip(self.prefix.k_LKHS, self.prefix.v_LKSH, strict=True), own, strict=True)

    def max_lengths(self) -> tuple[Array, ...]:
        """For each pair of `layers`, how many of its slots any row uses."""
        lengths = (self.prefix.length_B, self.length_B) if self.prefix else (self.length_B,)
        return tuple(map(jnp.max, lengths))


class RecentKV(NamedTuple):
    """Keys and values of the newest tokens. Slot j of row b is position `end_B[b] + j` of the cache's, and `used_B[b]`
    are filled."""

    k_LBKHR: tuple[Array, ...]
    v_LBKRH: tuple[Array, ...]
    used_B: Array  # int32

    @property
    def size(self) -> int:
        return self.k_LBKHR[0].shape[3]


def empty_cache(cfg: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> KVCache:
    """A cache of `capacity` slots a row, all empty."""

    def empty(*shape: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((batch, cfg.n_kv_heads, *shape), dtype) for _ in range(cfg.n_layers))

    k, v = empty(cfg.head_dim, capacity), empty(capacity, cfg.head_dim)
    return KVCache(k, v, jnp.zeros(batch, jnp.int32))


def empty_recent(cfg: ModelConfig, batch: int, size: int, dtype: jnp.dtype) -> RecentKV:
    """A write buffer with room for `size` tokens."""
    empty = empty_cache(cfg, batch, size, dtype)
    return RecentKV(empty.k_LBKHS, empty.v_LBKSH, empty.length_B)


def lay_out(tree: Any, row_axis: int | None = None) -> Any:
    """The same tree on a mesh: keys and values divided by rows and heads, all other arrays whole on every device.

    row_axis: where the rows of those others are, which are divided too then. So they stay within a program.
    """
    rows = () if row_axis is None else (*(None,) * row_axis, DATA)

    def keys_and_values(node: Any) -> bool:
        return isinstance(node, KVCache | SharedPrefix | RecentKV)

    def divided(node: Any) -> Any:
        if not keys_and_values(node):
            return constrain(node, *rows)
        k, v, count_B, *prefix = node
        axes = (MODEL,) if isinstance(node, SharedPrefix) else (DATA, MODEL)
        k, v = (tuple(constrain(x, *axes) for x in arrays) for arrays in (k, v))
        return type(node)(k, v, constrain(count_B, *rows), *lay_out(prefix, row_axis))

    return jax.tree.map(divided, tree, is_leaf=keys_and_values)


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with room for `capacity` tokens a row."""
    extra = capacity - cache.capacity
    assert extra >= 0, (capacity, cache.capacity)
    k = tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, extra))) for k in cache.k_LBKHS)
    v = tuple(jnp.pad(v, ((0, 0), (0, 0), (0, extra), (0, 0))) for v in cache.v_LBKSH)
    return cache._replace(k_LBKHS=k, v_LBKSH=v)


@jax.named_scope("commit")
def commit(cache: KVCache, recent: RecentKV, count_B: Array) -> KVCache:
    """The cache with the first `count_B` recent tokens of each row appended; what follows them becomes 0.

    Every row needs `length + recent.size <= capacity`, or the write would be shifted onto live slots.
    """
    write_k, write_v = (
        jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=slot_axis)) for slot_axis in (2, 1)
    )
    recent_k, recent_v = clear_after(recent.k_LBKHR, recent.v_LBKRH, count_B)
    k = tuple(write_k(old, new, cache.length_B) for old, new in zip(cache.k_LBKHS, recent_k, strict=True))
    v = tuple(write_v(old, new, cache.length_B) for old, new in zip(cache.v_LBKSH, recent_v, strict=True))
    return cache._replace(k_LBKHS=k, v_LBKSH=v, length_B=cache.length_B + count_B)


def truncate(cache: KVCache, length_B: Array) -> KVCache:
    """The cache of the first `length_B` tokens of each row, which are all there."""
    shared_B = jnp.minimum(cache.shared_B, length_B)
    own_B = length_B - shared_B
    prefix = cache.prefix and cache.prefix._replace(length_B=shared_B)
    return KVCache(*clear_after(cache.k_LBKHS, cache.v_LBKSH, own_B), own_B, prefix)


def share_row(cache: KVCache, row: Array, n_rows: int) -> KVCache:
    """A cache of `n_rows` rows, all with the tokens of this one, which are held once. They have no slots of their own.

    The cache has no prefix yet.
    """
    assert not cache.prefix
    k, v = (tuple(x[row] for x in arrays) for arrays in (cache.k_LBKHS, cache.v_LBKSH))
    prefix = SharedPrefix(k, v, jnp.full(n_rows, cache.length_B[row]))

    def empty(like: tuple[Array, ...], axis: int) -> tuple[Array, ...]:
        none = (jax.lax.slice_in_dim(x, 0, 0, axis=axis) for x in like)
        return tuple(jnp.broadcast_to(x, (n_rows, *x.shape)) for x in none)

    return KVCache(empty(k, 2), empty(v, 1), jnp.zeros(n_rows, jnp.int32), prefix)


def gather_rows(tree: Any, row_B: Array) -> Any:
    """Copies of these rows of every array, whose first axis is the row; a row may come several times. What rows share
    stays as it is."""

    def taken(node: Any) -> Any:
        return node._replace(length_B=node.length_B[row_B]) if isinstance(node, SharedPrefix) else node[row_B]

    return jax.tree.map(taken, tree, is_leaf=lambda node: isinstance(node, SharedPrefix))


def put_rows(tree: Any, new: Any, row_K: Array) -> Any:
    """The same arrays, whose first axis is the row, with those of `new` as these rows; one may come several times with
    the same in it. A cache of fewer slots fills the first ones. What rows share stays as it is, and new rows that begin
    otherwise have nothing of it."""

    def put(node: Any, new: Any) -> Any:
        if isinstance(node, SharedPrefix):
            return node._replace(length_B=node.length_B.at[row_K].set(new.length_B))
        if isinstance(node, KVCache):
            new = grow(new, node.capacity)
            if node.prefix and not new.prefix:
                new = new._replace(prefix=node.prefix._replace(length_B=jnp.zeros_like(new.length_B)))
            return KVCache(*(put_rows(*pair, row_K) for pair in zip(node, new, strict=True)))
        return node.at[row_K].set(new)

    return jax.tree.map(put, tree, new, is_leaf=lambda node: isinstance(node, KVCache | SharedPrefix))


def empty_on_prefix(cache: KVCache, n_rows: int) -> KVCache:
    """A cache of `n_rows` rows without slots of their own that hold the whole prefix of this one."""
    assert cache.prefix is not None
    none = share_row(cache._replace(prefix=None), jnp.zeros((), jnp.int32), n_rows)
    return none._replace(prefix=cache.prefix._replace(length_B=jnp.full(n_rows, jnp.max(cache.shared_B))))


def narrow(cache: KVCache, capacity: int) -> KVCache:
    """The first `capacity` slots of each row; the others are empty."""
    k = tuple(k[..., :capacity] for k in cache.k_LBKHS)
    v = tuple(v[:, :, :capacity] for v in cache.v_LBKSH)
    return cache._replace(k_LBKHS=k, v_LBKSH=v)


def mask_unused(recent: RecentKV) -> RecentKV:
    """The buffer without what lies behind its `used_B` tokens: drafts that were wrong, or another row's padding."""
    return RecentKV(*clear_after(recent.k_LBKHR, recent.v_LBKRH, recent.used_B), recent.used_B)


def is_finite(cache: KVCache) -> Array:
    """Whether all keys and values are, a single bool."""
    pairs = (pair for layer in cache.layers() for pair in layer)
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for pair in pairs for x in pair]))


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


def write_slots(buffer: Array, new: Array, start_B: Array, axis: int) -> Array:
    """The buffer with `new` written at slots `start_B[b], start_B[b] + 1, …` of row b; what would lie outside is lost.
    Where `new` fills the buffer, the caller promises that it starts at 0.

    For a few new slots, a choice at every slot: rows write in different places, and a scatter would take them in turn.
    """
    if new.shape == buffer.shape:
        return new
    slot = jax.lax.broadcasted_iota(
        jnp.int32, (1,) * axis + (buffer.shape[axis],) + (1,) * (buffer.ndim - axis - 1), axis
    )
    start = start_B.reshape(-1, *(1,) * (buffer.ndim - 1))
    for t in range(new.shape[axis]):
        buffer = jnp.where(slot == start + t, jax.lax.slice_in_dim(new, t, t + 1, axis=axis), buffer)
    return buffer


def widen(recent: RecentKV, n_slots: int) -> RecentKV:
    """The buffer with so many more slots behind the others."""
    k = tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, n_slots))) for k in recent.k_LBKHR)
    v = tuple(jnp.pad(v, ((0, 0), (0, 0), (0, n_slots), (0, 0))) for v in recent.v_LBKRH)
    return RecentKV(k, v, recent.used_B)


def accept_path(recent: RecentKV, path_kv: RecentKV, path_B: Array, n_paths: int) -> RecentKV:
    """The buffer with the keys and values of one path of each row, laid out by `attention_mask.tree_mask`, behind its
    `used_B` tokens.

    `used_B` stays: how many of them are wanted is the caller's to say. A row whose path is `NO_PATH` stays as it is:
    what lies ahead of a row is not seen, but 0 times a NaN there would still be NaN.
    """
    start_B = jnp.where(path_B == NO_PATH, recent.size, recent.used_B)  # outside, where it is lost

    def chosen(slots: Array, axis: int) -> Array:
        """[B, K, H, D] or [B, K, D, H] from all slots behind those that the paths share."""
        new = jax.lax.slice_in_dim(slots, recent.size, slots.shape[axis], axis=axis)
        shape = (*new.shape[:axis], -1, n_paths, *new.shape[axis + 1 :])
        index = jnp.maximum(path_B, 0).reshape(-1, *(1,) * (len(shape) - 1))
        return jnp.take_along_axis(new.reshape(shape), index, axis=axis + 1).squeeze(axis + 1)

    pairs_k = zip(recent.k_LBKHR, path_kv.k_LBKHR, strict=True)
    pairs_v = zip(recent.v_LBKRH, path_kv.v_LBKRH, strict=True)
    return RecentKV(
        tuple(write_slots(old, chosen(new, 3), start_B, axis=3) for old, new in pairs_k),
        tuple(write_slots(old, chosen(new, 2), start_B, axis=2) for old, new in pairs_v),
        recent.used_B,
    )
