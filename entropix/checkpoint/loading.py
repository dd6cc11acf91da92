"""A model, whole: configuration, weights, tokenizer, chat template and stop tokens from one checkpoint folder."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from entropix import backend, sharding
from entropix.checkpoint import chat, hf_folder, load_weights, tokenizer
from entropix.checkpoint.special_tokens import read_special_tokens
from entropix.checkpoint.values import named
from entropix.config import ModelConfig
from entropix.model import weights
from entropix.paths import DEFAULT_MODEL, weights_folder
from entropix.showing import shown

DTYPES = ("float32", "bfloat16", "float16", "int8")


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
    adapter: Path | None = None  # the folder of the one that was merged in

    @cached_property
    def missing_ids(self) -> tuple[int, ...]:
        """Ids below `config.vocab_size` that no token has, ascending: gaps of the vocabulary, and the rows beyond its
        end of an embedding that is padded. Their logits are what training left there; they mean nothing."""
        return (*self.tokenizer.missing_ids, *range(self.tokenizer.vocab_size, self.config.vocab_size))

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.resolve().name

    @property
    def template_args(self) -> Mapping[str, Any]:
        """What the chat template is given beside a conversation; see `with_template_args`."""
        return {} if self.chat_template is None else self.chat_template.arguments

    def with_template_args(self, arguments: Mapping[str, Any]) -> "Model":
        """The same model, whose chat template is given these names with their values: `{"enable_thinking": False}`.

        Raises a ValueError for what would do nothing or is no JSON value; see `chat.ChatTemplate.with_arguments`.
        """
        if not arguments:
            return self
        if self.chat_template is None:
            raise ValueError(
                f"template_args (--template-arg): {self.name} has no chat template that could read "
                f"{', '.join(map(named, arguments))}; leave it out"
            )
        return dataclasses.replace(self, chat_template=self.chat_template.with_arguments(arguments))

    def __repr__(self) -> str:
        """Its sizes, where it is, and where it came from."""
        cfg = self.config
        n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights))
        devices = (
            "one device"
            if self.mesh is None
            else f"{self.mesh.size} devices as {sharding.as_text(self.mesh)}"
        )
        return (
            f"Model {self.name!r}: {cfg.n_layers} layers of {cfg.n_heads} heads ({cfg.n_kv_heads} of keys), {cfg.dim} "
            f"wide, {cfg.vocab_size} tokens, context {cfg.context_length}\n"
            f"  {self.precision}, {n_bytes / 1e6:.0f} MB on {devices} ({jax.devices()[0].device_kind})\n"
            f"  from {self.folder}" + (f" with {self.adapter}" if self.adapter else "")
        )

    @property
    def dtype(self) -> jnp.dtype:
        """Of activations and of the cache."""
        return self.weights.embed_VD.dtype

    @property
    def precision(self) -> str:
        """The `dtype` that `load` takes: of the matrices."""
        is_int8 = isinstance(self.weights.layers[0].down, weights.Int8Matrix)
        return "int8" if is_int8 else str(self.dtype.name)


def check_model(model: object) -> None:
    """Raises a ValueError for what is no model, such as the name of one."""
    if not isinstance(model, Model):
        raise ValueError(f"model must be what entropix.load returns, got {shown(model)}")


def load(
    name_or_folder: str | Path = DEFAULT_MODEL,
    dtype: str | None = None,
    mesh: sharding.Shape | str | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """The model of a name below `weights/` or of a checkpoint folder.

    `dtype` is float32, bfloat16 or float16; by default float32 on the CPU, where it is the fastest, and bfloat16 on
    accelerators. int8 is that default with matrices in int8, for accelerators into whose memory they would not fit; on
    a CPU it is slower. `mesh` is the shape of the mesh of devices, like "data=2,model=4", by default that of
    `sharding.automatic`. `adapter` is the folder of a LoRA adapter (PEFT) that was trained on this model, and is merged
    into its matrices as they are read. Raises a ValueError that says what is missing or wrong in a folder, or that the
    mesh takes more devices than there are.
    """
    shape = sharding.read_shape(mesh) if isinstance(mesh, str) else mesh
    if not isinstance(shape, sharding.Shape | None):
        raise ValueError(f'mesh must be sizes like "data=2,model=4", or a sharding.Shape; got {shown(mesh)}')
    backend.check_devices()
    backend.warn_of_wrong_sums()
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    int8 = dtype == "int8"
    if dtype is None or int8:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    folder = weights_folder(name_or_folder)
    merged = None if adapter is None else Path(adapter)
    config = hf_folder.read_config(folder)
    devices = sharding.make_mesh(shape or sharding.automatic(config, jax.device_count()))
    thread = ThreadPoolExecutor(1)  # reading weights and building a tokenizer take about as long
    try:
        reading = thread.submit(load_weights.load, folder, config, jnp.dtype(dtype), devices, int8, merged)
        text = tokenizer.load_tokenizer(folder, config.vocab_size)
        check_vocabulary(folder, text, config)
        template = chat.load_chat_template(folder)
        tokens = text.special_tokens | text.added_tokens | _plain_end(folder, text)
        end_of_turn = chat.end_of_turn_id(template, text)
        stop_ids = {
            *hf_folder.stop_token_ids(folder, tokens),
            *([] if end_of_turn is None else [end_of_turn]),
        }
        hf_folder.check_stop_ids(folder, stop_ids, config.vocab_size)
        model = Model(
            folder=folder,
            config=sharding.widened(config, devices),
            tokenizer=text,
            chat_template=template,
            stop_ids=tuple(sorted(stop_ids)),
            weights=reading.result(),
            mesh=devices,
            adapter=merged,
        )
    finally:
        thread.shutdown(wait=False)  # a signal, or a fault of the tokenizer, does not wait for the weights
    return without_missing(model)


def _plain_end(folder: Path, text: tokenizer.Tokenizer) -> dict[str, int]:
    """The `eos_token` of a folder with its id, where it is a token like any other.

    Raises a ValueError where it is none.
    """
    small = read_special_tokens(folder)
    name = small.named.get("eos_token")
    if name is None or name in text.special_tokens or name in text.added_tokens:
        return {}
    if name.encode() not in text.texts:
        raise ValueError(f"{small.where['eos_token']}: eos_token {shown(name)} is no token of the vocabulary")
    return {name: text.texts.index(name.encode())}


def without_missing(model: Model) -> Model:
    """The model whose weights say which rows of the unembedding have no token, if there are such."""
    if not model.missing_ids:
        return model
    has_token_V = jnp.ones(model.config.vocab_size, bool).at[jnp.asarray(model.missing_ids)].set(False)
    if model.mesh is not None:
        place = sharding.dividing(has_token_V.shape, sharding.WEIGHTS["has_token_V"], model.mesh)
        has_token_V = jax.device_put(has_token_V, NamedSharding(model.mesh, place))
    whole = dataclasses.replace(model.weights, has_token_V=has_token_V)
    return dataclasses.replace(model, weights=whole)


def check_vocabulary(folder: Path, text: tokenizer.Tokenizer, config: ModelConfig) -> None:
    """Raises a ValueError that names the tokens for which the model has no row."""
    missing = set(text.missing_ids)
    beyond = [i for i in range(config.vocab_size, text.vocab_size) if i not in missing]
    if not beyond:
        return
    names = ", ".join(f"{text.token_bytes(i).decode(errors='replace')!r} ({i})" for i in beyond[:3])
    more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
    raise ValueError(
        f"{folder}: the tokenizer has the token{'s' * (len(beyond) > 1)} {names}{more}, but config.json has a "
        f"vocab_size of {config.vocab_size}, ids 0 to {config.vocab_size - 1}; tokens added to a tokenizer need rows "
        "in the embedding, so remove them from the tokenizer's files or take those that this model came with"
    )
