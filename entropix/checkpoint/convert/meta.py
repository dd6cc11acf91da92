"""Meta's original folders (params.json, consolidated.*.pth, tokenizer.model), opened as foreign checkpoints.

Large models come in several shards, one for each GPU of a tensor-parallel run: matrices are cut by rows or by
columns, norms are repeated. Which of these holds for a tensor follows from the shapes.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from entropix.checkpoint.convert.folder import Foreign, half_split, misfits, spelling, write_tokenizer_config
from entropix.checkpoint.convert.values import Values, named, shown
from entropix.checkpoint.hf_folder import END_TOKENS
from entropix.checkpoint.pth_file import read_pth
from entropix.checkpoint.tensors import DTYPES, EMBED, FINAL_NORM, UNEMBED, listed, tensor_shapes
from entropix.checkpoint.vocabulary.files import read_tokenizer_model
from entropix.checkpoint.weight_files import check_file
from entropix.config import ModelConfig, RopeScaling
from entropix.files import read_json

Shard = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


class Params(NamedTuple):
    """What params.json says of the architecture."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int  # -1: the number of rows of the embedding
    norm_eps: float
    rope_theta: float
    use_scaled_rope: bool
    rope_scaling_factor: float | None


_ENDS = {EMBED: "tok_embeddings.weight", FINAL_NORM: "norm.weight", UNEMBED: "output.weight"}
_LAYER_PARTS = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
_DERIVED = "rope.freqs"  # a buffer that Llama 1 and 2 carry; it follows from params.json

_UNDERSTOOD = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor"),
    *("multiple_of", "ffn_dim_multiplier"),  # the feed-forward width is read off the tensors
    *("max_seq_len", "max_batch_size", "model_parallel_size"),  # of serving, not of the model
}


def open_meta(
    folder: Path, chat_template: str | None = None, read_shard: Callable[[Path], Shard] = read_pth
) -> Foreign:
    """The checkpoint in one of Meta's folders.

    Meta ships no chat template; `chat_template` is carried along when given. Raises a ValueError for a
    folder that is incomplete, damaged, or with parameters or tensors that are not understood in full.
    """
    params = _params(folder / "params.json")
    special = _special_tokens(folder / "tokenizer.model")
    shards = _shards(folder, read_shard)
    cfg = _config(folder, params, shards, is_llama3="<|begin_of_text|>" in special)
    if (largest := max(special.values())) >= cfg.vocab_size:
        raise ValueError(
            f"{folder}: tokenizer.model has tokens up to {largest}, but the embedding has {cfg.vocab_size} rows; these "
            "files do not belong together"
        )
    expected, names = tensor_shapes(cfg), spelling(cfg, _ENDS, "layers", _LAYER_PARTS)
    spelled = {names[name]: shape for name, shape in expected.items()}
    found = {
        name: _merged_shape(array.shape, spelled.get(name, array.shape), len(shards))
        for name, array in shards[0].items()
        if not (cfg.tied_embeddings and name == names[UNEMBED])
    }
    if faults := misfits(expected, found, names):
        raise ValueError(f"{folder}: the tensors do not fit params.json{listed(faults)}")

    def tensor(name: str) -> np.ndarray:
        parts = [shard[names[name]] for shard in shards]
        return half_split(name, _merge(parts, expected[name], f"{folder}: {names[name]}"), cfg)

    tokens = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    if "<|begin_of_text|>" in special:
        end = "<|eot_id|>" if chat_template else "<|end_of_text|>"
        tokens = {"bos_token": "<|begin_of_text|>", "eos_token": end}

    def write_vocabulary(target: Path) -> None:
        shutil.copyfile(folder / "tokenizer.model", target / "tokenizer.model")
        write_tokenizer_config(target, tokens, chat_template, add_bos=True)

    dtypes = {shards[0][names[name]].dtype.name for name, shape in expected.items() if len(shape) > 1}
    return Foreign(
        source=folder,
        config=cfg,
        dtype=dtypes.pop() if len(dtypes) == 1 else "float32",
        tensor=tensor,
        bos_id=special[tokens["bos_token"]],
        stop_ids=tuple(sorted(special[end] for end in (*END_TOKENS, "</s>") if end in special)),
        write_vocabulary=write_vocabulary,
    )


def _params(path: Path) -> Params:
    """The architecture in params.json, all of it understood. Absent keys have the defaults of Meta's code."""
    check_file(path)
    raw = read_json(path)
    raw = raw.get("model", raw)  # newer files nest it
    if not isinstance(raw, Mapping):
        raise ValueError(f"{path}: model must be an object, got {shown(raw)}")
    if unknown := sorted(raw.keys() - _UNDERSTOOD):
        raise ValueError(
            f"{path}: {named(unknown[0])} is {shown(raw[unknown[0]])}: this variant is not supported"
        )
    values = Values(path, raw)
    n_heads = values.whole("n_heads")
    params = Params(
        dim=values.whole("dim"),
        n_layers=values.whole("n_layers"),
        n_heads=n_heads,
        n_kv_heads=values.whole("n_kv_heads", n_heads),
        vocab_size=values.whole("vocab_size", -1, low=-1),
        norm_eps=values.number("norm_eps"),
        rope_theta=values.number("rope_theta", 10_000.0),
        use_scaled_rope=values.flag("use_scaled_rope", False),
        rope_scaling_factor=values.number("rope_scaling_factor", None),
    )
    if params.dim % n_heads:
        raise ValueError(f"{path}: dim ({params.dim}) must be a multiple of n_heads ({n_heads})")
    if params.rope_scaling_factor is not None and not params.use_scaled_rope:
        raise ValueError(
            f"{path}: rope_scaling_factor is {params.rope_scaling_factor:g}, but use_scaled_rope is not true; one of "
            "them is wrong"
        )
    return params


