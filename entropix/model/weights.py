"""The parameters of a model as a pytree: their shapes, and random ones.

`checkpoint.load_weights` reads those of a folder. Matrices are `[out, in]`, as checkpoints store them: nothing is
transposed on loading, and CPU products of a few rows are up to a quarter faster so than with `[in, out]`. What is one
product is one array: queries, keys and values, gate and up-projection. The axes along which devices divide these stand
first. Queries and keys are in Hugging Face's rotary layout: the two members of a rotated pair are H/2 apart.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from entropix.config import ModelConfig


@flax.struct.dataclass
class LayerWeights:
    """One transformer layer. Norms are float32, all else has the configured dtype; what a model has not is None."""

    attn_norm_D: jax.Array
    qkv: jax.Array  # [K, G + 2, H, D]: of each key/value head its G query heads, its key, its value
    attn_out: jax.Array  # [D, N, H]
    ffn_norm_D: jax.Array
    gate_up: jax.Array  # [parts, 2, F/parts, D]: of each part the gate, then the up-projection
    down: jax.Array  # [D, F]
    qkv_bias: jax.Array | None = None  # [K, G + 2, H]
    q_norm: jax.Array | None = None  # [H] for each head, [K, G, H] for all together
    k_norm: jax.Array | None = None  # [H] for each head, [K, H] for all together


@flax.struct.dataclass
class Weights:
    """All parameters of a model."""

    embed_VD: jax.Array
    layers: tuple[LayerWeights, ...]
    norm_D: jax.Array
    unembed_VD: jax.Array | None  # None when tied: the embedding
    # Bool, False for rows of the unembedding without a token; None where all have one.
    has_token_V: jax.Array | None = None


def abstract(cfg: ModelConfig, dtype: DTypeLike, parts: int = 1) -> Weights:
    """The pytree as `jax.ShapeDtypeStruct`s: the single source of its shapes and dtypes.

    parts: into how many the feed-forward layer is divided; see `sharding.parts`.
    """

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def norm(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    D, F, V, H = cfg.dim, cfg.ffn_dim, cfg.vocab_size, cfg.head_dim
    N, K = cfg.n_heads, cfg.n_kv_heads
    G = N // K
    layer = LayerWeights(
        attn_norm_D=norm(D),
        qkv=leaf(K, G + 2, H, D),
        attn_out=leaf(D, N, H),
        ffn_norm_D=norm(D),
        gate_up=leaf(parts, 2, F // parts, D),
        down=leaf(D, F),
        qkv_bias=leaf(K, G + 2, H) if cfg.qkv_bias else None,
        q_norm={"none": None, "head": norm(H), "width": norm(K, G, H)}[cfg.qk_norm],
        k_norm={"none": None, "head": norm(H), "width": norm(K, H)}[cfg.qk_norm],
    )
    return Weights(
        embed_VD=leaf(V, D),
        layers=(layer,) * cfg.n_layers,
        norm_D=norm(D),
        unembed_VD=None if cfg.tied_embeddings else leaf(V, D),
    )


def init(key: jax.Array, cfg: ModelConfig, dtype: DTypeLike) -> Weights:
    """Random weights that keep activations of order one: norms are 1, entries of `[out, in]` have variance 1/in.

    So does the embedding, with 1/D: tied, it is the unembedding too. Biases of a head have variance 1/H.
    """
    shapes = abstract(cfg, dtype)
    keys = iter(jax.random.split(key, len(jax.tree.leaves(shapes))))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        key = next(keys)
        if "norm" in path[-1].name:
            return jnp.ones(leaf.shape, leaf.dtype)
        scale = fan_in(path[-1].name, leaf.shape) ** -0.5
        return (jax.random.normal(key, leaf.shape, jnp.float32) * scale).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def fan_in(field: str, shape: tuple[int, ...]) -> int:
    """How many inputs one output of this field's matrix has."""
    return math.prod(shape[1:]) if field == "attn_out" else shape[-1]
