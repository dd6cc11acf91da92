"""GGUF files of the families that llama.cpp has too, opened as foreign checkpoints.

Tensor names, the order of rotary rows and the metadata keys are those that llama.cpp's converter writes; what an
architecture has beside Llama is its row of `families`, since the two libraries call them by the same names.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from entropix.checkpoint import families
from entropix.checkpoint.convert.folder import WITH_FOLDER, Foreign, write_tokenizer_config
from entropix.checkpoint.convert.gguf_described import open_described
from entropix.checkpoint.convert.gguf_header import GgufTensor, read_parts
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
from entropix.checkpoint.convert.tokenizer_json import (
    TextEnds,
    write_sentence_pieces_json,
    write_tokenizer_json,
)
from entropix.checkpoint.convert.values import REQUIRED, Values, named, shown
from entropix.checkpoint.hf_folder import END_TOKENS
from entropix.checkpoint.tensors import UNEMBED
from entropix.config import ModelConfig, RopeScaling

_LLAMA = "llama"

_NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_LLAMA3_PRE = ("llama3", "llama-v3", "llama-bpe")
# What a vocabulary consists of, by `tokenizer.ggml.model`.
_PARTS = {"gpt2": ("tokens", "merges", "token_type", "pre"), "llama": ("tokens", "scores", "token_type")}

# Llama 3 was trained with this base for this many tokens. Whatever has its base and more tokens is a Llama 3.1, 3.2 or
# 3.3, or made of one, whose frequencies are scaled.
_LLAMA3_THETA, _LLAMA3_CONTEXT = 500_000.0, 8192


def open_gguf(path: Path, chat_template: str | None = None, hf_folder: Path | None = None) -> Foreign:
    """The checkpoint in a GGUF file; quantised tensors are dequantised to the float32 they stand for.

    `chat_template` replaces the file's own. `hf_folder` says what the model is, instead of the file's metadata; see
    `gguf_described`. Raises a ValueError for a file that is damaged, of another architecture, or with metadata, tensors
    or a vocabulary that are not understood in full.
    """
    raw, tensors = read_parts(path)
    meta = Values(path, raw)
    if hf_folder is not None:
        return open_described(meta, tensors, hf_folder, chat_template)
    architecture = architecture_of(meta)
    _check_understood(meta, architecture)
    cfg = _config(meta, tensors, architecture)
    read = [ROPE_FREQUENCIES] if architecture == _LLAMA else []  # others may not have it
    stored = {name: tensor for name, tensor in tensors.items() if name not in read}
    tensor, dtype = hf_tensors(path, stored, cfg, architecture, "the metadata")
    template = chat_template or meta.text("tokenizer.chat_template", None)
    write_vocabulary = _vocabulary_writer(meta, cfg.vocab_size, template)
    return Foreign(
        source=path,
        config=cfg,
        dtype=dtype,
        tensor=tensor,
        bos_id=_token_id(meta, "bos"),
        stop_ids=_stop_ids(meta),
        write_vocabulary=write_vocabulary,
        model_type=architecture,
    )


def _check_understood(meta: Values, name: str) -> None:
    """Raises for a file that does not say all of its model, and for what may change the model unawares.

    name: of its architecture.
    """
    path, architecture = meta.path, ARCHITECTURES[name]
    if not architecture.complete:
        raise ValueError(
            f"{path}: a file of the architecture {name} does not say all of its model; {WITH_FOLDER}"
        )
    for key, value in meta.raw.items():
        if not key.startswith(f"{name}."):
            continue
        short = key.removeprefix(f"{name}.")
        if short not in {*UNDERSTOOD, *architecture.numbers}:
            raise ValueError(
                f"{path}: {named(key)} is {shown(value)}; this may change the model in a way that only its own "
                "folder says (--hf-folder DIR; its weights are not needed)"
            )
        wanted = UNDERSTOOD.get(short)
        if wanted is not None and (type(value) is not type(wanted) or value != wanted):
            raise ValueError(f"{path}: {key} is {shown(value)}; only {wanted!r} is supported")


def _config(meta: Values, tensors: Mapping[str, GgufTensor], name: str) -> ModelConfig:
    """The architecture of a file of the one of this name."""
    path, row = meta.path, families.FAMILIES[name]
    width, n_heads = meta.whole(f"{name}.embedding_length"), meta.whole(f"{name}.attention.head_count")
    whole_heads = width % n_heads == 0
    head_dim = meta.whole(f"{name}.attention.key_length", width // n_heads if whole_heads else REQUIRED)
    for key in (f"{name}.attention.value_length", f"{name}.rope.dimension_count"):
        if (value := meta.whole(key, head_dim)) != head_dim:
            raise ValueError(f"{path}: {key} is {value}; only the head width, {head_dim}, is supported")
    vocab_size = n_embedding_rows(path, tensors)
    if (listed := meta.whole(f"{name}.vocab_size", vocab_size)) != vocab_size:
        raise ValueError(f"{path}: {name}.vocab_size is {listed}, the embedding has {vocab_size} rows")
    n_layers = meta.whole(f"{name}.block_count")
    check_layers(path, n_layers, tensors, f"{name}.block_count")
    numbers = {
        key: _shortest(meta.number(f"{name}.{short}")) for short, key in ARCHITECTURES[name].numbers.items()
    }
    theta = _shortest(meta.number(f"{name}.rope.freq_base", 10_000.0))
    context_length = meta.whole(f"{name}.context_length")
    factors = tensors.get(ROPE_FREQUENCIES)
    scaling = _rope_scaling(meta, factors, theta, head_dim, context_length) if name == _LLAMA else None
    fields: dict[str, Any] = {
        "n_layers": n_layers,
        "dim": width,
        "n_heads": n_heads,
        "n_kv_heads": meta.whole(f"{name}.attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "ffn_dim": meta.whole(f"{name}.feed_forward_length"),
        "vocab_size": vocab_size,
        "context_length": context_length,
        "rope_theta": theta,
        "norm_eps": _shortest(meta.number(f"{name}.attention.layer_norm_rms_epsilon")),
        "tied_embeddings": ENDS[UNEMBED] not in tensors,
        "rope_scaling": scaling,
        **families.switches(numbers, row, n_layers, path),
    }
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-5 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(
    meta: Values, tensor: GgufTensor | None, theta: float, head_dim: int, context_length: int
) -> RopeScaling | None:
    """The Llama 3 scaling whose division of each frequency is what `rope_freqs.weight` holds.

    Converters of before July 2024 left the tensor out. Its factor could only be guessed, so that such files are refused
    rather than read as unscaled.
    """
    path = meta.path
    if tensor is None:
        if theta == _LLAMA3_THETA and context_length > _LLAMA3_CONTEXT:
            raise ValueError(
                f"{path}: llama.context_length {context_length} with llama.rope.freq_base {theta:g} says Llama 3.1, "
                f"3.2 or 3.3, whose rotary frequencies are scaled, but there is no tensor {ROPE_FREQUENCIES} to say "
                "how; get a file that was converted after July 2024"
            )
        return None
    if tensor.shape != (head_dim // 2,):
        raise ValueError(
            f"{path}: {ROPE_FREQUENCIES} must have the shape [{head_dim // 2}], half the head width, got "
            f"{list(tensor.shape)}"
        )
    stored = tensor.values(path).astype(np.float64)
    if (stored == 1).all():
        return None
    if "llama.rope.scaling.type" in meta.raw:  # 'none', as nothing else is understood
        raise ValueError(
            f"{path}: llama.rope.scaling.type is 'none', but the tensor {ROPE_FREQUENCIES} scales the frequencies; one "
            "of them is wrong"
        )
    factor = float(stored.max())
    scaling = RopeScaling(_shortest(factor) if 1 <= factor <= 1e6 else 1.0, 1.0, 4.0)
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = np.clip((scaling.original_context_length / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - share) / scaling.factor + share)
    if not np.allclose(stored, expected, rtol=1e-4, atol=0):
        raise ValueError(
            f"{path}: {ROPE_FREQUENCIES} is not the Llama 3 scaling (frequency factors {low:g} and {high:g}, "
            f"original context {scaling.original_context_length}); other rotary scalings are not supported"
        )
    return scaling


def _token_id(meta: Values, name: str) -> int | None:
    """The id of a named token, which is in the vocabulary."""
    n_tokens = len(meta.texts("tokenizer.ggml.tokens"))
    return meta.whole(f"tokenizer.ggml.{name}_token_id", None, low=0, high=n_tokens - 1)


def _stop_ids(meta: Values) -> tuple[int, ...]:
    """What the metadata names as end of text, turn or message, and the control tokens known to be ends."""
    texts = meta.texts("tokenizer.ggml.tokens")
    kinds = meta.wholes("tokenizer.ggml.token_type", len(texts))
    named = [_token_id(meta, end) for end in ("eos", "eot", "eom")]
    tokens = zip(texts, kinds, strict=True)
    known = [i for i, (token, kind) in enumerate(tokens) if token in END_TOKENS and kind == TokenType.CONTROL]
    return tuple(sorted({i for i in (*named, *known) if i is not None}))


def _vocabulary_writer(meta: Values, n_rows: int, template: str | None) -> Callable[[Path], None]:
    """A function that writes tokenizer.json and tokenizer_config.json; what it needs is checked here.

    n_rows: of the embedding, which are at least as many as there are tokens.
    """
    path = meta.path
    kind = meta.text("tokenizer.ggml.model", None)
    if kind not in _PARTS:
        raise ValueError(
            f"{path}: tokenizer.ggml.model is {shown(kind)}; only byte-level BPE, 'gpt2', and SentencePiece, 'llama', "
            f"can be carried over exactly; {WITH_FOLDER}"
        )
    for name in _PARTS[kind]:
        if meta.raw.get(f"tokenizer.ggml.{name}") is None:
            raise ValueError(f"{path}: no tokenizer.ggml.{name}; the vocabulary is incomplete")
    texts = meta.texts("tokenizer.ggml.tokens")
    kinds = meta.wholes("tokenizer.ggml.token_type", len(texts))
    if len(texts) > n_rows:
        raise ValueError(
            f"{path}: tokenizer.ggml.tokens lists {len(texts)} tokens, but the embedding has {n_rows} rows"
        )
    ids = {name: _token_id(meta, key) for name, key in _NAMED_TOKENS.items()}
    write_json: Callable[[Path, TextEnds], None]
    if kind == "gpt2":
        merges, pre = meta.texts("tokenizer.ggml.merges"), meta.text("tokenizer.ggml.pre")
        add_bos = pre in _LLAMA3_PRE

        def write_json(target: Path, ends: TextEnds) -> None:
            write_tokenizer_json(target, texts, merges, kinds, pre, ends)
    else:
        scores = meta.floats("tokenizer.ggml.scores", len(texts))
        with_space = meta.flag("tokenizer.ggml.add_space_prefix", True)
        add_bos = True

        def write_json(target: Path, ends: TextEnds) -> None:
            write_sentence_pieces_json(target, texts, scores, kinds, with_space, ends)

    # llama.cpp puts the first token of a text before those of Llama 1, 2 and 3 unless the file says otherwise.
    add_bos = meta.flag("tokenizer.ggml.add_bos_token", add_bos)

    def write(folder: Path) -> None:
        try:
            write_json(folder / "tokenizer.json", TextEnds(ids["bos_token"], ids["eos_token"], add_bos))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        named = {name: texts[i] for name, i in ids.items() if i is not None}
        write_tokenizer_config(folder, named, template, add_bos)

    return write
