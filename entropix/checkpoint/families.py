"""The model families: what each has beside Llama, as one row of `FAMILIES`.

A row says what a `config.json` of its `model_type` means: the defaults of keys that it leaves out, which are those of
the family's config class in transformers, not Llama's; the switches of `ModelConfig` that the family turns; and what of
it is refused by name, because it would not be computed exactly. There is no code for a family anywhere else.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entropix.checkpoint import rotary, values
from entropix.config import ModelConfig

# Key -> accepted values (None: absent) and what any other value would mean.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", None), "only SwiGLU feed-forward layers are supported"),
    "attention_bias": ((False, None), "biases in attention are not supported"),
    "mlp_bias": ((False, None), "biases in feed-forward layers are not supported"),
    "quantization_config": ((None,), "quantised tensors are not supported; use the unquantised checkpoint"),
    "num_experts": ((0, None), "mixtures of experts are not supported"),
    "num_local_experts": ((0, None), "mixtures of experts are not supported"),
    "n_routed_experts": ((0, None), "mixtures of experts are not supported"),
    "qk_norm": (
        (False, None),
        "norms on queries and keys are those of the model_type, which has no key for them",
    ),
    "use_qk_norm": (
        (False, None),
        "norms on queries and keys are those of the model_type, which has no key for them",
    ),
    "clip_qkv": ((None,), "clipped queries, keys and values are not supported"),
}

NO_WINDOWS, SWITCHED, BY_LAYER, ALWAYS = "none", "switched", "by layer", "always"
_WINDOWED = "sliding_attention"

Read = Callable[[Mapping[str, Any], int, Path], dict[str, Any]]
Layers = Callable[[Mapping[str, Any], int, Path], Sequence[int]]


class Family(NamedTuple):
    """What a `model_type` means."""

    defaults: Mapping[str, Any]
    """Values of keys of config.json that it leaves out; a key with null stays as it is."""
    rope_theta: float = 10_000.0  # the base of the rotary frequencies where no key has it
    fixed: Mapping[str, Any] = {}  # switches that the family always has so
    numbers: Mapping[str, str] = {}  # key of config.json -> the switch that is its number
    read: Read | None = None
    """Further switches, of config.json, the number of layers, and the file's path, for errors."""
    ignored: tuple[str, ...] = ()  # keys that may be true or false and say nothing in this family
    neutral: Mapping[str, tuple[tuple[Any, ...], str]] = {}
    """What of `NEUTRAL` is otherwise in this family, and what there is besides."""
    windows: str = NO_WINDOWS
    """Whether `sliding_window` is one: never; in all layers; where `use_sliding_window` is true, or in some layers: of
    these two, `layer_types` may say in which."""
    windowed: Layers | None = None
    """The layers with a window, where nothing else says so; None for all. Takes what `read` takes."""
    partial_rotary: bool = False  # whether a part of a head may be rotated
    scaling: tuple[str, type] | None = None
    """The one way in which it scales rotary frequencies, with its class; None for all ways."""
    local_theta: float = 0.0
    """The base of rotary frequencies in layers with a window where no key has it, in a family that has one of its own
    there. Only other layers are scaled then, and `max_position_embeddings` is the length with it."""
    prefix: str = ""  # of its classes in transformers
    write: Callable[[ModelConfig], dict[str, Any]] | None = None  # keys that `read` reads so


def _no_rope_layers(raw: Mapping[str, Any], n_layers: int, path: Path) -> dict[str, Any]:
    """SmolLM3's layers without rotation. In `no_rope_layers`, 1 means *with*; else every so many layers has none."""
    interval = values.whole(raw, "no_rope_layer_interval", path, values.MOST_TOKENS, default=4)
    rotated = raw.get("no_rope_layers")
    if rotated is None:
        return {"no_rope_layers": tuple(range(interval - 1, n_layers, interval))}
    listed = isinstance(rotated, list) and all(one in (0, 1) for one in rotated)
    if not listed or len(rotated) < n_layers:
        expected = f"a 1 for each of the {n_layers} layers that has rotary embedding and a 0 for each without"
        raise values.wrong(path, "no_rope_layers", expected, rotated)
    return {"no_rope_layers": tuple(i for i in range(n_layers) if not rotated[i])}


def _unrotated(raw: Mapping[str, Any], n_layers: int, path: Path) -> Sequence[int]:
    return _no_rope_layers(raw, n_layers, path)["no_rope_layers"]


def _from_max_window_layers(raw: Mapping[str, Any], n_layers: int, path: Path) -> Sequence[int]:
    """Qwen's layers with a window: those behind the first `max_window_layers`, which is not what the name says."""
    first = values.whole(raw, "max_window_layers", path, values.MOST_TOKENS, default=0, low=0)
    return range(first, n_layers)


