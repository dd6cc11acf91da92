"""GGUF files of which a Hugging Face folder says what the model is: only the tensors are the file's.

A GGUF file leaves out what llama.cpp knows by an architecture's name, and of some vocabularies what they do with white
space. The model's own folder says all of it in a few small files; its tensors are not needed. All that the file does
say is compared, so that the folder of another model is refused.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entropix.checkpoint.convert.folder import Foreign, copy_texts
from entropix.checkpoint.convert.gguf_header import GgufTensor
from entropix.checkpoint.convert.gguf_tensors import (
    ARCHITECTURES,
    ENDS,
    ROPE_FREQUENCIES,
    UNDERSTOOD,
    architecture_of,
    check_layers,
    hf_tensors,
    n_embedding_rows,
)
from entropix.checkpoint.convert.values import REQUIRED, Values, named, shown
from entropix.checkpoint.families import FAMILIES, of_text
from entropix.checkpoint.hf_folder import check_stop_ids, read_config, stop_token_ids
from entropix.checkpoint.tensors import EMBED, UNEMBED
from entropix.checkpoint.vocabulary.byte_level import spelt_bytes
from entropix.checkpoint.vocabulary.contents import for_text
from entropix.checkpoint.vocabulary.files import read_vocabulary
from entropix.checkpoint.vocabulary.sentence_pieces import token_text
from entropix.config import ModelConfig
from entropix.files import read_json
from entropix.model.rope import rope_frequencies, unscaled_frequencies

# Tensors of LongRoPE's factors: for texts of pre-training's length, and for longer ones.
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
# Keys that only files of some architectures have; each is compared, or says what tensors and the folder say too.
_MORE = (
    *("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.attn_factor", "rope.scaling.finetuned"),
)
_ANOTHER = "this is the folder of another model"


def open_described(
    meta: Values, tensors: Mapping[str, GgufTensor], folder: Path, chat_template: str | None
) -> Foreign:
    """The model that the folder describes, with the tensors of a GGUF file.

    Raises a ValueError where the folder is incomplete, or describes another model than the file's: another
    architecture, other numbers, tensors of other shapes, another vocabulary.
    """
    path, name = meta.path, architecture_of(meta)
    if not folder.is_dir():
        raise ValueError(
            f"--hf-folder {folder}: no such folder; expected one with config.json and the tokenizer's files"
        )
    config = folder / "config.json"
    raw = of_text(read_json(config), config)
    model_types = ARCHITECTURES[name].model_types or (name,)
    if (kind := raw.get("model_type")) not in model_types:
        raise ValueError(
            f"{config}: model_type is {shown(kind)}, but {path} is of the architecture {name}, which is "
            f"{' or '.join(model_types)}"
        )
    cfg = read_config(folder)
    _check_numbers(meta, name, cfg, {**FAMILIES[kind].defaults, **raw}, config)
    _check_rotary(path, tensors, cfg, config)
    n_rows = n_embedding_rows(path, tensors)
    _check_vocabulary(meta, folder, n_rows)
    if n_rows < cfg.vocab_size:  # converters leave out rows that no token has
        cfg = dataclasses.replace(cfg, vocab_size=n_rows)
    check_layers(config, cfg.n_layers, tensors, "num_hidden_layers")
    aside = {ROPE_FREQUENCIES, _SHORT, _LONG}
    if cfg.tied_embeddings and _is_twice(path, tensors):
        aside.add(ENDS[UNEMBED])
    stored = {one: tensor for one, tensor in tensors.items() if one not in aside}
    tensor, dtype = hf_tensors(path, stored, cfg, name, str(config))
    stop_ids = stop_token_ids(folder)
    check_stop_ids(folder, stop_ids, n_rows)
    return Foreign(
        source=path,
        config=cfg,
        dtype=dtype,
        tensor=tensor,
        bos_id=Values(config, raw).whole("bos_token_id", None, low=0, high=n_rows - 1),
        stop_ids=stop_ids,
        write_vocabulary=lambda target: copy_texts(folder, target, chat_template),
        model_type=kind,
        config_json={**{key: value for key, value in raw.items() if key != "dtype"}, "vocab_size": n_rows},
    )


def _check_numbers(meta: Values, name: str, cfg: ModelConfig, raw: Mapping[str, Any], config: Path) -> None:
    """Raises where the metadata say another number than the folder, or something that is not known.

    raw: config.json, with its family's defaults.
    """
    known = {*UNDERSTOOD, *_MORE, *ARCHITECTURES[name].numbers}
    for key in meta.raw:
        if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in known:
            raise ValueError(
                f"{meta.path}: {named(key)} is {shown(meta.raw[key])}; what this changes in the model is not known"
            )
    if not meta.flag(f"{name}.attention.causal", True):
        raise ValueError(f"{meta.path}: {name}.attention.causal is False; only True is supported")
    n_heads = meta.whole(f"{name}.attention.head_count")
    divided = len(cfg.rope_divisors) == 1
    scaling = "linear" if divided else "yarn" if cfg.yarn else "none"
    said = meta.text(f"{name}.rope.scaling.type", "none")
    if said != scaling and not (said == "longrope" and cfg.rope_divisors):
        raise ValueError(
            f"{meta.path}: {name}.rope.scaling.type is {shown(said)}, but {config} says {scaling!r}; {_ANOTHER}"
        )
    factor = cfg.rope_divisors[0] if divided else cfg.yarn.factor if cfg.yarn else None
    # Key -> (what llama.cpp takes where it is absent, what the folder says).
    expected: dict[str, tuple[float | None, float]] = {
        "attention.head_count": (n_heads, cfg.n_heads),
        "attention.head_count_kv": (n_heads, cfg.n_kv_heads),
        "attention.key_length": (cfg.dim // n_heads, cfg.head_dim),
        "attention.layer_norm_rms_epsilon": (REQUIRED, cfg.norm_eps),
        "context_length": (REQUIRED, raw["max_position_embeddings"]),
        "rope.freq_base": (10_000.0, cfg.rope_theta),
        "rope.dimension_count": (None, cfg.rotary_dim or cfg.head_dim),
        "attention.sliding_window": (None, raw.get("sliding_window") or 0),
        "attn_logit_softcapping": (None, cfg.attention_softcap),
        "final_logit_softcapping": (None, cfg.logits_softcap),
        **{key: (REQUIRED, raw[theirs]) for key, theirs in ARCHITECTURES[name].numbers.items()},
        **({"rope.scaling.factor": (REQUIRED, factor)} if factor is not None else {}),
    }
    for short, (absent, there) in expected.items():
        key = f"{name}.{short}"
        value = 0 if meta.raw.get(key) == 0 else meta.number(key, absent)  # a window of 0 is none
        if value is not None and np.float32(value) != np.float32(there):
            raise ValueError(f"{meta.path}: {key} is {value:g}, but {config} says {there:g}; {_ANOTHER}")


def _check_rotary(path: Path, tensors: Mapping[str, GgufTensor], cfg: ModelConfig, config: Path) -> None:
    """Raises where a tensor divides the rotary frequencies otherwise than the folder has it, or is missing.

    Llama 3's may be missing: converters of before July 2024 left it out.
    """
    divided = unscaled_frequencies(cfg, cfg.rope_theta) / rope_frequencies(cfg)
    is_longrope = len(cfg.rope_divisors) > 1
    expected = {
        _SHORT: divided if is_longrope else np.ones_like(divided),
        ROPE_FREQUENCIES: divided,
        **({_LONG: np.array(cfg.rope_long_divisors)} if cfg.rope_long_divisors else {}),
    }
    for name, there in expected.items():
        tensor = tensors.get(name)
        if tensor is None and not (is_longrope and name != ROPE_FREQUENCIES):
            continue
        if (
            tensor is None
            or tensor.shape != there.shape
            or not np.allclose(tensor.values(path), there, rtol=1e-4)
        ):
            what = "is missing" if tensor is None else "divides the rotary frequencies otherwise"
            raise ValueError(f"{path}: {name} {what}, against {config}; {_ANOTHER}")


def _is_twice(path: Path, tensors: Mapping[str, GgufTensor]) -> bool:
    """Whether the unembedding of a tied model is there once more. Raises where it is another matrix."""
    again = tensors.get(ENDS[UNEMBED])
    if again is None:
        return False
    if not np.array_equal(again.values(path), tensors[ENDS[EMBED]].values(path)):
        raise ValueError(
            f"{path}: {again.name} differs from {ENDS[EMBED]}; the folder says they are one (tie_word_embeddings)"
        )
    return True


def _check_vocabulary(meta: Values, folder: Path, n_rows: int) -> None:
    """Raises where a token of the folder is another in the file, or has no row of the embedding."""
    path, vocabulary = meta.path, for_text(read_vocabulary(folder), n_rows)
    if (last := max(vocabulary.texts)) >= n_rows:
        raise ValueError(
            f"{folder}: its token {last} has no row of the embedding, of which {path} has {n_rows}; {_ANOTHER}"
        )
    texts = meta.texts("tokenizer.ggml.tokens")
    byte_level = meta.text("tokenizer.ggml.model") == "gpt2"
    for i, there in vocabulary.texts.items():
        text = texts[i] if i < len(texts) else None
        # The converter writes spaces into user-defined tokens, and the rest as the vocabulary spells it.
        if text is None or there not in (
            spelt_bytes(text) if byte_level else token_text(text),
            text.encode(),
        ):
            raise ValueError(
                f"{path}: token {i} is {shown(text)}, but in {folder} it is {shown(there.decode(errors='replace'))}; "
                f"{_ANOTHER}"
            )
