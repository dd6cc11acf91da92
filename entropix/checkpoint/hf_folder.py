"""The one folder layout every model is read from: a plain Hugging Face Llama folder.

    config.json                                            the architecture
    *.safetensors (+ model.safetensors.index.json)         the tensors
    tokenizer.json or tokenizer.model, tokenizer_config.json
    generation_config.json                                 the stop tokens

A downloaded Hugging Face repository is such a folder already; `entropix.checkpoint.convert` makes one of other
formats. What this package would not compute exactly (biases, sliding windows, other rotary scalings) is
refused by name.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropix.config import ModelConfig, RopeScaling
from entropix.files import read_json, write_json

# Special tokens that end a turn or a document whatever else a checkpoint lists: Llama 3's and ChatML's.
END_TOKENS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>")


# ----- config.json ------------------------------------------------------------------------------------------

# Key -> accepted values (None: absent) and what any other value would mean.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", None), "only SwiGLU feed-forward layers are supported"),
    "attention_bias": ((False, None), "biases in attention are not supported"),
    "mlp_bias": ((False, None), "biases in feed-forward layers are not supported"),
    "sliding_window": ((None,), "sliding-window attention is not supported"),
    "quantization_config": ((None,), "quantised tensors are not supported; use the unquantised checkpoint"),
    "partial_rotary_factor": ((1, None), "partial rotary embeddings are not supported"),
    "num_experts": ((0, None), "mixtures of experts are not supported"),
    "num_local_experts": ((0, None), "mixtures of experts are not supported"),
    "n_routed_experts": ((0, None), "mixtures of experts are not supported"),
    "qk_norm": ((False, None), "norms on queries and keys are not supported"),
    "use_qk_norm": ((False, None), "norms on queries and keys are not supported"),
}


def read_config(folder: Path) -> ModelConfig:
    """The architecture in the folder's config.json.

    Reads the classic keys (`rope_theta`, `rope_scaling`) and those of transformers 5 (`rope_parameters`).
    Raises a ValueError that names the key, its value and the reason when the model is not exactly a Llama.
    """
    path = folder / "config.json"
    raw = read_json(path)
    if raw.get("model_type") not in ("llama", "mistral"):
        raise ValueError(
            f"{path}: model_type must be 'llama', or 'mistral' without sliding window; got "
            f"{raw.get('model_type')!r}, an architecture this package does not compute"
        )
    if raw["model_type"] == "mistral":  # where transformers' defaults differ from those of Llama
        raw = {"sliding_window": 4096, "num_key_value_heads": 8, **raw}
    for key, (accepted, reason) in _NEUTRAL.items():
        if raw.get(key) not in accepted:
            raise ValueError(f"{path}: {key} is {raw[key]!r}: {reason}")
    kinds = {str(kind) for kind in raw.get("layer_types") or ()} - {"full_attention"}
    if kinds:
        raise ValueError(
            f"{path}: layer_types has {', '.join(sorted(kinds))}: only full_attention is supported"
        )
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ValueError(f"{path}: tie_word_embeddings must be true or false, got {tied!r}")

    width, n_heads = _whole(raw, "hidden_size", path), _whole(raw, "num_attention_heads", path)
    if raw.get("head_dim") is None and width % n_heads:
        raise ValueError(
            f"{path}: there is no head_dim, and hidden_size / num_attention_heads is {width}/{n_heads}"
        )
    theta, scaling = _rope(raw, path)
    fields: dict[str, Any] = {
        "n_layers": _whole(raw, "num_hidden_layers", path),
        "dim": width,
        "n_heads": n_heads,
        "n_kv_heads": _whole(raw, "num_key_value_heads", path, default=n_heads),
        "head_dim": _whole(raw, "head_dim", path, default=width // n_heads),
        "ffn_dim": _whole(raw, "intermediate_size", path),
        "vocab_size": _whole(raw, "vocab_size", path),
        "context_length": _whole(raw, "max_position_embeddings", path),
        "rope_theta": theta,
        "norm_eps": _positive(raw, "rms_norm_eps", path),
        "tied_embeddings": tied,
        "rope_scaling": scaling,
    }
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_config(
    path: Path, cfg: ModelConfig, dtype: str, bos_id: int | None, stop_ids: tuple[int, ...]
) -> None:
    """Writes a config.json that `read_config` and transformers (4.43 and later) read as `cfg`."""
    scaling = cfg.rope_scaling
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        },
        "tie_word_embeddings": cfg.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos_id,
        "eos_token_id": list(stop_ids),
        "torch_dtype": dtype,
    }
    write_json(path, values)


def _rope(raw: Mapping[str, Any], path: Path) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from `rope_parameters`, or else from `rope_theta` and `rope_scaling`."""
    key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(key) or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"{path}: {key} must be one flat object for all layers, got {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"{path}: {key} is of type {kind!r}: only 'default' and 'llama3' are supported")
    if rope.get("partial_rotary_factor", 1) != 1:
        value = rope["partial_rotary_factor"]
        raise ValueError(
            f"{path}: partial_rotary_factor is {value!r}: partial rotary embeddings are not supported"
        )
    # 10,000 is what transformers takes when neither place has it.
    theta = _positive({"rope_theta": raw.get("rope_theta"), **rope}, "rope_theta", path, default=10_000.0)
    if kind == "default":
        return theta, None
    return theta, RopeScaling(
        factor=_positive(rope, "factor", path),
        low_freq_factor=_positive(rope, "low_freq_factor", path),
        high_freq_factor=_positive(rope, "high_freq_factor", path),
        original_context_length=_whole(rope, "original_max_position_embeddings", path),
    )


