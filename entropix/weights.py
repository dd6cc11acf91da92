"""The parameters of a model as a pytree: their shapes, random ones, and those of a checkpoint folder.

Matrices are `[out, in]`, as checkpoints store them: nothing is transposed on loading, and CPU products of a few rows
are up to a quarter faster so than with `[in, out]`. Queries, keys and values are one matrix, and so are gate and
up-projection. Queries and keys are in Hugging Face's rotary layout: the two members of a
rotated pair are H/2 apart.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from entropix.checkpoint import (
    DTYPES,
    EMBED,
    FINAL_NORM,
    UNEMBED,
    StoredTensor,
    stored_tensors,
    tensor_shapes,
)
from entropix.config import ModelConfig

_ALIGNMENT = 64  # bytes; an array so aligned becomes a CPU device array without a copy
_DERIVED = ".rotary_emb.inv_freq"  # a buffer in old checkpoints; it follows from the config


@flax.struct.dataclass
class LayerWeights:
    """One transformer layer. Norms are float32, matrices have the configured dtype."""

    attn_norm_D: jax.Array
    qkv: jax.Array  # [(N + 2K)·H, D]: the rows of the queries, then of the keys, then of the values
    attn_out: jax.Array  # [D, N·H]
    ffn_norm_D: jax.Array
    gate_up: jax.Array  # [2F, D]: the rows of the gate, then of the up-projection
    down: jax.Array  # [D, F]


@flax.struct.dataclass
class Weights:
    """All parameters of a model."""

    embed_VD: jax.Array
    layers: tuple[LayerWeights, ...]
    norm_D: jax.Array
    unembed_VD: jax.Array | None  # None when tied: the embedding


def abstract(cfg: ModelConfig, dtype: DTypeLike) -> Weights:
    """The pytree as `jax.ShapeDtypeStruct`s: the single source of its shapes and dtypes."""

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32 if len(shape) == 1 else jnp.dtype(dtype))

    D, F, V, H = cfg.dim, cfg.ffn_dim, cfg.vocab_size, cfg.head_dim
    N, K = cfg.n_heads, cfg.n_kv_heads
    layer = LayerWeights(
        attn_norm_D=leaf(D),
        qkv=leaf((N + 2 * K) * H, D),
        attn_out=leaf(D, N * H),
        ffn_norm_D=leaf(D),
        gate_up=leaf(2 * F, D),
        down=leaf(D, F),
    )
    return Weights(
        embed_VD=leaf(V, D),
        layers=(layer,) * cfg.n_layers,
        norm_D=leaf(D),
        unembed_VD=None if cfg.tied_embeddings else leaf(V, D),
    )


def init(key: jax.Array, cfg: ModelConfig, dtype: DTypeLike) -> Weights:
    """Random weights that keep activations of order one: norms are 1, entries of `[out, in]` have variance 1/in.

    So does the embedding, with 1/D: tied, it is the unembedding too.
    """
    shapes = abstract(cfg, dtype)
    leaves, structure = jax.tree.flatten(shapes)

    def draw(key: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) == 1:
            return jnp.ones(leaf.shape, leaf.dtype)
        return (jax.random.normal(key, leaf.shape, jnp.float32) * leaf.shape[1] ** -0.5).astype(leaf.dtype)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [draw(*pair) for pair in zip(keys, leaves, strict=True)])


def load(folder: Path, cfg: ModelConfig, dtype: DTypeLike) -> Weights:
    """The weights in a checkpoint folder, on the default device.

    Files are memory-mapped and converted layer by layer, so that there is never a second copy of the model.
    Raises what `check` raises, before anything is loaded; and a ValueError that names a tensor with NaN or
    infinite values, or that an unembedding contradicts `tied_embeddings`.
    """
    stored = check(folder, cfg)
    target = jnp.dtype(dtype)

    def vector(name: str) -> jax.Array:
        return jnp.asarray(_read(stored[name], name, np.dtype(np.float32)))

    def matrix(*names: str) -> jax.Array:
        return _stacked([_read(stored[name], name, target) for name in names])

    def layer(i: int) -> LayerWeights:
        def name(part: str) -> str:
            return f"model.layers.{i}.{part}.weight"

        return LayerWeights(
            attn_norm_D=vector(name("input_layernorm")),
            qkv=matrix(name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj")),
            attn_out=matrix(name("self_attn.o_proj")),
            ffn_norm_D=vector(name("post_attention_layernorm")),
            gate_up=matrix(name("mlp.gate_proj"), name("mlp.up_proj")),
            down=matrix(name("mlp.down_proj")),
        )

    embed_VD = _read(stored[EMBED], EMBED, target)
    repeated = cfg.tied_embeddings and UNEMBED in stored
    if repeated and not np.array_equal(stored[UNEMBED].read(), stored[EMBED].read()):
        raise ValueError(
            f"{folder}: config.json says tie_word_embeddings, but {UNEMBED} differs from {EMBED}"
        )
    with ThreadPoolExecutor() as pool:  # numpy copies and checks without the GIL
        layers = tuple(pool.map(layer, range(cfg.n_layers)))
    return Weights(
        embed_VD=jnp.asarray(embed_VD),
        layers=layers,
        norm_D=vector(FINAL_NORM),
        unembed_VD=None if cfg.tied_embeddings else matrix(UNEMBED),
    )


def check(folder: Path, cfg: ModelConfig) -> dict[str, StoredTensor]:
    """The places of the folder's tensors, which are exactly those that `cfg` needs. Reads only headers.

    With tied embeddings there may be an unembedding all the same; `load` requires it to equal the embedding.
    Raises one ValueError that lists every tensor that is missing, unexpected, misshapen or of a wrong dtype.
    """
    shapes = tensor_shapes(cfg)
    known = {UNEMBED: shapes[EMBED], **shapes}
    stored = {name: t for name, t in stored_tensors(folder).items() if not name.endswith(_DERIVED)}
    faults = [f"missing: {name} {list(shape)}" for name, shape in shapes.items() if name not in stored]
    for name, tensor in stored.items():
        if name not in known:
            faults.append(f"unexpected: {name} {list(tensor.shape)}")
        elif tensor.shape != known[name]:
            faults.append(
                f"wrong shape: {name} is {list(tensor.shape)}, config.json implies {list(known[name])}"
            )
        elif tensor.dtype not in DTYPES:
            faults.append(f"wrong dtype: {name} is {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    if faults:
        raise ValueError(f"{folder}: the tensors do not fit config.json\n  " + "\n  ".join(faults))
    return stored


def _read(tensor: StoredTensor, name: str, dtype: np.dtype) -> np.ndarray:
    """The values in `dtype`, all finite."""
    with np.errstate(over="ignore"):  # what overflows float16 is reported here, by name
        values = tensor.read().astype(dtype, copy=False)
    if not np.isfinite(values).all():
        raise ValueError(f"{tensor.file}: {name} has NaN or infinite values as {dtype.name}")
    return values


def _stacked(parts: Sequence[np.ndarray]) -> jax.Array:
    """[out, in] matrices -> one [sum of outs, in] on the device."""
    shape, dtype = (sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    fused = buffer[start : start + nbytes].view(dtype).reshape(shape)
    np.concatenate(parts, out=fused)
    return jax.device_put(fused, may_alias=True)
