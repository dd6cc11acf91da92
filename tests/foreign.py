"""Small models in other formats, written from tensors in Hugging Face's layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folders
import gguf
import numpy as np
import toy
from gguf import GGMLQuantizationType as Kind

from entropix.checkpoint.vocabulary.byte_level import CHAR_OF_BYTE
from entropix.config import ModelConfig

Tensors = dict[str, np.ndarray]

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
TOKENS = [*(CHAR_OF_BYTE[byte] for byte in range(256)), "ab", "<|im_start|>", "<|im_end|>"]
VOCABULARY: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 257 + [3] * 2,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 257,
    "tokenizer.ggml.eos_token_id": 258,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
}

# Architectures whose queries and keys llama.cpp's converter permutes: those that it makes of `LlamaModel`.
INTERLEAVED = ("llama", "smollm3", "granite")
SCALES = {
    "embedding_multiplier": gguf.Keys.LLM.EMBEDDING_SCALE,
    "attention_multiplier": gguf.Keys.Attention.SCALE,
    "residual_multiplier": gguf.Keys.LLM.RESIDUAL_SCALE,
    "logits_divisor": gguf.Keys.LLM.LOGIT_SCALE,
}
_META_PARTS = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def interleaved(w: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a query or key matrix as Meta and llama.cpp order them, row by row.

    Within each head, row j of the first half comes to 2j and row j of the second half to 2j + 1.
    """
    out = np.empty_like(w)
    for row in range(len(w)):
        head, j = divmod(row, head_dim)
        half, pair = divmod(j, head_dim // 2)
        out[head * head_dim + 2 * pair + half] = w[row]
    return out


def rotated(name: str, array: np.ndarray, cfg: ModelConfig) -> np.ndarray:
    """A tensor in the order of Meta's rotation."""
    is_rotary = name.endswith(("q_proj.weight", "k_proj.weight"))
    return interleaved(array, cfg.head_dim) if is_rotary else array


def gguf_tensors(tensors: Tensors, cfg: ModelConfig, architecture: str = "llama") -> Tensors:
    """The tensors under the names that the gguf library has for them, queries and keys as llama.cpp keeps them."""
    [arch] = [arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(arch, cfg.n_layers)
    out = {}
    for name, array in (fused(tensors, cfg) if architecture == "phi3" else tensors).items():
        spelled = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert spelled is not None, name
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1  # as Gemma's norms compute it
        out[spelled] = rotated(name, array, cfg) if architecture in INTERLEAVED else array
    return out


def fused(tensors: Tensors, cfg: ModelConfig) -> Tensors:
    """With Phi-3's matrices of attention's inputs in one tensor, and the two of a gated layer in another."""
    out = dict(tensors)
    for i in range(cfg.n_layers):
        for whole, parts in (
            ("self_attn.qkv_proj", "self_attn.{}_proj"),
            ("mlp.gate_up_proj", "mlp.{}_proj"),
        ):
            ones = [f"model.layers.{i}.{parts.format(one)}.weight" for one in ("q", "k", "v", "gate", "up")]
            rows = [out.pop(one) for one in ones if one in out]
            out[f"model.layers.{i}.{whole}.weight"] = np.concatenate(rows)
    return out


def meta_tensors(tensors: Tensors, cfg: ModelConfig) -> Tensors:
    """The tensors under Meta's names, queries and keys interleaved."""
    ends = {
        "model.embed_tokens.weight": "tok_embeddings.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "output.weight",
    }
    out = {}
    for name, array in tensors.items():
        if name in ends:
            out[ends[name]] = array
            continue
        _, _, i, part = name.removesuffix(".weight").split(".", 3)
        out[f"layers.{i}.{_META_PARTS[part]}.weight"] = rotated(name, array, cfg)
    return out


def gguf_metadata(cfg: ModelConfig, architecture: str = "llama") -> dict[str, Any]:
    llama = {
        "llama.block_count": cfg.n_layers,
        "llama.context_length": cfg.context_length,
        "llama.embedding_length": cfg.dim,
        "llama.feed_forward_length": cfg.ffn_dim,
        "llama.attention.head_count": cfg.n_heads,
        "llama.attention.head_count_kv": cfg.n_kv_heads,
        "llama.attention.key_length": cfg.head_dim,
        "llama.attention.value_length": cfg.head_dim,
        "llama.attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "llama.rope.freq_base": cfg.rope_theta,
        "llama.rope.dimension_count": cfg.head_dim,
        "llama.vocab_size": cfg.vocab_size,
    }
    named = {key.replace("llama.", f"{architecture}."): value for key, value in llama.items()}
    if architecture == "granite":
        named |= {key.format(arch="granite"): getattr(cfg, field) for field, key in SCALES.items()}
    return named | VOCABULARY


def write_gguf(
    path: Path,
    tensors: Tensors,
    metadata: Mapping[str, Any],
    kind: Kind = Kind.F32,
    architecture: str = "llama",
    per_part: int = 0,
) -> None:
    """A GGUF file with its matrices in `kind` and its vectors in float32, as llama.cpp writes them.

    An array of uint8 is written as it is: the bytes of a tensor of `kind`. per_part: most tensors of a part of the
    file, 0 for a whole one.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=per_part)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, array in tensors.items():
        if array.dtype == np.uint8:
            writer.add_tensor(name, array, raw_dtype=kind)
        elif array.ndim == 1 or kind == Kind.F32:
            writer.add_tensor(name, array)
        elif kind == Kind.F16:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def toy_gguf(
    folder: Path, tensors: Tensors | None = None, architecture: str = "llama", **changes: Any
) -> Path:
    """The toy as model.gguf with further tensors and changed metadata (None removes a key; __ is a dot)."""
    cfg = toy.config()
    metadata = gguf_metadata(cfg) | {key.replace("__", "."): value for key, value in changes.items()}
    stored = gguf_tensors(folders.random_tensors(cfg), cfg) | (tensors or {})
    write_gguf(folder / "model.gguf", stored, metadata, architecture=architecture)
    return folder / "model.gguf"


def params(cfg: ModelConfig) -> dict[str, Any]:
    """Meta's params.json."""
    return {
        "dim": cfg.dim,
        "n_layers": cfg.n_layers,
        "n_heads": cfg.n_heads,
        "n_kv_heads": cfg.n_kv_heads,
        "vocab_size": cfg.vocab_size,
        "multiple_of": 256,
        "norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "use_scaled_rope": cfg.rope_scaling is not None,
    }


def write_meta(folder: Path, cfg: ModelConfig, n_shards: int, tokenizer: bytes, **changes: Any) -> None:
    """All of Meta's folder but the tensors, which `shards` cuts: the .pth files are empty."""
    (folder / "params.json").write_text(json.dumps(params(cfg) | changes))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    for i in range(n_shards):
        (folder / f"consolidated.{i:02}.pth").touch()


def shards(tensors: Tensors, n: int, embedding_axis: int) -> list[Tensors]:
    """The tensors (Meta's names) as n tensor-parallel ranks hold them.

    Query, key, value, gate, up and output matrices are cut by rows, attention output and down by columns.
    """
    axes = {"wo": 1, "w2": 1, "tok_embeddings": embedding_axis}
    parts: list[Tensors] = [{} for _ in range(n)]
    for name, array in tensors.items():
        module = name.removesuffix(".weight").split(".")[-1]
        whole = array.ndim == 1
        cut = [array] * n if whole else np.split(array, n, axis=axes.get(module, 0))
        for part, piece in zip(parts, cut, strict=True):
            part[name] = piece
    return parts
