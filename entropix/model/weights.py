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
class Int8Matrix:
    """A matrix of whole numbers from -127 to 127, times a scale for each output: half the bytes of bfloat16.

    It is read as often, but products are in the type of what it is multiplied with.
    """

    value: jax.Array  # int8, shaped as the matrix
    scale: jax.Array  # float32, shaped as its outputs

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


Matrix = jax.Array | Int8Matrix


@flax.struct.dataclass
class LayerWeights:
    """One transformer layer. Norms are float32, all else has the configured dtype; what a model has not is None."""

    attn_norm_D: jax.Array
    qkv: Matrix  # [K, G + 2, H, D]: of each key/value head its G query heads, its key, its value
    attn_out: Matrix  # [D, N, H]
    ffn_norm_D: jax.Array
    gate_up: Matrix  # [parts, 2, F/parts, D]: of each part the gate, then the up-projection
    down: Matrix  # [D, F]
    qkv_bias: jax.Array | None = None  # [K, G + 2, H]
    q_norm: jax.Array | None = None  # [H] for each head, [K, G, H] for all together
    k_norm: jax.Array | None = None  # [H] for each head, [K, H] for all together
    attn_output_norm_D: jax.Array | None = None  # where norms are around the layers, the one behind
    ffn_output_norm_D: jax.Array | None = None


@flax.struct.dataclass
class Weights:
    """All parameters of a model."""

    embed_VD: jax.Array
    layers: tuple[LayerWeights, ...]
    norm_D: jax.Array
    unembed_VD: Matrix | None  # None when tied: the embedding
    # Bool, False for rows of the unembedding without a token; None where all have one.
    has_token_V: jax.Array | None = None


def abstract(cfg: ModelConfig, dtype: DTypeLike, parts: int = 1, int8: bool = False) -> Weights:
    """The pytree as `jax.ShapeDtypeStruct`s: the single source of its shapes and dtypes.

    parts: into how many the feed-forward layer is divided; see `sharding.parts`. int8: whether matrices are
    `Int8Matrix`, all but the embedding, of which a step reads a row.
    """

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def matrix(name: str, *shape: int) -> Any:
        if not int8:
            return leaf(*shape)
        outputs = shape[: len(shape) - n_input_axes(name)]
        value, scale = jax.ShapeDtypeStruct(shape, jnp.int8), jax.ShapeDtypeStruct(outputs, jnp.float32)
        return Int8Matrix(value, scale)  # type: ignore[arg-type]

    def norm(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    D, F, V, H = cfg.dim, cfg.ffn_dim, cfg.vocab_size, cfg.head_dim
    N, K = cfg.n_heads, cfg.n_kv_heads
    G = N // K
    layer = LayerWeights(
        attn_norm_D=norm(D),
        qkv=matrix("qkv", K, G + 2, H, D),
        attn_out=matrix("attn_out", D, N, H),
        ffn_norm_D=norm(D),
        gate_up=matrix("gate_up", parts, 2, F // parts, D),
        down=matrix("down", D, F),
        qkv_bias=leaf(K, G + 2, H) if cfg.qkv_bias else None,
        q_norm={"none": None, "head": norm(H), "width": norm(K, G, H)}[cfg.qk_norm],
        k_norm={"none": None, "head": norm(H), "width": norm(K, H)}[cfg.qk_norm],
        attn_output_norm_D=norm(D) if cfg.norm_around else None,
        ffn_output_norm_D=norm(D) if cfg.norm_around else None,
    )
    return Weights(
        embed_VD=leaf(V, D),
        layers=(layer,) * cfg.n_layers,
        norm_D=norm(D),
        unembed_VD=None if cfg.tied_embeddings else matrix("unembed_VD", V, D),
    )


def init(key: jax.Array, cfg: ModelConfig, dtype: DTypeLike) -> Weights:
    """Random weights that keep activations of order one: norms come to 1, entries of `[out, in]` have variance 1/in.

    The embedding has variance 1/D: tied, it is the unembedding too. Biases of a head have variance 1/H.
    """
    shapes = abstract(cfg, dtype)
    keys = iter(jax.random.split(key, len(jax.tree.leaves(shapes))))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        key = next(keys)
        if "norm" in path[-1].name:
            return jnp.full(leaf.shape, 1 - cfg.norm_offset, leaf.dtype)
        scale = fan_in(path[-1].name, leaf.shape) ** -0.5
        return (jax.random.normal(key, leaf.shape, jnp.float32) * scale).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def fan_in(field: str, shape: tuple[int, ...]) -> int:
    """How many inputs one output of this field's matrix has."""
    return math.prod(shape[len(shape) - n_input_axes(field) :])


def n_input_axes(field: str) -> int:
    """How many of the last axes of this field's matrix are inputs."""
    return 2 if field == "attn_out" else 1