def _but_every(default: int, key: str = "") -> Layers:
    """All layers but every so many, counted from 1; a key may have another number."""

    def layers(raw: Mapping[str, Any], n_layers: int, path: Path) -> Sequence[int]:
        n = values.whole(raw, key, path, values.MOST_TOKENS, default=default)
        return [i for i in range(n_layers) if (i + 1) % n]

    return layers


def _gemma(raw: Mapping[str, Any], n_layers: int, path: Path) -> dict[str, Any]:
    """What numbers of Gemma's config.json mean: the embedding's factor is √D, that of scores 1/√query_pre_attn_scalar;
    a soft-cap may be null."""
    width = values.whole(raw, "hidden_size", path, values.MOST_TOKENS)
    scalar = values.positive(raw, "query_pre_attn_scalar", path)
    return {
        "embedding_multiplier": math.sqrt(width),
        "attention_multiplier": 0.0 if scalar == raw.get("head_dim") else 1 / math.sqrt(scalar),
        **{
            field: values.positive(raw, key, path)
            for key, field in _SOFTCAPS.items()
            if raw.get(key) is not None
        },
    }


def _rotated_layers(cfg: ModelConfig) -> dict[str, Any]:
    return {"no_rope_layers": [int(layer not in cfg.no_rope_layers) for layer in range(cfg.n_layers)]}


_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_SOFTCAPS = {
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "logits_softcap",
}
_GEMMA_SWITCHES = {"norm_around": True, "norm_offset": 1.0, "activation": "gelu_tanh"}
_ONLY_GEGLU = "only gelu_pytorch_tanh is supported in this family"
_GEMMA_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("gelu_pytorch_tanh", None), _ONLY_GEGLU),
    "hidden_activation": (("gelu_pytorch_tanh",), _ONLY_GEGLU),
    "use_bidirectional_attention": ((False, None), "only attention to what came before is supported"),
}
_GRANITE = {
    "embedding_multiplier": "embedding_multiplier",
    "attention_multiplier": "attention_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_divisor",
}

