"""A model, whole: configuration, weights, tokenizer, chat template and stop tokens from one checkpoint folder."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from entropix import sharding
from entropix.checkpoint import chat, hf_folder, load_weights, tokenizer
from entropix.config import ModelConfig
from entropix.model import weights
from entropix.paths import weights_folder

DEFAULT_MODEL = "smollm2-135m-instruct"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Model:
    """Everything that generation needs of a model."""

    folder: Path
    config: ModelConfig  # on a mesh that of `sharding.widened`
    weights: weights.Weights
    tokenizer: tokenizer.Tokenizer
    chat_template: chat.ChatTemplate | None
    stop_ids: tuple[int, ...]
    mesh: Mesh | None = None  # of the devices that hold it; None for a single one

    @property
    def dtype(self) -> jnp.dtype:
        """Of the matrices and of the cache."""
        return self.weights.embed_VD.dtype


def load(
    name_or_folder: str | Path = DEFAULT_MODEL,
    dtype: str | None = None,
    shape: sharding.Shape | None = None,
) -> Model:
    """The model of a name below `weights/` or of a checkpoint folder.

    `dtype` is float32, bfloat16 or float16; by default float32 on the CPU, where it is the fastest, and bfloat16 on
    accelerators. `shape` is that of the mesh of devices, by default `sharding.automatic`. Raises a ValueError that
    says what is missing or wrong in the folder, or that the mesh takes more devices than there are.
    """
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = weights_folder(name_or_folder)
    config = hf_folder.read_config(folder)
    mesh = sharding.make_mesh(shape or sharding.automatic(config, jax.device_count()))
    with ThreadPoolExecutor(1) as thread:  # reading weights and building a tokenizer take about as long
        reading = thread.submit(load_weights.load, folder, config, jnp.dtype(dtype), mesh)
        text = tokenizer.load_tokenizer(folder)
        if text.vocab_size > config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {text.vocab_size} tokens, but config.json has a vocabulary of "
                f"{config.vocab_size}; these files do not belong together"
            )
        return Model(
            folder=folder,
            config=sharding.widened(config, mesh),
            tokenizer=text,
            chat_template=chat.load_chat_template(folder),
            stop_ids=hf_folder.stop_token_ids(folder),
            weights=reading.result(),
            mesh=mesh,
        )
