"""Writing a checkpoint folder: what a foreign format must provide, and the one way it reaches the disk."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from entropix.checkpoint.hf_folder import TEMPLATES, VOCABULARY, write_config
from entropix.checkpoint.tensors import DTYPES, tensor_shapes
from entropix.checkpoint.weight_files import check_file
from entropix.config import ModelConfig
from entropix.files import make_folder, read_json, write_json
from entropix.paths import is_complete

SHARD_BYTES = 2 * 1024**3
# What helps where a GGUF file does not say something of its model.
WITH_FOLDER = "give the model's own folder too, which says it (--hf-folder DIR; its weights are not needed)"

_CODES = {dtype.name: code for code, dtype in DTYPES.items()}  # float32 -> F32


class Foreign(NamedTuple):
    """A checkpoint in another format, opened and checked."""

    source: Path
    config: ModelConfig
    dtype: str  # the narrowest that holds every matrix exactly
    tensor: Callable[[str], np.ndarray]  # Hugging Face name -> [out, in], in Hugging Face's rotary layout
    bos_id: int | None
    stop_ids: tuple[int, ...]
    write_vocabulary: Callable[[Path], None]  # writes the tokenizer's files into a folder
    model_type: str = "llama"  # one of `families`
    config_json: Mapping[str, Any] | None = None  # of a source that has one already, and keeps it


def write_folder(foreign: Foreign, destination: Path, dtype: str | None = None, force: bool = False) -> None:
    """Writes the checkpoint as a Hugging Face folder: complete, or not at all.

    Matrices have `dtype` (default: the narrowest exact one), norms float32. One tensor at a time is in
    memory.
    """
    check_destination(destination, force)
    dtype = dtype or foreign.dtype
    if dtype not in _CODES:
        raise ValueError(f"dtype must be one of {', '.join(_CODES)}, got {dtype!r}")
    partial = partial_folder(destination)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(destination.parent, "weights")
    partial.mkdir()
    try:
        foreign.write_vocabulary(partial)
        ids = {"bos_token_id": foreign.bos_id, "eos_token_id": list(foreign.stop_ids)}
        write_json(partial / "generation_config.json", ids)
        if foreign.config_json is None:
            said = dtype, foreign.bos_id, foreign.stop_ids, foreign.model_type
            write_config(partial / "config.json", foreign.config, *said)
        else:
            write_json(partial / "config.json", {**foreign.config_json, **ids, "torch_dtype": dtype})
        _write_tensors(foreign, partial, DTYPES[_CODES[dtype]])
        replace_folder(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_folder(destination: Path) -> Path:
    """Where a folder grows until it is complete: hidden, and on the same file system."""
    return destination.with_name(f".{destination.name}.partial")


def check_destination(destination: Path, force: bool) -> None:
    """Raises a ValueError when something is in the way that may not be replaced."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not is_complete(destination) or not any(destination.glob("*.safetensors")):
        raise ValueError(f"{destination} exists and is no weights folder; choose another destination")
    if not force:
        raise ValueError(f"{destination} is there already; --force replaces it")


