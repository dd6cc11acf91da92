"""GGUF files of which a Hugging Face folder says what the model is: only the tensors are the file's.

A GGUF file leaves out what llama.cpp knows by an architecture's name, and of some vocabularies what they do with white
space. The model's own folder says all of it in a few small files; its tensors are not needed.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import TokenType

from entropix.checkpoint.convert.folder import Foreign, copy_texts
from entropix.checkpoint.convert.gguf_header import GgufTensor
from entropix.checkpoint.convert.gguf_tensors import (
    ARCHITECTURES,
    architecture_of,
    check_layers,
    hf_tensors,
    n_embedding_rows,
)
from entropix.checkpoint.convert.values import Values, shown
from entropix.checkpoint.families import of_text
from entropix.checkpoint.hf_folder import check_stop_ids, read_config, stop_token_ids
from entropix.checkpoint.vocabulary.byte_level import spelt_bytes
from entropix.checkpoint.vocabulary.files import read_vocabulary
from entropix.checkpoint.vocabulary.sentence_pieces import token_text
from entropix.config import ModelConfig
from entropix.files import read_json
from entropix.model.transformer import rope_frequencies

# Key of the metadata, without the architecture's name -> what it is in a `ModelConfig`: numbers that no shape tells.
_SAME = {
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
}
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_FREQUENCIES = "rope_freqs.weight"


def open_described(
    meta: Values, tensors: Mapping[str, GgufTensor], folder: Path, chat_template: str | None
) -> Foreign:
    """The model that the folder describes, with the tensors of a GGUF file.

    Raises a ValueError where the folder is incomplete, or describes another model than the file's: another
    architecture, other numbers, tensors of other shapes, another vocabulary.
    """
    path, name = meta.path, architecture_of(meta)
    config = folder / "config.json"
    raw = of_text(read_json(config), config)
    model_types = ARCHITECTURES[name].model_types or (name,)
    if (kind := raw.get("model_type")) not in model_types:
        raise ValueError(
            f"{config}: model_type is {shown(kind)}, but {path} is of the architecture {name}, which is "
            f"{' or '.join(model_types)}"
        )
    cfg = read_config(folder)
    _check_numbers(meta, name, cfg, config)
    _check_rotary(path, tensors, cfg, config)
    n_rows = n_embedding_rows(path, tensors)
    _check_vocabulary(meta, folder, n_rows)
    if n_rows < cfg.vocab_size:  # converters leave out rows that no token has
        cfg = dataclasses.replace(cfg, vocab_size=n_rows)
    check_layers(config, cfg.n_layers, tensors, "num_hidden_layers")
    rotary = (_FREQUENCIES, _LONG, _SHORT)
    stored = {one: tensor for one, tensor in tensors.items() if one not in rotary}
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


def _check_numbers(meta: Values, name: str, cfg: ModelConfig, config: Path) -> None:
    """Raises where a number of the metadata is another than the folder's."""
    for short, field in _SAME.items():
        key, expected = f"{name}.{short}", getattr(cfg, field)
        if (value := meta.number(key, None)) is not None and np.float32(value) != np.float32(expected):
            raise ValueError(
                f"{meta.path}: {key} is {value:g}, but {config} says {expected:g}; this is the folder of another model"
            )


def _check_rotary(path: Path, tensors: Mapping[str, GgufTensor], cfg: ModelConfig, config: Path) -> None:
    """Raises where a tensor divides the rotary frequencies otherwise than the folder has it.

    What is for longer texts than those of pre-training alone (`rope_factors_long`) is not computed, and not compared.
    """
    scaled = rope_frequencies(cfg)
    unscaled = rope_frequencies(dataclasses.replace(cfg, rope_divisors=(), rope_scaling=None, yarn=None))
    for name in (_SHORT, _FREQUENCIES):
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != scaled.shape or not np.allclose(tensor.values(path), unscaled / scaled, rtol=1e-4):
            raise ValueError(
                f"{path}: {name} divides the rotary frequencies otherwise than {config} says; this is the folder of "
                "another model"
            )


def _check_vocabulary(meta: Values, folder: Path, n_rows: int) -> None:
    """Raises where a token of the file is another in the folder, or one of the folder's has no row of the embedding."""
    path, vocabulary = meta.path, read_vocabulary(folder)
    if (last := max(vocabulary.texts)) >= n_rows:
        raise ValueError(
            f"{folder}: its token {last} has no row of the embedding, of which {path} has {n_rows}; this is the folder "
            "of another model"
        )
    texts = meta.texts("tokenizer.ggml.tokens")
    kinds = meta.wholes("tokenizer.ggml.token_type", len(texts))
    byte_level = meta.text("tokenizer.ggml.model") == "gpt2"
    for i, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        there = vocabulary.texts.get(i)
        if kind == TokenType.UNUSED or there is None:
            continue
        spelt = spelt_bytes(text) if byte_level else token_text(text)
        if there not in (spelt, text.encode()):
            raise ValueError(
                f"{path}: token {i} is {shown(text)}, but in {folder} it is {shown(there.decode(errors='replace'))}; "
                "this is the folder of another model"
            )
