"""A Llama small enough to run hundreds of times: configs/models/toy.toml and variants, random weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropix import metrics
from entropix.checkpoint.loading import Model
from entropix.checkpoint.tokenizer import Tokenizer
from entropix.checkpoint.vocabulary.byte_level import BytePairs
from entropix.config import ModelConfig, RopeScaling
from entropix.metrics import AttentionScores, Metrics
from entropix.model import kv_cache, transformer, weights
from entropix.model.kv_cache import KVCache, RecentKV
from entropix.model.weights import Weights, fan_in
from entropix.presets import read_model

# Of the toy's four wavelengths (6 to 6,283 tokens) this leaves two alone, blends one, divides one in full.
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=1024)

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "a key head for each query head": {"n_kv_heads": 4},
    "one key head": {"n_kv_heads": 1},
    "one head, one layer": {"n_heads": 1, "n_kv_heads": 1, "n_layers": 1},
    "heads wider than the model": {"head_dim": 16},
    "untied": {"tied_embeddings": False},
    "scaled rotary frequencies": {"rope_scaling": SCALING},
}


def config(**changes: Any) -> ModelConfig:
    """The toy's architecture, with changes."""
    return dataclasses.replace(read_model("toy"), **changes)


def random_weights(cfg: ModelConfig, seed: int = 0, dtype: Any = jnp.float32) -> Weights:
    """Like `weights.init`, but with random norms, since one left out must show; and without compiling."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        if len(like.shape) == 1:
            return jnp.asarray(rng.uniform(0.5, 1.5, like.shape), like.dtype)
        values = rng.standard_normal(like.shape) * fan_in(path[-1].name, like.shape) ** -0.5
        if path[-1].name == "qkv":  # drawn as a checkpoint has them: all queries, all keys, all values
            rows = values.reshape(-1, *like.shape[2:])
            query, key, value = np.split(rows, [cfg.n_heads, cfg.n_heads + cfg.n_kv_heads])
            by_head = query.reshape(cfg.n_kv_heads, -1, *like.shape[2:])
            values = np.concatenate([by_head, key[:, None], value[:, None]], axis=1)
        return jnp.asarray(values, like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, weights.abstract(cfg, dtype))


class ByteTokenizer(Tokenizer):
    """The real class on the smallest vocabulary: 256 bytes and three special tokens."""

    def __init__(self) -> None:
        ranks = {bytes([byte]): byte for byte in range(256)}
        special = {"<|begin|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
        super().__init__(
            encoder=BytePairs(r"\s|\S", ranks).encoder("bytes"),
            texts=(*ranks, *(name.encode() for name in special)),
            special_tokens=special,
            added_tokens={},
            missing_bytes=frozenset(),
            bos_id=special["<|begin|>"],
            bos_ids=(),
        )


def model_of(stop_ids: Sequence[int] = (), seed: int = 0, **changes: Any) -> Model:
    """A whole toy model, as `loading.load` returns one; `changes` are those of its config."""
    cfg = config(**changes)
    return Model(Path("toy"), cfg, random_weights(cfg, seed), ByteTokenizer(), None, tuple(stop_ids))


def with_a_broken_token(token: int) -> Model:
    """A model whose logits are NaN wherever it sees this token."""
    model = model_of(tied_embeddings=False)
    embed_VD = model.weights.embed_VD.at[token].set(jnp.nan)
    return dataclasses.replace(model, weights=model.weights.replace(embed_VD=embed_VD))


def random_tokens(cfg: ModelConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, cfg.vocab_size, shape, np.int32)


_forward = jax.jit(transformer.forward, static_argnames="cfg")
_measure = jax.jit(metrics.measure)
commit = jax.jit(kv_cache.commit)


def forward(
    weights: Weights, tokens_BT: Any, cache: KVCache, recent: RecentKV, cfg: ModelConfig
) -> tuple[jax.Array, RecentKV, AttentionScores, Metrics]:
    """`model.forward` and the metrics of every position."""
    logits_BTV, recent, attention = _forward(weights, tokens_BT, cache, recent, cfg)
    return logits_BTV, recent, attention, _measure(logits_BTV, attention)


def read(
    weights: Weights,
    tokens_BT: np.ndarray,
    cfg: ModelConfig,
    capacity: int = 32,
    spare: int = 0,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, RecentKV, AttentionScores, Metrics]:
    """A whole text in one go, from an empty cache; `spare` recent slots stay empty."""
    batch, length = tokens_BT.shape
    cache = kv_cache.empty_cache(cfg, batch, capacity, dtype)
    return forward(weights, tokens_BT, cache, kv_cache.empty_recent(cfg, batch, length + spare, dtype), cfg)


def read_in_pieces(
    weights: Weights, tokens_BT: np.ndarray, pieces: Sequence[int], cfg: ModelConfig, capacity: int = 32
) -> tuple[jax.Array, Metrics]:
    """(logits_BTV, metrics) of the same text when it is read and committed piece by piece."""
    batch, length = tokens_BT.shape
    assert sum(pieces) == length
    cache = kv_cache.empty_cache(cfg, batch, capacity, jnp.float32)
    logits, measured, start = [], [], 0
    for size in pieces:
        recent = kv_cache.empty_recent(cfg, batch, size, jnp.float32)
        logits_BTV, recent, _, metrics_BT = forward(
            weights, tokens_BT[:, start : start + size], cache, recent, cfg
        )
        cache = commit(cache, recent, jnp.full(batch, size, jnp.int32))
        logits.append(logits_BTV)
        measured.append(metrics_BT)
        start += size
    return jnp.concatenate(logits, axis=1), jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1), *measured
    )


def of_layer(attention: AttentionScores, layer: int) -> AttentionScores:
    """What this layer alone saw."""
    visible_LBTS = attention.visible_LBTS
    return attention._replace(
        scores_LBNTS=attention.scores_LBNTS[layer : layer + 1],
        visible_BTS=attention.visible_BTS if visible_LBTS is None else visible_LBTS[layer],
        visible_LBTS=None,
    )


def visible_scores(attention: AttentionScores, row: int, query: int) -> np.ndarray:
    """scores_LNS of one query with the keys it sees, the same in all layers, ordered by their positions, which must be
    0, 1, 2, …, or with a window the last ones."""
    assert attention.visible_LBTS is None
    seen = np.asarray(attention.visible_BTS[row, query])
    position = np.asarray(attention.position_BS[row])[seen]
    last = len(position) if attention.query_BT is None else int(attention.query_BT[row, query]) + 1
    assert sorted(position) == list(range(last - len(position), last))
    return np.asarray(attention.scores_LBNTS[:, row, :, query])[..., seen][..., np.argsort(position)]