def _whole(values: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = values.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {key} must be a whole number of at least 1, got {value!r}")
    return value


def _positive(values: Mapping[str, Any], key: str, path: Path, default: float | None = None) -> float:
    value = values.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{path}: {key} must be a number above 0, got {value!r}")
    return float(value)


# ----- stop tokens ------------------------------------------------------------------------------------------


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end a generation, ascending; empty when the checkpoint knows none.

    These are the `eos_token_id` of generation_config.json, or else of config.json, or else the id of the
    tokenizer's `eos_token`; and besides every special token of the vocabulary that is in `END_TOKENS`,
    because fine-tuned checkpoints forget to list the token that ends their turns.
    """
    special = _special_tokens(folder)
    listed = _listed_stop_ids(folder / "generation_config.json") or _listed_stop_ids(folder / "config.json")
    if not listed and (path := folder / "tokenizer_config.json").is_file():
        eos = read_json(path).get("eos_token")
        text = eos.get("content") if isinstance(eos, Mapping) else eos
        listed = [special[text]] if text in special else []
    return tuple(sorted({*listed, *(special[token] for token in END_TOKENS if token in special)}))


def _listed_stop_ids(path: Path) -> list[int]:
    value = read_json(path).get("eos_token_id") if path.is_file() else None
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(item, int) or isinstance(item, bool) or item < 0 for item in listed):
        raise ValueError(f"{path}: eos_token_id must be a token id or a list of them, got {value!r}")
    return listed


def _special_tokens(folder: Path) -> dict[str, int]:
    """Text -> id of the special tokens, from tokenizer_config.json or else from tokenizer.json."""
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("tokenizer.json", "added_tokens")):
        path = folder / name
        added = read_json(path).get(key) if path.is_file() else None
        if not added:
            continue
        try:
            tokens = (
                [{"id": i, **token} for i, token in added.items()] if isinstance(added, Mapping) else added
            )
            return {token["content"]: int(token["id"]) for token in tokens if token["special"]}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: {key} must list tokens with their id, content and special") from None
    return {}


# ----- tensors ----------------------------------------------------------------------------------------------
