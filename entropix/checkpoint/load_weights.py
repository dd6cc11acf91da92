"""The weights of a checkpoint folder, array by array, in pieces, each on the devices where it belongs."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from entropix import sharding
from entropix.checkpoint.adapter import AdaptedTensor, adapted
from entropix.checkpoint.tensors import (
    EMBED,
    FINAL_NORM,
    UNEMBED,
    StoredTensor,
    check,
    check_tied,
    norm_names,
)
from entropix.config import ModelConfig
from entropix.model.weights import Int8Matrix, LayerWeights, Weights, abstract

Block = tuple[slice, ...]  # a part of an array, one slice an axis


Read = Callable[[Block], np.ndarray]
Stored = Mapping[str, StoredTensor | AdaptedTensor]


_INT8_VALUES = 2**24  # of a matrix that are float32 while they are made int8
_ALIGNMENT = 64  # bytes; an array so aligned becomes a CPU device array without a copy


def load(
    folder: Path,
    cfg: ModelConfig,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    int8: bool = False,
    adapter: Path | None = None,
) -> Weights:
    """The weights in a checkpoint folder, on the default device or, as `sharding` says, on those of a mesh.

    On a mesh with more devices along `model` than `cfg` has key/value heads, these are repeated: what comes back is
    for `sharding.widened(cfg, mesh)`.

    Each process reads just what its own devices hold, array by array, in pieces from memory-mapped files. Each of its
    threads needs memory for a part of one array at a time, and on the CPU that part is the device's own. int8: whether
    matrices become `Int8Matrix`; of each row the largest entry is 127. adapter: a folder whose LoRA adapter is merged
    into what is read, in float32.

    Raises what `check` and `adapted` raise, before anything is loaded; and a ValueError that names a tensor with NaN or
    infinite values, or that an unembedding contradicts `tied_embeddings`.
    """
    stored = check(folder, cfg)
    check_tied(folder, cfg, stored)
    merged: Stored = stored if adapter is None else adapted(folder, cfg, stored, adapter)
    shapes = abstract(sharding.widened(cfg, mesh), dtype, sharding.parts(cfg, mesh), int8)
    leaves, structure = jax.tree.flatten(shapes)
    places = [None] * len(leaves) if mesh is None else jax.tree.leaves(sharding.lay_out(shapes, mesh))
    readers = jax.tree.leaves(_readers(merged, cfg, shapes))
    with ThreadPoolExecutor() as pool:  # numpy copies and checks without the GIL
        return jax.tree.unflatten(structure, pool.map(_put, leaves, places, readers))


def _put(leaf: jax.ShapeDtypeStruct, place: Sharding | None, read: Read) -> jax.Array:
    """The array at its place, of which this process reads what its devices hold; what several hold only once.

    Every part has left for its devices before the next is read. Without a place, the array is on the default device.
    """
    if place is None:
        return jax.block_until_ready(
            jax.device_put(read(tuple(slice(0, size) for size in leaf.shape)), may_alias=True)
        )
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in place.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index or (), leaf.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    parts: list[jax.Array] = []
    for bounds, devices in holders.items():
        block = read(tuple(slice(*axis) for axis in bounds))
        parts += jax.block_until_ready([jax.device_put(block, device, may_alias=True) for device in devices])
    return jax.make_array_from_single_device_arrays(leaf.shape, place, parts)


def _readers(stored: Stored, cfg: ModelConfig, shapes: Weights) -> Weights:
    """In place of each array of these shapes a `Read`, the function that reads a part of it in the array's dtype."""
    kept: np.dtype = shapes.embed_VD.dtype
    int8 = isinstance(shapes.layers[0].qkv, Int8Matrix)
    dtype = np.dtype(np.float32) if int8 else kept  # of matrices before they are made int8
    n_kv_heads, slots, H, _ = shapes.layers[0].qkv.shape
    group, repeats = slots - 2, n_kv_heads // cfg.n_kv_heads
    width = shapes.layers[0].gate_up.shape[2]
    whole = slice(None)

    def vector(name: str) -> Any:
        return lambda block: _read(stored[name], name, np.dtype(np.float32), block)

    def matrix(name: str, dtype: np.dtype = dtype) -> Any:
        return lambda block: _read(stored[name], name, dtype, block)

    def by_head(name: str) -> Any:
        def read(block: Block) -> np.ndarray:
            rows, heads, _ = block
            flat = _read(stored[name], name, dtype, (rows, slice(heads.start * H, heads.stop * H)))
            return flat.reshape(len(flat), -1, H)

        return read

    def qkv(*names: str) -> Any:
        tail = stored[names[0]].shape[1:]  # none of a bias

        def read(block: Block) -> np.ndarray:
            heads = range(block[0].start, block[0].stop)
            fused = _empty((len(heads), slots, H, *tail), dtype)
            for name, first, n in zip(names, (0, group, group + 1), (group, 1, 1), strict=True):
                for i, head in enumerate(heads):
                    at = head if n == group and first == 0 else head // repeats
                    out = fused[i, first : first + n].reshape(n * H, *tail)
                    rows = slice(at * n * H, (at + 1) * n * H)
                    _copy(stored[name], name, (rows, *(whole for _ in tail)), out)
            return fused

        return read

    def qk_norm(name: str, shape: tuple[int, ...], times: int) -> Any:
        """The norm of each head, or that of all: then each head's part is wanted so many times in a row."""
        if cfg.qk_norm == "head":
            return vector(name)

        def read(block: Block) -> np.ndarray:
            rows = stored[name].shape[0]
            heads = _read(stored[name], name, np.dtype(np.float32), (slice(0, rows),)).reshape(-1, H)
            return heads.repeat(times, axis=0).reshape(shape)[block]

        return read

    def gate_up(*names: str) -> Any:
        def read(block: Block) -> np.ndarray:
            parts = range(block[0].start, block[0].stop)
            fused = _empty((len(parts), len(names), width, cfg.dim), dtype)
            for i, part in enumerate(parts):
                for name, out in zip(names, fused[i], strict=True):
                    _copy(stored[name], name, (slice(part * width, (part + 1) * width), whole), out)
            return fused

        return read

    def layer(i: int) -> Any:
        def name(part: str, kind: str = "weight") -> str:
            return f"model.layers.{i}.{part}.{kind}"

        three = [f"self_attn.{part}_proj" for part in "qkv"]
        normed = cfg.qk_norm != "none"
        return LayerWeights(
            qkv=qkv(*map(name, three)),
            attn_out=by_head(name("self_attn.o_proj")),
            gate_up=gate_up(name("mlp.gate_proj"), name("mlp.up_proj")),
            down=matrix(name("mlp.down_proj")),
            qkv_bias=qkv(*(name(part, "bias") for part in three)) if cfg.qkv_bias else None,
            q_norm=qk_norm(name("self_attn.q_norm"), (n_kv_heads, group, H), 1) if normed else None,
            k_norm=qk_norm(name("self_attn.k_norm"), (n_kv_heads, H), repeats) if normed else None,
            **{field: vector(name(norm)) for field, norm in norm_names(cfg).items()},
        )

    readers = Weights(
        embed_VD=matrix(EMBED, kept),
        layers=tuple(layer(i) for i in range(cfg.n_layers)),
        norm_D=vector(FINAL_NORM),
        unembed_VD=None if cfg.tied_embeddings else matrix(UNEMBED),
    )
    return jax.tree.map(_in_int8, shapes, readers, is_leaf=_is_int8) if int8 else readers


