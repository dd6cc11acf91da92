"""GGUF files of Llama models, opened as foreign checkpoints.

Tensor names, the order of rotary rows and the metadata keys are those that llama.cpp's converter writes for
the architecture `llama`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, TokenType
from gguf.quants import dequantize

from entropix.checkpoint.convert.folder import Foreign, half_split, misfits, spelling, write_tokenizer_config
from entropix.checkpoint.hf_folder import END_TOKENS
from entropix.checkpoint.tensors import EMBED, FINAL_NORM, UNEMBED, tensor_shapes
from entropix.checkpoint.tokenizer_files import write_tokenizer_json
from entropix.config import ModelConfig, RopeScaling

_ENDS = {EMBED: "token_embd.weight", FINAL_NORM: "output_norm.weight", UNEMBED: "output.weight"}
_LAYER_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ROPE_FACTORS = "rope_freqs.weight"

# Every `llama.*` key that is understood. A value here is the only one supported; None means any.
_UNDERSTOOD: dict[str, Any] = {
    "llama.block_count": None,
    "llama.context_length": None,
    "llama.embedding_length": None,
    "llama.feed_forward_length": None,
    "llama.attention.head_count": None,
    "llama.attention.head_count_kv": None,
    "llama.attention.key_length": None,
    "llama.attention.value_length": None,
    "llama.attention.layer_norm_rms_epsilon": None,
    "llama.attention.causal": True,
    "llama.rope.freq_base": None,
    "llama.rope.dimension_count": None,
    "llama.rope.scaling.type": "none",
    "llama.vocab_size": None,
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.tensor_data_layout": "Meta AI original pth",
}

_NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_LLAMA3_PRE = ("llama3", "llama-v3", "llama-bpe")

_EXACT_DTYPE = {GGMLQuantizationType.F16: "float16", GGMLQuantizationType.BF16: "bfloat16"}


def open_gguf(path: Path, chat_template: str | None = None) -> Foreign:
    """The checkpoint in a GGUF file; quantised tensors are dequantised to the float32 they stand for.

    `chat_template` replaces the file's own. Raises a ValueError for a file that is damaged, of another
    architecture, or with metadata, tensors or a vocabulary that are not understood in full.
    """
    meta, tensors = _read(path)
    cfg = _config(path, meta, tensors)
    names = spelling(cfg, _ENDS, "blk", _LAYER_PARTS)
    shapes = {name: tensor.shape.tolist()[::-1] for name, tensor in tensors.items() if name != _ROPE_FACTORS}
    if faults := misfits(tensor_shapes(cfg), shapes, names):
        raise ValueError(f"{path}: the tensors do not fit the metadata\n  " + "\n  ".join(faults))

    def tensor(name: str) -> np.ndarray:
        stored = tensors[names[name]]
        try:
            return half_split(name, dequantize(stored.data, stored.tensor_type), cfg)
        except NotImplementedError:
            kind = stored.tensor_type.name
            raise ValueError(
                f"{path}: {stored.name} is of type {kind}, which cannot be dequantised"
            ) from None

    kinds = {tensors[names[name]].tensor_type for name, shape in tensor_shapes(cfg).items() if len(shape) > 1}
    write_vocabulary = _vocabulary_writer(path, meta, chat_template or meta.get("tokenizer.chat_template"))
    return Foreign(
        source=path,
        config=cfg,
        dtype=_EXACT_DTYPE.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32",
        tensor=tensor,
        bos_id=meta.get("tokenizer.ggml.bos_token_id"),
        stop_ids=_stop_ids(meta),
        write_vocabulary=write_vocabulary,
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, ReaderTensor]]:
    """(metadata, tensors by name) of a single-file Llama."""
    try:
        reader = GGUFReader(path)
        meta = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:  # so fails the reader on damaged files
        raise ValueError(f"{path}: empty, truncated or not a GGUF file ({error})") from None
    architecture = meta.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path}: the architecture is {architecture!r}; only 'llama' is supported")
    if meta.get("split.count", 1) > 1:
        raise ValueError(
            f"{path}: one of {meta['split.count']} parts; merge them with llama-gguf-split --merge"
        )
    for key, value in meta.items():
        if not key.startswith("llama."):
            continue
        if key not in _UNDERSTOOD:
            raise ValueError(
                f"{path}: {key} is {value!r}; this may change the model in a way that is not supported"
            )
        if _UNDERSTOOD[key] not in (None, value):
            raise ValueError(f"{path}: {key} is {value!r}; only {_UNDERSTOOD[key]!r} is supported")
    return meta, {tensor.name: tensor for tensor in reader.tensors}


def _config(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, ReaderTensor]) -> ModelConfig:
    def number(key: str, default: Any = None) -> Any:
        value = meta.get(key, default)
        if not isinstance(value, int | float) or value <= 0:  # an array would mean that layers differ
            raise ValueError(f"{path}: {key} must be one number above 0 for all layers, got {value!r}")
        return value

    width, n_heads = number("llama.embedding_length"), number("llama.attention.head_count")
    head_dim = number("llama.attention.key_length", width // n_heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if number(key, head_dim) != head_dim:
            raise ValueError(f"{path}: {key} is {meta[key]!r}; only the head width, {head_dim}, is supported")
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: there is no tensor token_embd.weight")
    vocab_size = int(tensors["token_embd.weight"].shape[1])
    if number("llama.vocab_size", vocab_size) != vocab_size:
        raise ValueError(
            f"{path}: llama.vocab_size is {meta['llama.vocab_size']}, the embedding has {vocab_size} rows"
        )
    theta = _shortest(number("llama.rope.freq_base", 10_000.0))
    try:
        return ModelConfig(
            n_layers=number("llama.block_count"),
            dim=width,
            n_heads=n_heads,
            n_kv_heads=number("llama.attention.head_count_kv", n_heads),
            head_dim=head_dim,
            ffn_dim=number("llama.feed_forward_length"),
            vocab_size=vocab_size,
            context_length=number("llama.context_length"),
            rope_theta=theta,
            norm_eps=_shortest(number("llama.attention.layer_norm_rms_epsilon")),
            tied_embeddings="output.weight" not in tensors,
            rope_scaling=_rope_scaling(path, tensors.get(_ROPE_FACTORS), theta, head_dim),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(path: Path, tensor: ReaderTensor | None, theta: float, head_dim: int) -> RopeScaling | None:
    """The Llama 3 scaling whose division of each frequency is what `rope_freqs.weight` holds."""
    if tensor is None:
        return None
    stored = dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    if (stored == 1).all():
        return None
    scaling = RopeScaling(factor=_shortest(stored.max()), low_freq_factor=1.0, high_freq_factor=4.0)
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = np.clip((scaling.original_context_length / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - share) / scaling.factor + share)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4, atol=0):
        raise ValueError(
            f"{path}: {_ROPE_FACTORS} is not the Llama 3 scaling (frequency factors {low:g} and {high:g}, "
            f"original context {scaling.original_context_length}); other rotary scalings are not supported"
        )
    return scaling


def _stop_ids(meta: Mapping[str, Any]) -> tuple[int, ...]:
    """What the metadata names as end of text, turn or message, and the control tokens known to be ends."""
    named = [meta.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    tokens = zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"], strict=False)
    known = [i for i, (token, kind) in enumerate(tokens) if token in END_TOKENS and kind == TokenType.CONTROL]
    return tuple(sorted({i for i in (*named, *known) if i is not None}))


def _vocabulary_writer(path: Path, meta: Mapping[str, Any], template: str | None) -> Callable[[Path], None]:
    """A function that writes tokenizer.json and tokenizer_config.json; what it needs is checked here."""
    kind = meta.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(
            f"{path}: tokenizer.ggml.model is {kind!r}; only byte-level BPE, 'gpt2', can be carried over "
            "exactly ('llama' are the SentencePiece vocabularies of Llama 1 and 2)"
        )
    names = ("tokens", "merges", "token_type", "pre")
    fields: dict[str, Any] = {name: meta.get(f"tokenizer.ggml.{name}") for name in names}
    if missing := [name for name, value in fields.items() if not value]:
        raise ValueError(f"{path}: no tokenizer.ggml.{missing[0]}; the vocabulary is incomplete")
    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED_TOKENS.items()}
    for name, i in ids.items():
        if i is not None and i >= len(fields["tokens"]):
            raise ValueError(f"{path}: {name} is {i}, but there are {len(fields['tokens'])} tokens")
    # llama.cpp puts the first token of a text there for Llama 3 vocabularies unless the file says otherwise.
    add_bos = meta.get("tokenizer.ggml.add_bos_token", fields["pre"] in _LLAMA3_PRE)

    def write(folder: Path) -> None:
        write_tokenizer_json(
            folder / "tokenizer.json",
            fields["tokens"],
            fields["merges"],
            fields["token_type"],
            fields["pre"],
            ids["bos_token"],
            ids["eos_token"],
            add_bos,
        )
        texts = {name: fields["tokens"][i] for name, i in ids.items() if i is not None}
        write_tokenizer_config(folder, texts, template, add_bos)

    return write