def _special_tokens(path: Path) -> dict[str, int]:
    """Ids of the special tokens that go with a tokenizer.model."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; it belongs to Meta's folder")
    check_file(path)
    with path.open("rb") as stream:
        if stream.read(1) == b"\n":  # the first protobuf tag of a SentencePiece file: Llama 1 or 2
            return {"<s>": 1, "</s>": 2}
    return dict(read_tokenizer_model(path).special)


def _shards(folder: Path, read_shard: Callable[[Path], Shard]) -> list[Shard]:
    """The shards in order, with the same tensors in the same shapes."""
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise ValueError(f"{folder}: no consolidated.*.pth here")
    shards: list[Shard] = [{n: a for n, a in read_shard(f).items() if n != _DERIVED} for f in files]
    for file, shard in zip(files, shards, strict=True):
        for name, array in shard.items():
            if array.dtype not in DTYPES.values():
                raise ValueError(f"{file}: {name} is of type {array.dtype}, which is no plain weight")
        if {n: a.shape for n, a in shard.items()} != {n: a.shape for n, a in shards[0].items()}:
            raise ValueError(f"{file}: its tensors or their shapes differ from those of {files[0].name}")
    return shards


def _config(folder: Path, params: Params, shards: Sequence[Shard], is_llama3: bool) -> ModelConfig:
    """What params.json says, with the widths it leaves to the tensors."""
    first, width = shards[0], params.dim
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if name not in first:
            raise ValueError(f"{folder}: there is no tensor {name}")
        if first[name].ndim != 2:
            raise ValueError(
                f"{folder}: {name} must have two dimensions, it is of shape {list(first[name].shape)}"
            )
    rows, columns = first["tok_embeddings.weight"].shape
    vocab_size = rows * len(shards) if columns == width else rows  # Llama 1 and 2 cut columns, 3 cuts rows
    if params.vocab_size not in (-1, vocab_size):
        raise ValueError(
            f"{folder}: vocab_size is {params.vocab_size}, but the embedding has {vocab_size} rows"
        )
    if params.n_layers > len(first):  # and so too many to list what is missing
        raise ValueError(f"{folder}: n_layers is {params.n_layers}, but there are only {len(first)} tensors")
    tied = all(
        "output.weight" not in shard or np.array_equal(shard["output.weight"], shard["tok_embeddings.weight"])
        for shard in shards
    )
    try:
        return ModelConfig(
            n_layers=params.n_layers,
            dim=width,
            n_heads=params.n_heads,
            n_kv_heads=params.n_kv_heads,
            head_dim=width // params.n_heads,
            ffn_dim=first["layers.0.feed_forward.w1.weight"].shape[0] * len(shards),
            vocab_size=vocab_size,
            context_length=_context_length(params, is_llama3),
            rope_theta=params.rope_theta,
            norm_eps=params.norm_eps,
            tied_embeddings=tied,
            rope_scaling=_rope_scaling(params, tied),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _context_length(params: Params, is_llama3: bool) -> int:
    """The published length of the generation, which params.json does not hold but betrays."""
    if is_llama3:
        return 131_072 if params.use_scaled_rope else 8192
    if params.rope_theta > 10_000:  # Code Llama
        return 16_384
    return 2048 if params.norm_eps == 1e-6 else 4096  # Llama 1; Llama 2


def _rope_scaling(params: Params, tied: bool) -> RopeScaling | None:
    """Llama 3.1 and 3.3 divide by 8; the text models of 3.2, which alone tie their embeddings, by 32."""
    if not params.use_scaled_rope:
        return None
    factor = params.rope_scaling_factor or (32.0 if tied else 8.0)
    return RopeScaling(factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=8192)


def _merged_shape(shape: Shape, wanted: Shape, n_shards: int) -> Shape:
    """`wanted`, if shards of `shape` make it up along one axis; otherwise `shape`."""
    for axis, length in enumerate(shape):
        if (*shape[:axis], length * n_shards, *shape[axis + 1 :]) == wanted:
            return wanted
    return shape


def _merge(parts: Sequence[np.ndarray], shape: Shape, name: str) -> np.ndarray:
    """The tensor of `shape`: repeated in every shard, or cut along the one axis on which they are shorter."""
    short = [axis for axis, length in enumerate(parts[0].shape) if length != shape[axis]]
    if short:
        return np.concatenate(parts, axis=short[0])
    if not all(np.array_equal(part, parts[0]) for part in parts[1:]):
        raise ValueError(f"{name} is not the same in every shard")
    return parts[0]
