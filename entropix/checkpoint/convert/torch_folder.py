"""Hugging Face folders whose tensors are in pytorch_model.bin, opened as foreign checkpoints."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from entropix.checkpoint.convert.folder import Foreign, common_dtype, copy_texts, misfits
from entropix.checkpoint.convert.values import Values
from entropix.checkpoint.families import of_text
from entropix.checkpoint.hf_folder import read_config, stop_token_ids
from entropix.checkpoint.pth_file import read_pth
from entropix.checkpoint.tensors import DTYPES, EMBED, UNEMBED, listed, of_text_model, tensor_shapes
from entropix.checkpoint.weight_files import beside, check_file
from entropix.files import read_json

_SINGLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_DERIVED = ".rotary_emb.inv_freq"  # a buffer in old checkpoints; it follows from the config


def is_torch_folder(folder: Path) -> bool:
    """Whether a folder's tensors are in pytorch_model.bin, and in no safetensors file."""
    torch_files = (folder / _SINGLE).exists() or (folder / _INDEX).exists()
    return torch_files and (folder / "config.json").exists() and not any(folder.glob("*.safetensors"))


def open_torch_folder(folder: Path, chat_template: str | None = None) -> Foreign:
    """The checkpoint in such a folder. Raises a ValueError for one that is incomplete, damaged, or of no family
    that is known."""
    cfg = read_config(folder)
    tensors = of_text_model(_tensors(folder))
    tensors = {name: array for name, array in tensors.items() if not name.endswith(_DERIVED)}
    if cfg.n_layers > len(tensors):  # and so too many to list what is missing
        raise ValueError(
            f"{folder}: config.json implies {cfg.n_layers} layers, but there are only {len(tensors)} tensors"
        )
    if cfg.tied_embeddings and UNEMBED in tensors and EMBED in tensors:
        if not np.array_equal(tensors[UNEMBED], tensors[EMBED]):
            raise ValueError(
                f"{folder}: config.json says tie_word_embeddings, but {UNEMBED} differs from {EMBED}"
            )
        del tensors[UNEMBED]
    shapes = tensor_shapes(cfg)
    found = {name: array.shape for name, array in tensors.items()}
    if faults := misfits(shapes, found, {name: name for name in shapes}):
        raise ValueError(f"{folder}: the tensors do not fit config.json{listed(faults)}")
    for name in shapes:
        if tensors[name].dtype not in DTYPES.values():
            raise ValueError(f"{folder}: {name} is of type {tensors[name].dtype}, which is no plain weight")
    path = folder / "config.json"
    config = Values(path, of_text(read_json(path), path))
    return Foreign(
        source=folder,
        config=cfg,
        dtype=common_dtype(tensors[name].dtype for name, shape in shapes.items() if len(shape) > 1),
        tensor=lambda name: tensors[name],
        bos_id=config.whole("bos_token_id", None, low=0, high=cfg.vocab_size - 1),
        stop_ids=stop_token_ids(folder),
        write_vocabulary=lambda target: copy_texts(folder, target, chat_template),
        config_json={key: value for key, value in config.raw.items() if key != "dtype"}
        if cfg.switches
        else None,
    )


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder, mapped into memory."""
    if not (index := folder / _INDEX).exists():
        return read_pth(folder / _SINGLE)
    check_file(index)
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: expected an object 'weight_map' from tensor names to file names")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        for name, array in read_pth(beside(index, file)).items():
            if name in tensors:
                raise ValueError(f"{folder}: the tensor {name} is in two files")
            tensors[name] = array
    return tensors