def _is_int8(node: Any) -> bool:
    return isinstance(node, Int8Matrix)


def _in_int8(shapes: Any, read: Read) -> Any:
    """The readers of a matrix in int8, if these shapes are of one, from that of the matrix in float32."""
    if not _is_int8(shapes):
        return read
    n_outputs, inputs = len(shapes.scale.shape), shapes.shape[len(shapes.scale.shape) :]
    step = max(1, _INT8_VALUES // math.prod(shapes.shape[1:]))

    def over_rows(outputs: Block, shape: tuple[int, ...], dtype: DTypeLike, make: Any) -> np.ndarray:
        """What `make` makes of whole rows and their scales, some rows at a time."""
        out = _empty(shape, np.dtype(dtype))
        first = outputs[0]
        for start in range(first.start, first.stop, step):
            rows = slice(start, min(start + step, first.stop))
            weight = read((rows, *outputs[1:], *(slice(0, n) for n in inputs)))
            largest = np.abs(weight).max(axis=tuple(range(n_outputs, weight.ndim)))
            scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
            out[rows.start - first.start : rows.stop - first.start] = make(weight, scale)
        return out

    def value(block: Block) -> np.ndarray:
        def rounded(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
            wanted = weight[(slice(None),) * n_outputs + block[n_outputs:]]
            return np.rint(wanted / scale[(...,) + (None,) * len(inputs)])

        return over_rows(block[:n_outputs], tuple(s.stop - s.start for s in block), np.int8, rounded)

    def scales(block: Block) -> np.ndarray:
        shape = tuple(s.stop - s.start for s in block)
        return over_rows(block, shape, np.float32, lambda weight, scale: scale)

    return Int8Matrix(value, scales)  # type: ignore[arg-type]


def _read(tensor: StoredTensor | AdaptedTensor, name: str, dtype: np.dtype, block: Block) -> np.ndarray:
    """A part of a stored tensor, in memory that a CPU device can take over."""
    out = _empty(tuple(axis.stop - axis.start for axis in block), dtype)
    _copy(tensor, name, block, out)
    return out


def _copy(tensor: StoredTensor | AdaptedTensor, name: str, block: Block, out: np.ndarray) -> None:
    """Fills `out` with a part of a stored tensor, piece by piece; all values must be finite in its dtype."""
    rows, *columns = block
    step = tensor.rows_at_a_time
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        piece = out[start - rows.start : stop - rows.start]
        with np.errstate(over="ignore"):  # what overflows float16 is reported here, by name
            piece[...] = tensor.read(start, stop)[(slice(None), *columns)]
        if not np.isfinite(piece).all():
            raise ValueError(f"{tensor.file}: {name} has NaN or infinite values as {out.dtype.name}")


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory for an array, aligned."""
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)