def replace_folder(source: Path, destination: Path) -> None:
    """Renames `source` to `destination`, in place of what was there."""
    former = destination.with_name(f".{destination.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if destination.exists():
        destination.rename(former)
    source.rename(destination)
    shutil.rmtree(former, ignore_errors=True)


def copy_texts(folder: Path, target: Path, chat_template: str | None) -> None:
    """Copies the vocabulary's files of a Hugging Face folder, and its chat template unless another is given."""
    for pattern in VOCABULARY if chat_template is not None else (*VOCABULARY, *TEMPLATES):
        for file in folder.glob(pattern):
            check_file(file)
            copy = target / file.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    if chat_template is not None:
        file = target / "tokenizer_config.json"
        values = read_json(file) if file.exists() else {}
        write_json(file, values | {"chat_template": chat_template})


def common_dtype(dtypes: Iterable[np.dtype]) -> str:
    """The type of all matrices, or float32 where they differ."""
    names = {dtype.name for dtype in dtypes}
    return names.pop() if len(names) == 1 else "float32"


def write_tokenizer_config(
    folder: Path, tokens: Mapping[str, str], chat_template: str | None, add_bos: bool
) -> None:
    """Writes tokenizer_config.json: the special `tokens` (`bos_token`, ...) and the chat template, if any."""
    template = {"chat_template": chat_template} if chat_template else {}
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": add_bos, **tokens, **template}
    write_json(folder / "tokenizer_config.json", values)


def spelling(
    cfg: ModelConfig, ends: Mapping[str, str], layer: str, parts: Mapping[str, str]
) -> dict[str, str]:
    """Hugging Face tensor name -> the name in a format whose layers are called `layer`.0, `layer`.1, ...

    ends: those of no layer. parts: those of a layer, without `.weight` or `.bias`, which all formats have.
    """
    layers = [name.split(".", 3) for name in tensor_shapes(cfg) if name not in ends]
    divided = [(i, *part.rsplit(".", 1)) for _, _, i, part in layers]
    return {
        **ends,
        **{
            f"model.layers.{i}.{part}.{kind}": f"{layer}.{i}.{parts[part]}.{kind}"
            for i, part, kind in divided
        },
    }


def half_split(name: str, values: np.ndarray, cfg: ModelConfig) -> np.ndarray:
    """Queries' and keys' rows from interleaved to half-split rotary order; other tensors as they are.

    Meta and GGUF rotate rows (0, 1), (2, 3), ... of a head together, Hugging Face (0, H/2), (1, H/2 + 1), ...
    """
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    rows, width = values.shape
    pairs = values.reshape(rows // cfg.head_dim, cfg.head_dim // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def misfits(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], spelled: Mapping[str, str]
) -> list[str]:
    """Every tensor that is missing, unexpected or misshapen, one line each.

    `expected` has Hugging Face names, `found` those of the file, `spelled` leads from the former to the
    latter.
    """
    wanted = {spelled[name]: list(shape) for name, shape in expected.items()}
    faults = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    for name, shape in found.items():
        if name not in wanted:
            faults.append(f"unexpected: {name} {list(shape)}")
        elif list(shape) != wanted[name]:
            faults.append(f"wrong shape: {name} is {list(shape)}, expected {wanted[name]}")
    return faults


def _write_tensors(foreign: Foreign, folder: Path, matrix_dtype: np.dtype) -> None:
    """Streams every tensor into files of at most SHARD_BYTES, with an index when there are several."""
    shapes = tensor_shapes(foreign.config)
    dtypes = {
        name: matrix_dtype if len(shape) > 1 else np.dtype(np.float32) for name, shape in shapes.items()
    }
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    shards = list(_shards(sizes))
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("converting", total=sum(sizes.values()))
        for file, names in zip(files, shards, strict=True):
            with (folder / file).open("wb") as stream:
                stream.write(_header(names, shapes, dtypes, sizes))
                for name in names:
                    values = _cast(foreign.tensor(name), dtypes[name], f"{foreign.source}: {name}")
                    assert values.shape == shapes[name]
                    stream.write(values.view(np.uint8).data)
                    progress.advance(task, sizes[name])
    if len(shards) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)


def _shards(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names, in order, split so that no part exceeds SHARD_BYTES unless by a single tensor."""
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if names and filled + size > SHARD_BYTES:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _header(
    names: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, np.dtype],
    sizes: Mapping[str, int],
) -> bytes:
    """The beginning of a safetensors file: 8 bytes of length (little endian), then JSON and padding."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it, transformers refuses the file
    offset = 0
    for name in names:
        header[name] = {
            "dtype": _CODES[dtypes[name].name],
            "shape": list(shapes[name]),
            "data_offsets": [offset, offset + sizes[name]],
        }
        offset += sizes[name]
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Contiguous values in `dtype`, all finite."""
    with np.errstate(over="ignore"):  # what overflows float16 is reported here, by name
        cast = np.ascontiguousarray(values, dtype)
    if not np.isfinite(cast).all():
        cause = f"does not fit {dtype.name}; float32 and bfloat16 reach further"
        raise ValueError(f"{name} {cause if np.isfinite(values).all() else 'has NaN or infinite values'}")
    return cast
