"""The tensors of a checkpoint folder: which there must be, which there are, and where they lie."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from entropix.checkpoint.weight_files import beside, check_file
from entropix.config import ModelConfig
from entropix.files import read_json
from entropix.paths import what_is_there

EMBED, UNEMBED, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_MAX_HEADER = 2**23  # bytes; 50 times what a model of 405 billion parameters has
_MAX_FAULTS = 20  # that one error lists
_PIECE_BYTES = 2**23  # of a file that a thread maps into memory at a time
# In folders of models that also read images (Gemma 3): what names of the text model begin with, and those of the rest.
_TEXT_MODEL, _IMAGES = "language_model.", ("vision_tower.", "multi_modal_projector.")
_DERIVED = ".rotary_emb.inv_freq"  # a buffer in old checkpoints; it follows from the config


Tensor = TypeVar("Tensor")

# As safetensors spells them. Nothing else is a plain floating-point weight.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def tensor_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a folder of this architecture holds. Matrices are [out, in]."""
    D, F, V, H = cfg.dim, cfg.ffn_dim, cfg.vocab_size, cfg.head_dim
    N, K = cfg.n_heads, cfg.n_kv_heads
    norms = norm_names(cfg)
    layer: dict[str, tuple[int, ...]] = {
        f"{norms['attn_norm_D']}.weight": (D,),
        "self_attn.q_proj.weight": (N * H, D),
        "self_attn.k_proj.weight": (K * H, D),
        "self_attn.v_proj.weight": (K * H, D),
        "self_attn.o_proj.weight": (D, N * H),
        f"{norms['ffn_norm_D']}.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    layer |= {f"{name}.weight": (D,) for name in norms.values()}
    if cfg.qkv_bias:
        layer |= {
            f"self_attn.{name}_proj.bias": (heads * H,) for name, heads in zip("qkv", (N, K, K), strict=True)
        }
    if cfg.qk_norm != "none":
        whole = cfg.qk_norm == "width"
        layer |= {
            "self_attn.q_norm.weight": (N * H if whole else H,),
            "self_attn.k_norm.weight": (K * H if whole else H,),
        }
    layers = {f"model.layers.{i}.{part}": shape for i in range(cfg.n_layers) for part, shape in layer.items()}
    unembed = {} if cfg.tied_embeddings else {UNEMBED: (V, D)}
    return {EMBED: (V, D), **layers, FINAL_NORM: (D,), **unembed}


def norm_names(cfg: ModelConfig) -> dict[str, str]:
    """What a layer's norms are called, by their fields of `LayerWeights`: those of attention, of feed-forward.

    The name of the one before the feed-forward layer is that of the one after attention, where there are not both: it
    stands between them.
    """
    attn_output, ffn_output = "post_attention_layernorm", "post_feedforward_layernorm"
    if cfg.norm_around:
        before = {"attn_norm_D": "input_layernorm", "ffn_norm_D": "pre_feedforward_layernorm"}
        return {**before, "attn_output_norm_D": attn_output, "ffn_output_norm_D": ffn_output}
    if cfg.norm_after:
        return {"attn_norm_D": attn_output, "ffn_norm_D": ffn_output}
    return {"attn_norm_D": "input_layernorm", "ffn_norm_D": attn_output}


class StoredTensor(NamedTuple):
    """Where a tensor lies; its dtype must be one of `DTYPES` for all that follows."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def rows_at_a_time(self) -> int:
        """How many rows are worth mapping into memory at once."""
        return max(1, _PIECE_BYTES * self.shape[0] // self.nbytes)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """These rows, by default all, mapped into memory without copying."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        offset = self.offset + start * self.nbytes // self.shape[0]
        return np.memmap(self.file, DTYPES[self.dtype], "r", offset, (stop - start, *self.shape[1:]))


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name -> place of every tensor in the folder's safetensors files. Reads only headers.

    Raises a ValueError that names the file when one is missing, empty, truncated or corrupt.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _safetensors_files(folder):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise ValueError(f"tensor {name} is both in {tensors[name].file} and in {file}")
            tensors[name] = tensor
    return tensors


def _safetensors_files(folder: Path) -> list[Path]:
    """model.safetensors; or what the index names; or whatever there is."""
    if (single := folder / "model.safetensors").exists():
        return [single]
    if (index := folder / "model.safetensors.index.json").exists():
        check_file(index)
        places = read_json(index).get("weight_map")
        if (
            not isinstance(places, Mapping)
            or not places
            or not all(isinstance(name, str) for name in places.values())
        ):
            raise ValueError(f"{index}: expected an object 'weight_map' from tensor names to file names")
        return [_indexed(index, name) for name in sorted(set(places.values()))]
    files = sorted(folder.glob("*.safetensors"))
    if not files or (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder}: {what_is_there([file.name for file in folder.iterdir()], folder)}")
    return files


def _indexed(index: Path, name: str) -> Path:
    file = beside(index, name)
    if not file.exists():
        raise ValueError(f"{file}: no such file, but the index names it; download the folder again")
    return file


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Places of one file's tensors, after the safetensors library has checked the header and the file's
    length.

    The layout: 8 bytes of header length (little endian), the header as JSON, the data.
    """
    size = check_file(file)
    damaged = f"{file}: empty, truncated or no safetensors file"
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError(
                    f"{damaged} (a header of {length} bytes in a file of {size}); download it again"
                )
            with safe_open(file, framework="numpy"):
                header = json.loads(stream.read(length))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{damaged} ({error}); download it again") from None
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def check(folder: Path, cfg: ModelConfig) -> dict[str, StoredTensor]:
    """The places of the folder's tensors, which are exactly those that `cfg` needs. Reads only headers.

    With tied embeddings there may be an unembedding all the same; `load` requires it to equal the embedding.
    Raises one ValueError that lists every tensor that is missing, unexpected, misshapen or of a wrong dtype.
    """
    stored = {name: t for name, t in stored_tensors(folder).items() if not name.endswith(_DERIVED)}
    stored = _divided(of_text_model(stored), cfg)
    if cfg.n_layers > len(stored):  # and so too many to list what is missing
        raise ValueError(
            f"{folder}: config.json implies {cfg.n_layers} layers, but there are only {len(stored)} tensors"
        )
    shapes = tensor_shapes(cfg)
    known = {UNEMBED: shapes[EMBED], **shapes}
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
        raise ValueError(f"{folder}: the tensors do not fit config.json{listed(faults)}")
    return stored


def of_text_model(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors or, of a model that also reads images, those of its text model, named as if these were all."""
    if not any(name.startswith(_TEXT_MODEL) for name in stored):
        return stored
    return {
        name.removeprefix(_TEXT_MODEL): tensor
        for name, tensor in stored.items()
        if not name.startswith(_IMAGES)
    }


def _divided(stored: dict[str, StoredTensor], cfg: ModelConfig) -> dict[str, StoredTensor]:
    """The same tensors, of which those that hold several matrices, one below the other, are these matrices (Phi-3)."""
    N, K, F = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim, cfg.ffn_dim
    fused = {
        "self_attn.qkv_proj.weight": {
            f"self_attn.{one}_proj.weight": n for one, n in (("q", N), ("k", K), ("v", K))
        },
        "mlp.gate_up_proj.weight": {"mlp.gate_proj.weight": F, "mlp.up_proj.weight": F},
    }
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        end = next((end for end in fused if name.endswith(f".{end}")), None)
        twice = end is not None and any(name.removesuffix(end) + part in stored for part in fused[end])
        if (
            end is None
            or twice
            or tensor.shape[:1] != (sum(fused[end].values()),)
            or tensor.dtype not in DTYPES
        ):
            found[name] = tensor
            continue
        offset = tensor.offset
        for part, n_rows in fused[end].items():
            row = tensor._replace(shape=(n_rows, *tensor.shape[1:]), offset=offset)
            found[name.removesuffix(end) + part] = row
            offset += row.nbytes
    return found


def check_tied(folder: Path, cfg: ModelConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Raises a ValueError for an unembedding that contradicts `tied_embeddings`."""
    if not cfg.tied_embeddings or UNEMBED not in stored:
        return
    a, b = stored[UNEMBED], stored[EMBED]
    step = a.rows_at_a_time
    if not all(np.array_equal(a.read(i, i + step), b.read(i, i + step)) for i in range(0, a.shape[0], step)):
        raise ValueError(
            f"{folder}: config.json says tie_word_embeddings, but {UNEMBED} differs from {EMBED}"
        )


def listed(faults: Sequence[str]) -> str:
    """The end of an error that lists what is wrong, one a line, of many only the first."""
    lines = [*faults[:_MAX_FAULTS]]
    if len(faults) > _MAX_FAULTS:
        lines.append(f"and {len(faults) - _MAX_FAULTS} more")
    return "".join(f"\n  {line}" for line in lines)