FAMILIES: dict[str, Family] = {
    "llama": Family({"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}, prefix="Llama"),
    "mistral": Family(
        {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        },
        prefix="Mistral",
        windows=ALWAYS,
    ),
    "qwen2": Family(
        _QWEN,
        prefix="Qwen2",
        fixed={"qkv_bias": True},
        ignored=("attention_bias",),
        windows=SWITCHED,
        windowed=_from_max_window_layers,
    ),
    "qwen3": Family(
        {"head_dim": 128, **_QWEN},
        prefix="Qwen3",
        fixed={"qk_norm": "head"},
        windows=SWITCHED,
        windowed=_from_max_window_layers,
    ),
    "phi3": Family(
        {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        prefix="Phi3",
        windows=ALWAYS,
        partial_rotary=True,
        scaling=("longrope", rotary.LongRope),
    ),
    "smollm3": Family(
        {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
        prefix="SmolLM3",
        rope_theta=2_000_000.0,
        read=_no_rope_layers,
        write=_rotated_layers,
        windows=SWITCHED,
        windowed=_unrotated,
    ),
    "granite": Family(
        {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, **dict.fromkeys(_GRANITE, 1.0)},
        prefix="Granite",
        numbers=_GRANITE,
    ),
    "olmo2": Family(
        {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        prefix="Olmo2",
        fixed={"qk_norm": "width", "norm_after": True},
    ),
    "gemma2": Family(
        {
            **_GEMMA,
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        prefix="Gemma2",
        fixed=_GEMMA_SWITCHES,
        read=_gemma,
        neutral=_GEMMA_NEUTRAL,
        windows=BY_LAYER,
        windowed=_but_every(2),
    ),
    "gemma3_text": Family(
        {**_GEMMA, "vocab_size": 262_208, "max_position_embeddings": 131_072},
        prefix="Gemma3",
        rope_theta=1_000_000.0,
        fixed={**_GEMMA_SWITCHES, "qk_norm": "head"},
        read=_gemma,
        neutral={
            **_GEMMA_NEUTRAL,
            "attn_logit_softcapping": ((None,), "this family computes no soft-cap of scores"),
        },
        windows=BY_LAYER,
        windowed=_but_every(6, "sliding_window_pattern"),
        scaling=("linear", rotary.LinearScaling),
        local_theta=10_000.0,
    ),
}


# model_type of a model that also reads images -> that of its text model, which text_config describes.
_TEXT_OF = {"gemma3": "gemma3_text"}


def of_text(raw: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The config.json of the text model alone, of one that also reads images; any other as it is.

    Raises a ValueError where the whole would not be computed as such a text model is.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in _TEXT_OF:
        return raw
    text, own = values.table(raw, "text_config", path), _TEXT_OF[kind]
    tied = values.flag(raw, "tie_word_embeddings", path, default=True)
    # transformers has the last one for text models alone.
    for key, expected in (
        ("model_type", own),
        ("tie_word_embeddings", tied),
        ("final_logit_softcapping", None),
    ):
        if text.get(key, expected) != expected:
            raise ValueError(
                f"{path}: text_config.{key} is {values.shown(text[key])}; in this {kind} it must be "
                f"{values.shown(expected)}"
            )
    said = {
        "model_type": own,
        "architectures": [f"{FAMILIES[own].prefix}ForCausalLM"],
        "tie_word_embeddings": tied,
    }
    return {
        **text,
        **said,
        "quantization_config": raw.get("quantization_config", text.get("quantization_config")),
    }


def family(raw: Mapping[str, Any], path: Path) -> Family:
    """The row of a config.json. Raises a ValueError that names the known ones where there is none."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        first, *others = (repr(name) for name in (*FAMILIES, *_TEXT_OF))
        raise ValueError(
            f"{path}: model_type must be {first} or one of {', '.join(others)}; got {values.shown(kind)}, an "
            "architecture this package does not compute"
        )
    return FAMILIES[kind]


def refuse(raw: Mapping[str, Any], row: Family, n_layers: int, path: Path) -> None:
    """Raises a ValueError that names the key, its value and the reason where the model would not be computed exactly.

    raw: with the row's defaults.
    """
    for key, (accepted, reason) in {**NEUTRAL, **row.neutral}.items():
        if key in row.ignored:
            values.flag(raw, key, path)
        elif raw.get(key) not in accepted:
            raise ValueError(f"{path}: {key} is {values.shown(raw[key])}: {reason}")


def window(raw: Mapping[str, Any], row: Family, n_layers: int, path: Path) -> dict[str, Any]:
    """The fields of `ModelConfig` that say in which layers a query sees how many positions; none where all see all.

    raw: with the row's defaults. Raises a ValueError where windows are not what transformers would make of them.
    """
    kinds = values.items(raw, "layer_types", path)
    for kind in kinds:
        if kind not in ("full_attention", _WINDOWED):
            raise ValueError(
                f"{path}: layer_types has {values.named(kind)}: only full_attention and {_WINDOWED} are supported"
            )
    if kinds and len(kinds) != n_layers:
        raise ValueError(
            f"{path}: layer_types has {len(kinds)} kinds for {n_layers} layers (num_hidden_layers); give one for each"
        )
    size = raw.get("sliding_window")
    switched = row.windows == SWITCHED
    by_layer = row.windows == BY_LAYER
    used = size is not None and (not switched or values.flag(raw, "use_sliding_window", path))
    windowed: Sequence[int] = range(n_layers if used else 0)
    if kinds and (switched or by_layer or not used):  # kinds tell a switched family's layers apart
        windowed = [i for i, kind in enumerate(kinds) if kind == _WINDOWED]
    elif (used or by_layer) and row.windowed:
        windowed = row.windowed(raw, n_layers, path)
    if not windowed:
        return {}
    said = f"{path}: sliding_window is {values.shown(size)}" + f" and layer_types has {_WINDOWED}" * bool(
        kinds
    )
    if not used or row.windows == NO_WINDOWS:
        raise ValueError(f"{said}: this {raw['model_type']} has no such windows")
    return {
        "sliding_window": values.whole(raw, "sliding_window", path, values.MOST_TOKENS),
        "global_layers": tuple(i for i in range(n_layers) if i not in windowed),
    }


def switches(raw: Mapping[str, Any], row: Family, n_layers: int, path: Path) -> dict[str, Any]:
    """The fields of `ModelConfig` in which the model differs from Llama. raw: with the row's defaults."""
    found = {field: values.positive(raw, key, path) for key, field in row.numbers.items()}
    return {**row.fixed, **found, **(row.read(raw, n_layers, path) if row.read else {})}


def written(row: Family, cfg: ModelConfig) -> dict[str, Any]:
    """The keys that say the same of a model as those that `switches` reads."""
    windows = {"sliding_window": cfg.sliding_window or None} if row.windows == ALWAYS else {}
    return {
        **windows,
        **{key: getattr(cfg, field) for key, field in row.numbers.items()},
        **(row.write(cfg) if row.write else {}),
    }
