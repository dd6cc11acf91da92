"""Small checkpoint folders on disk, in Hugging Face's layout, from tensors of known values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from entropix.checkpoint.hf_folder import read_config
from entropix.checkpoint.tensors import tensor_shapes
from entropix.checkpoint.vocabulary.byte_level import CHAR_OF_BYTE
from entropix.config import ModelConfig

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write_config(folder: Path, **changes: Any) -> None:
    """config.json of the toy with changes; None removes a key."""
    values = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))


def random_tensors(cfg: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor a folder of `cfg` holds, float32, of values that bfloat16 and float16 hold exactly."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(-127, 128, shape) / 64).astype(np.float32)
        for name, shape in tensor_shapes(cfg).items()
    }


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], n_files: int = 1) -> None:
    """The tensors in one file, or dealt out over several with an index."""
    if n_files == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return
    files = [f"model-{i:05}-of-{n_files:05}.safetensors" for i in range(1, n_files + 1)]
    places = {name: files[i % n_files] for i, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor in a folder, through the safetensors library and not through ours."""
    return {
        name: array
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def assert_tensors(folder: Path, tensors: Mapping[str, np.ndarray], dtype: Any = np.float32) -> None:
    """The folder holds exactly these values: matrices in `dtype`, norms in float32."""
    found = read_tensors(folder)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == (np.float32 if array.ndim == 1 else dtype), name
        np.testing.assert_array_equal(found[name].astype(np.float32), array, err_msg=name)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tokenizer(folder: Path, chat_template: str | None = CHATML) -> None:
    """A tokenizer of the toy's 259 tokens: byte b has the id b; then endoftext, im_start and im_end."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    file = {
        "model": {"type": "BPE", "vocab": {CHAR_OF_BYTE[byte]: byte for byte in range(256)}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": 256 + i, "content": name, "special": True} for i, name in enumerate(special)],
    }
    (folder / "tokenizer.json").write_text(json.dumps(file))
    settings = {"eos_token": "<|im_end|>", "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_checkpoint(folder: Path, seed: int = 0, chat_template: str | None = CHATML, **changes: Any) -> Path:
    """A whole checkpoint: the toy, with changes to its config.json and weights of ordinary size."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, **changes)
    rng = np.random.default_rng(seed)
    tensors = {
        name: (rng.normal(0, shape[-1] ** -0.5, shape) if len(shape) == 2 else rng.uniform(0.5, 1.5, shape))
        for name, shape in tensor_shapes(read_config(folder)).items()
    }
    write_tensors(folder, {name: array.astype(np.float32) for name, array in tensors.items()})
    write_tokenizer(folder, chat_template)
    return folder
