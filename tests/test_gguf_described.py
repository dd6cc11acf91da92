"""GGUF files of models that their Hugging Face folders describe: the tensors of the one, all else of the other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import foreign
import numpy as np
import pieces
import pytest
import toy

import entropix
from entropix import files
from entropix.checkpoint import hf_folder
from entropix.checkpoint.convert import convert
from entropix.checkpoint.tokenizer import load_tokenizer

SOFT = {"query_pre_attn_scalar": 9, "sliding_window": 4, "head_dim": 16}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.5],
    "long_factor": [1.0, 3.0, 9.0],
    "rope_theta": 10_000.0,
}
PARTLY = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 256,
    "partial_rotary_factor": 0.75,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {**SOFT, "num_hidden_layers": 3, "attn_logit_softcapping": 1.5}),
    "gemma3": ("gemma3", {"model_type": "gemma3_text", **SOFT, "num_hidden_layers": 7}),
    "phi3": ("phi3", {"tie_word_embeddings": False, "sliding_window": 4}),
    "phi3, partly rotated": ("phi3", {**PARTLY, "rope_parameters": LONGROPE, "num_key_value_heads": 1}),
    "mistral": ("llama", {"model_type": "mistral", "sliding_window": 4}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 0, 1, 1, 1]}),
}
TOKENS = [*foreign.TOKENS[:256], "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# What no file is read by alone.
VOCABULARY = {
    "tokenizer.ggml.pre": "smaug-bpe",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 256 + [3] * 3,
}


def written(
    folder: Path,
    architecture: str,
    told: dict[str, Any],
    change: Callable[[foreign.Tensors], None] = lambda tensors: None,
    **metadata: Any,
) -> tuple[Path, Path]:
    """A Hugging Face folder, and a GGUF file of its tensors, with a change of these and of metadata (__ is a dot)."""
    source = folders.write_checkpoint(folder / "source", **{"model_type": architecture, **told})
    cfg = hf_folder.read_config(source)
    tensors = foreign.gguf_tensors(folders.read_tensors(source), cfg, architecture)
    if cfg.rope_divisors:
        tensors["rope_factors_short.weight"] = np.array(cfg.rope_divisors, np.float32)
        tensors["rope_factors_long.weight"] = np.array(cfg.rope_long_divisors, np.float32)
    raw = files.read_json(source / "config.json")
    numbers = {
        "context_length": raw["max_position_embeddings"],
        "rope.dimension_count": cfg.rotary_dim or cfg.head_dim,
        "attention.sliding_window": cfg.sliding_window or None,
        "attn_logit_softcapping": cfg.attention_softcap or None,
        "final_logit_softcapping": cfg.logits_softcap or None,
    }
    said = foreign.gguf_metadata(cfg, architecture) | VOCABULARY
    said |= {f"{architecture}.{key}": value for key, value in numbers.items() if value is not None}
    said |= {key.replace("__", "."): value for key, value in metadata.items()}
    change(tensors)
    foreign.write_gguf(folder / "model.gguf", tensors, said, architecture=architecture)
    return source, folder / "model.gguf"


def without_weights(source: Path) -> Path:
    """A copy of the folder, without what is large in it."""
    return Path(
        shutil.copytree(source, source.with_name("described"), ignore=shutil.ignore_patterns("*.safetensors"))
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_that_of_the_folder(tmp_path: Path, name: str) -> None:
    source, path = written(tmp_path, *MODELS[name])
    with pytest.raises(ValueError, match=r"--hf-folder DIR; its weights are not needed"):
        convert(path, tmp_path / "out")
    convert(path, tmp_path / "out", hf_folder=without_weights(source))
    assert hf_folder.read_config(tmp_path / "out") == hf_folder.read_config(source)
    before, after = (
        np.asarray(entropix.forward(entropix.load(folder), "Two and two.").logits_TV)
        for folder in (source, tmp_path / "out")
    )
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
    ours, theirs = (load_tokenizer(folder) for folder in (tmp_path / "out", source))
    assert ours.special_tokens == theirs.special_tokens
    assert hf_folder.stop_token_ids(tmp_path / "out") == hf_folder.stop_token_ids(source) == (258,)


def test_rows_that_no_text_needs_may_be_missing_and_the_token_of_images_with_them(tmp_path: Path) -> None:
    """As the converter leaves them out of Gemma 3, whose tokenizer has a token of images behind its rows."""
    source, path = written(tmp_path, "qwen3", {"head_dim": 16})
    described = without_weights(source)
    config = files.read_json(described / "config.json")
    files.write_json(described / "config.json", config | {"vocab_size": 320})
    another_token(described)
    convert(path, tmp_path / "out", hf_folder=described)
    folders.assert_tensors(tmp_path / "out", folders.read_tensors(source))
    model = entropix.load(tmp_path / "out")
    assert (model.config.vocab_size, model.tokenizer.vocab_size) == (259, 259)
    assert "<image_soft_token>" not in model.tokenizer.special_tokens


def test_a_sentencepiece_vocabulary_is_compared_as_the_converter_writes_it(tmp_path: Path) -> None:
    """Spaces for "▁" in user-defined tokens, and pieces of any name where there is no token."""
    content = pieces.model(user_defined_symbols=["▁▁▁", "<table>"], add_dummy_prefix=False)
    read = pieces.processor(content)
    n = read.get_piece_size()
    described = pieces.written(tmp_path, content)
    folders.write_config(described, vocab_size=n)
    names = [read.id_to_piece(i) for i in range(n)]
    user_defined = [names.index("▁▁▁"), names.index("<table>")]
    kinds = [
        2 if read.is_unknown(i) else 3 if read.is_control(i) else 6 if read.is_byte(i) else 1
        for i in range(n)
    ]
    for i in user_defined:
        names[i], kinds[i] = names[i].replace("▁", " "), 4
    cfg = toy.config(vocab_size=n)
    vocabulary = {"model": "llama", "tokens": names, "token_type": kinds, "merges": None}
    metadata = foreign.gguf_metadata(hf_folder.read_config(described)) | {
        f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()
    }
    foreign.write_gguf(
        tmp_path / "model.gguf", foreign.gguf_tensors(folders.random_tensors(cfg), cfg), metadata
    )
    convert(tmp_path / "model.gguf", tmp_path / "out", hf_folder=described)
    text = "a   b<table> c"
    assert load_tokenizer(tmp_path / "out").encode(text) == read.encode(text)


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        files.write_json(folder / "config.json", files.read_json(folder / "config.json") | changes)

    return change


def another_token(folder: Path) -> None:
    file = files.read_json(folder / "tokenizer.json")
    file["added_tokens"].append({"id": 259, "content": "<image_soft_token>", "special": True})
    files.write_json(folder / "tokenizer.json", file)


def other_token(folder: Path) -> None:
    file = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(file.replace("<|im_start|>", "<|im_begin|>"))


def later_token(folder: Path) -> None:
    file = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(file.replace('"id": 258', '"id": 259'))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            config(model_type="llama"),
            "model_type is 'llama', but {path} is of the architecture phi3, which is phi3",
        ),
        (config(num_key_value_heads=2), "phi3.attention.head_count_kv is 1, but {config} says 2"),
        (
            config(rope_theta=5e5, rope_parameters={**LONGROPE, "rope_theta": 5e5}),
            "phi3.rope.freq_base is 10000, but {config} says 500000",
        ),
        (
            config(rms_norm_eps=1e-6),
            "phi3.attention.layer_norm_rms_epsilon is 1e-05, but {config} says 1e-06",
        ),
        (config(num_hidden_layers=300), "num_hidden_layers is 300, but there are only"),
        (config(num_hidden_layers=3), "the tensors do not fit {config}\n  missing: blk.2.attn_norm.weight"),
        (
            config(rope_parameters={**LONGROPE, "short_factor": [1, 1, 2]}),
            "rope_factors_short.weight divides the",
        ),
        (
            other_token,
            "token 257 is '<|im_start|>', but in {folder} it is '<|im_begin|>'; this is the folder of another",
        ),
        (later_token, "{folder}: its token 259 has no row of the embedding, of which {path} has 259"),
        (no_tokenizer, "{folder}: no tokenizer; expected a tokenizer.json or a tokenizer.model"),
    ],
)
def test_the_folder_of_another_model_is_refused(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    source, path = written(tmp_path, *MODELS["phi3, partly rotated"])
    described = without_weights(source)
    change(described)
    with pytest.raises(ValueError) as error:
        convert(path, tmp_path / "out", hf_folder=described)
    assert message.format(path=path, config=described / "config.json", folder=described) in str(error.value)
    assert not (tmp_path / "out").exists()


QWEN3 = "qwen3", {"head_dim": 16, "rope_theta": 1e6}
GRANITE = {
    "embedding_multiplier": 3.5,
    "attention_multiplier": 0.21,
    "residual_multiplier": 0.45,
    "logits_scaling": 2.5,
}


@pytest.mark.parametrize(
    ("model", "metadata", "message"),
    [
        (MODELS["gemma2"], {"gemma2__attention__sliding_window": 2}, "sliding_window is 2, but {config} says 4"),
        (MODELS["gemma2"], {"gemma2__attn_logit_softcapping": 2.5}, "softcapping is 2.5, but {config} says 1.5"),
        (("granite", GRANITE), {"granite__logit_scale": 8.0}, "granite.logit_scale is 8, but {config} says 2.5"),
        (MODELS["phi3"], {"phi3__context_length": 4096}, "phi3.context_length is 4096, but {config} says 512"),
        (MODELS["phi3, partly rotated"], {"phi3__rope__dimension_count": 8}, "_count is 8, but {config} says 6"),
        (QWEN3, {"qwen3__rope__freq_base": None}, "freq_base is 10000, but {config} says 1e+06"),
        (QWEN3, {"qwen3__rope__scaling__type": "yarn"}, "type is 'yarn', but {config} says 'none'"),
        (QWEN3, {"qwen3__attention__causal": False}, "qwen3.attention.causal is False"),
        (QWEN3, {"qwen3__pooling_type": 3}, "qwen3.pooling_type is 3; what this changes"),
        (MODELS["mistral"], {"llama__attention__head_count": None}, "llama.attention.head_count must be one"),
        (MODELS["phi3"], {"tokenizer__ggml__tokens": TOKENS[:3]}, "token 3 is None, but in {folder} it is"),
    ],
)  # fmt: skip
def test_what_the_file_says_is_what_the_folder_says(
    tmp_path: Path, model: tuple[str, dict[str, Any]], metadata: dict[str, Any], message: str
) -> None:
    source, path = written(tmp_path, *model, **metadata)
    described = without_weights(source)
    with pytest.raises(ValueError) as error:
        convert(path, tmp_path / "out", hf_folder=described)
    assert message.format(config=described / "config.json", folder=described) in str(error.value)


def no_short_factors(tensors: foreign.Tensors) -> None:
    del tensors["rope_factors_short.weight"]


def other_long_factors(tensors: foreign.Tensors) -> None:
    tensors["rope_factors_long.weight"] *= np.float32(1.01)


def gate_again(tensors: foreign.Tensors) -> None:
    tensors["blk.0.ffn_gate.weight"] = np.zeros((64, 32), np.float32)


def unembedding(tensors: foreign.Tensors) -> None:
    tensors["output.weight"] = tensors["token_embd.weight"] + 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("phi3, partly rotated", no_short_factors, "rope_factors_short.weight is missing, against"),
        (
            "phi3, partly rotated",
            other_long_factors,
            "rope_factors_long.weight divides the rotary frequencies",
        ),
        ("phi3", gate_again, "blk.0.ffn_gate.weight is there twice"),
        ("gemma2", unembedding, "output.weight differs from token_embd.weight; the folder says they are one"),
    ],
)
def test_tensors_of_another_model_are_refused(
    tmp_path: Path, name: str, change: Callable[[foreign.Tensors], None], message: str
) -> None:
    architecture, told = MODELS[name]
    source, path = written(tmp_path, architecture, told, change)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out", hf_folder=without_weights(source))


def test_the_embedding_may_be_there_twice(tmp_path: Path) -> None:
    def again(tensors: foreign.Tensors) -> None:
        tensors["output.weight"] = tensors["token_embd.weight"]

    source, path = written(tmp_path, *MODELS["mistral"], again)
    convert(path, tmp_path / "out", hf_folder=without_weights(source))
    folders.assert_tensors(tmp_path / "out", folders.read_tensors(source))


def test_the_folder_that_describes_is_not_replaced(tmp_path: Path) -> None:
    source, path = written(tmp_path, *MODELS["mistral"])
    before = folders.read_tensors(source)
    with pytest.raises(ValueError, match="lies in the destination"):
        convert(path, source, force=True, hf_folder=source)
    folders.assert_tensors(source, before)
    with pytest.raises(ValueError, match="no such folder; expected one with"):
        convert(path, tmp_path / "out", hf_folder=path)


def test_only_a_gguf_file_is_described(tmp_path: Path, toy_folder: str) -> None:
    for adapter, message in ((None, "this is a folder"), (tmp_path, "GGUF files, which take no adapter")):
        with pytest.raises(ValueError, match=message):
            convert(Path(toy_folder), tmp_path / "out", adapter=adapter, hf_folder=Path(toy_folder))
