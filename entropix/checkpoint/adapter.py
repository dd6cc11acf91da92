"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) in folders of PEFT, merged into the model that they were trained on:
as its matrices are read (`load_weights`), or into a folder of its own (`convert`).
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex

from entropix.checkpoint import values
from entropix.checkpoint.pth_file import read_pth
from entropix.checkpoint.tensors import (
    DTYPES,
    EMBED,
    UNEMBED,
    StoredTensor,
    listed,
    read_header,
    tensor_shapes,
)
from entropix.config import ModelConfig
from entropix.files import is_there, read_json

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # of which the first that there is counts
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
# What layers of a model that also reads images begin with (Gemma 3).
_TEXT_MODEL = re.compile(r"^(model\.language_model|language_model\.model)\.")
# A matrix of the base, which PEFT saves too where a layer of embeddings or logits is adapted, or its size was changed.
_WHOLE = re.compile(r"base_model\.model\.(?P<module>lm_head|model\.embed_tokens)(\.base_layer)?\.weight")

# Key -> accepted values (None: absent) and what any other value would mean.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), "only LoRA is supported"),
    "use_dora": ((False, None), "magnitude vectors (DoRA) are not supported"),
    "bias": (("none", None), "trained biases are not supported"),
    "lora_bias": ((False, None), "trained biases are not supported"),
    "fan_in_fan_out": ((False, None), "transposed matrices are not supported"),
    "modules_to_save": ((None, []), "whole modules beside the adapter are not supported"),
    "trainable_token_indices": ((None, []), "trained tokens are not supported"),
    "target_parameters": ((None, []), "only linear layers are supported"),
    "layer_replication": ((None, []), "repeated layers are not supported"),
    "init_lora_weights": (
        (True, False, None, "gaussian", "orthogonal", "eva", "mica"),
        "such an adapter belongs to a base that was changed before training",
    ),
}

# What else a configuration may say: it changes nothing of what is merged.
_HARMLESS = frozenset(
    [
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "megatron_core",
        "ensure_weight_tying",
        "eva_config",
        "qalora_group_size",
    ]
)
_MOST_SECONDS = 1.0  # for a pattern and a name


@dataclass(frozen=True)
class AdaptedTensor:
    """A matrix of the base with what the adapter adds to it: W + scale·B·A, in float32. Read as a `StoredTensor` is."""

    base: StoredTensor
    scale: float
    a_RI: np.ndarray
    b_OR: np.ndarray

    @property
    def file(self) -> Path:
        return self.base.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def rows_at_a_time(self) -> int:
        """How many rows are worth computing at once."""
        return self.base.rows_at_a_time

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """These rows, by default all."""
        added = self.b_OR[start:stop] @ self.a_RI
        with np.errstate(over="ignore", invalid="ignore"):  # whoever reads them looks for NaN and infinities
            return self.base.read(start, stop).astype(np.float32) + np.float32(self.scale) * added


def adapted(
    folder: Path, cfg: ModelConfig, stored: Mapping[str, StoredTensor], adapter: Path
) -> dict[str, StoredTensor | AdaptedTensor]:
    """The tensors of a base, the Hugging Face folder `folder`, with the adapter of another folder merged in.

    Raises a ValueError that names what is damaged, does not fit the base, or is more than LoRA on plain linear layers.
    """
    shapes = tensor_shapes(cfg)
    path = adapter / CONFIG
    raw = read_json(path)
    for key, (accepted, reason) in _NEUTRAL.items():
        if raw.get(key) not in accepted:
            raise ValueError(f"{path}: {key} is {values.shown(raw.get(key))}: {reason}")
    for key in raw.keys() - _NEUTRAL.keys() - _HARMLESS:
        if raw[key]:
            raise ValueError(
                f"{path}: {values.named(key)} is {values.shown(raw[key])}: what this changes is not known"
            )
    pairs, whole = _tensors(adapter)
    for name, array in whole.items():
        own = stored.get(name, stored[EMBED]).read()
        if own.shape != array.shape or not np.array_equal(own.astype(array.dtype), array):
            raise ValueError(
                f"{adapter}: {name} is there whole, unlike the base's: trained embeddings are not supported"
            )
    faults = []
    merged: dict[str, StoredTensor | AdaptedTensor] = {**stored}
    for module, (a_RI, b_OR) in pairs.items():
        name = f"{_TEXT_MODEL.sub('model.', module)}.weight"
        plain = name in shapes and name != EMBED and len(shapes[name]) == 2
        if not plain:
            tied = name == UNEMBED
            faults.append(f"unexpected: {module} is no linear layer of the base" + ", which is tied" * tied)
        elif (b_OR.shape[0], a_RI.shape[1]) != shapes[name] or b_OR.shape[1] != a_RI.shape[0]:
            sizes = f"{list(b_OR.shape)} times {list(a_RI.shape)}"
            faults.append(f"wrong shape: {module} is {sizes}, the base has {list(shapes[name])}")
        else:
            scale = _scale(raw, module, len(a_RI), path)
            merged[name] = AdaptedTensor(stored[name], scale, *(x.astype(np.float32) for x in (a_RI, b_OR)))
    if faults:
        raise ValueError(f"{adapter}: the adapter does not fit {folder}{listed(faults)}")
    return merged


