"""The tensors of a GGUF file as those of a Hugging Face folder: their names, the order of their rows, their values.

What llama.cpp's converter does to a tensor is undone here: it reorders the rows of queries and keys in some
architectures, keeps several matrices of Phi-3 in one tensor, and adds Gemma's 1 to the weights of norms.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType

from entropix.checkpoint.convert.folder import half_split, misfits, spelling
from entropix.checkpoint.convert.gguf_header import GgufTensor
from entropix.checkpoint.convert.values import Values, shown
from entropix.checkpoint.tensors import EMBED, FINAL_NORM, UNEMBED, listed, norm_names, tensor_shapes
from entropix.config import ModelConfig

ENDS = {EMBED: "token_embd.weight", FINAL_NORM: "output_norm.weight", UNEMBED: "output.weight"}
_LAYER_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Those of `norm_names`, in its order: before the blocks, behind them, or both.
_BEFORE, _BEHIND = ("attn_norm", "ffn_norm"), ("post_attention_norm", "post_ffw_norm")
ROPE_FREQUENCIES = "rope_freqs.weight"  # what divides each rotary frequency of a Llama 3
_EXACT_DTYPE = {GGMLQuantizationType.F16: "float16", GGMLQuantizationType.BF16: "bfloat16"}


class Architecture(NamedTuple):
    """How llama.cpp keeps a family."""

    interleaved: bool  # rows of queries and keys are in the order in which Meta rotates them
    numbers: Mapping[str, str] = {}  # key of the metadata -> that of config.json
    model_types: tuple[str, ...] = ()  # of config.json, where it is not the architecture's own name alone
    complete: bool = True  # whether a file says all of the model; else its Hugging Face folder has to


_GRANITE = {
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
# SmolLM3's layers without rotation are in no key: they are those of its published model, as in `families`. Nor are
# Gemma's layers with a window, the factor of its scores, and what its vocabulary, like Phi-3's, does with white space.
ARCHITECTURES = {
    "llama": Architecture(True, model_types=("llama", "mistral")),
    "qwen2": Architecture(False),
    "qwen3": Architecture(False),
    "olmo2": Architecture(False),
    "smollm3": Architecture(True),
    "granite": Architecture(True, _GRANITE),
    "phi3": Architecture(False, complete=False),
    "gemma2": Architecture(False, complete=False),
    "gemma3": Architecture(False, model_types=("gemma3_text",), complete=False),
}


# Every key of an architecture that is understood, without its name. A value here is the only one supported; None means
# any.
UNDERSTOOD: dict[str, Any] = {
    "block_count": None,
    "context_length": None,
    "embedding_length": None,
    "feed_forward_length": None,
    "attention.head_count": None,
    "attention.head_count_kv": None,
    "attention.key_length": None,
    "attention.value_length": None,
    "attention.layer_norm_rms_epsilon": None,
    "attention.causal": True,
    "rope.freq_base": None,
    "rope.dimension_count": None,
    "rope.scaling.type": "none",
    "vocab_size": None,
    "expert_count": 0,
    "expert_used_count": 0,
    "tensor_data_layout": "Meta AI original pth",
}


def architecture_of(meta: Values) -> str:
    """Its name. Raises a ValueError that lists the known ones for a file of another."""
    if (name := meta.text("general.architecture")) not in ARCHITECTURES:
        *known, last = ARCHITECTURES
        raise ValueError(
            f"{meta.path}: the architecture is {shown(name)}; only {', '.join(known)} and {last} are supported"
        )
    return name


def n_embedding_rows(path: Path, tensors: Mapping[str, GgufTensor]) -> int:
    """The number of rows of the embedding. Raises a ValueError where there is none, or one of other dimensions."""
    embedding = tensors.get(ENDS[EMBED])
    if embedding is None:
        raise ValueError(f"{path}: there is no tensor {ENDS[EMBED]}")
    if len(embedding.shape) != 2:
        raise ValueError(
            f"{path}: {embedding.name} must have two dimensions, it is of shape {list(embedding.shape)}"
        )
    return embedding.shape[0]


def check_layers(path: Path, n_layers: int, tensors: Collection[str], said: str) -> None:
    """Raises a ValueError for so many layers that to list what is missing would take long. said: where they are."""
    if n_layers > len(tensors):
        raise ValueError(f"{path}: {said} is {n_layers}, but there are only {len(tensors)} tensors")


def hf_tensors(
    path: Path, tensors: Mapping[str, GgufTensor], cfg: ModelConfig, name: str, described_by: str
) -> tuple[Callable[[str], np.ndarray], str]:
    """(the tensor of a Hugging Face name, the narrowest dtype that holds every matrix exactly).

    name: of the architecture. Raises a ValueError that lists every tensor that does not fit what `described_by`
    says the model is.
    """
    tensors = _divided(path, tensors, cfg) if name == "phi3" else tensors
    norms = zip(norm_names(cfg).values(), _norms(cfg), strict=True)
    names = spelling(cfg, ENDS, "blk", _LAYER_PARTS | dict(norms))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if faults := misfits(tensor_shapes(cfg), shapes, names):
        raise ValueError(f"{path}: the tensors do not fit {described_by}{listed(faults)}")

    def tensor(name_there: str) -> np.ndarray:
        values = tensors[names[name_there]].values(path)
        if cfg.norm_offset and name_there.endswith("norm.weight"):
            return values - np.float32(cfg.norm_offset)
        return half_split(name_there, values, cfg) if ARCHITECTURES[name].interleaved else values

    kinds = {tensors[names[name]].kind for name, shape in tensor_shapes(cfg).items() if len(shape) > 1}
    return tensor, _EXACT_DTYPE.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def _norms(cfg: ModelConfig) -> tuple[str, ...]:
    if cfg.norm_around:
        return (*_BEFORE, *_BEHIND)
    return _BEHIND if cfg.norm_after else _BEFORE


def _divided(path: Path, tensors: Mapping[str, GgufTensor], cfg: ModelConfig) -> dict[str, GgufTensor]:
    """Phi-3's tensors, of which those that hold several matrices, one below the other, are these matrices."""
    N, K, F = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim, cfg.ffn_dim
    fused = {"attn_qkv": {"attn_q": N, "attn_k": K, "attn_v": K}, "ffn_up": {"ffn_gate": F, "ffn_up": F}}
    found: dict[str, GgufTensor] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        sizes = fused.get(part, {})
        if len(tensor.shape) != 2 or tensor.shape[0] != sum(sizes.values()):
            sizes = {part: tensor.shape[0]}
        start = 0
        for one, n in sizes.items():
            whole = name if len(sizes) == 1 else f"{layer}.{one}.weight"
            if whole in found:
                raise ValueError(f"{path}: {whole} is there twice, the second time as {name}")
            data = tensor.data[start : start + n] if len(sizes) > 1 else tensor.data
            found[whole] = tensor._replace(name=whole, shape=(n, *tensor.shape[1:]), data=data)
            start += n
    return found