def fingerprint(adapter: Path) -> str:
    """SHA-256 of its files."""
    digest = hashlib.sha256()
    for name in (CONFIG, *_FILES):
        if is_there(adapter / name):
            with (adapter / name).open("rb") as file:
                digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _tensors(adapter: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """((A, B) of each module by its name in the base, matrices of the base that are there whole)."""
    file = adapter / _FILES[0]
    if is_there(file):
        places = read_header(file)
        kinds = {name: DTYPES.get(place.dtype, place.dtype) for name, place in places.items()}
        if empty := [name for name, place in places.items() if len(place.shape) != 2 or 0 in place.shape]:
            raise _no_part(file, empty[0], places[empty[0]].shape)
        tensors = {name: place.read() for name, place in places.items() if place.dtype in DTYPES}
    else:
        file = adapter / _FILES[1]
        tensors = read_pth(file)
        kinds = {name: array.dtype for name, array in tensors.items()}
    if wrong := [name for name, kind in kinds.items() if kind not in DTYPES.values()]:
        raise ValueError(f"{file}: {wrong[0]} is of type {kinds[wrong[0]]}, which is no plain weight")
    parts: dict[str, dict[str, np.ndarray]] = {}
    whole = {}
    for name, array in tensors.items():
        if base := _WHOLE.fullmatch(name):
            whole[f"{base['module']}.weight"] = array
            continue
        match = _TENSOR.fullmatch(name)
        if match is None or array.ndim != 2 or 0 in array.shape:
            raise _no_part(file, name, array.shape)
        parts.setdefault(match["module"], {})[match["part"]] = array
    if alone := [module for module, both in parts.items() if len(both) < 2]:
        raise ValueError(
            f"{file}: {alone[0]} has a lora_{next(iter(parts[alone[0]]))} alone; the file is incomplete"
        )
    if not parts:
        raise ValueError(f"{file}: there is no tensor in it")
    return {module: (both["A"], both["B"]) for module, both in parts.items()}, whole


def _no_part(file: Path, name: str, shape: Sequence[int]) -> ValueError:
    return ValueError(
        f"{file}: {name} {list(shape)} is not the A or the B of LoRA on a linear layer; nothing else is supported"
    )


def _scale(raw: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    """alpha / r, or alpha / √r where it is rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732), of this module."""
    said = _of_module(raw, "rank_pattern", module, "r", path)
    if said != rank:
        raise ValueError(
            f"{path}: {module} has the rank {said:g}, but its tensors have {rank}; make them agree"
        )
    alpha = _of_module(raw, "alpha_pattern", module, "lora_alpha", path)
    return alpha / (math.sqrt(rank) if values.flag(raw, "use_rslora", path) else rank)


def _of_module(raw: Mapping[str, Any], patterns: str, module: str, default: str, path: Path) -> float:
    """What the first pattern that fits a module's name, or the end of it, says of it; else what is said of all."""
    table = values.table(raw, patterns, path)
    for pattern in table:
        try:
            fits = regex.match(rf"(.*\.)?({pattern})$", module, timeout=_MOST_SECONDS)
        except (regex.error, OverflowError, RecursionError, TimeoutError) as error:
            message = f"{path}: {patterns} has {values.shown(pattern)}, which is no expression ({error})"
            raise ValueError(message) from None
        if fits:
            return values.positive(table, pattern, f"{path}: {patterns}")
    return values.positive(raw, default, path)
