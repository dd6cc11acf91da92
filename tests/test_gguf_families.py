"""GGUF files of the families beside Llama: the model that comes out is the one that went in."""

from pathlib import Path
from typing import Any

import folders
import foreign
import numpy as np
import pytest
import vocabularies
from tokenizers import Tokenizer as Reference

import entropix
from entropix import files
from entropix.checkpoint import hf_folder
from entropix.checkpoint.convert import convert
from entropix.checkpoint.tokenizer import load_tokenizer

SCALES = {
    "embedding_multiplier": 3.5,
    "attention_multiplier": 0.21,
    "residual_multiplier": 0.45,
    "logits_scaling": 2.5,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2, untied, one key head": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "qwen3": {"head_dim": 16},
    "qwen3, untied": {"head_dim": 10, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "olmo2": {"tie_word_embeddings": False},
    "smollm3": {"num_hidden_layers": 5},
    "smollm3, all rotated": {"tie_word_embeddings": False},
    "granite": SCALES,
    "granite, untied": {**SCALES, "embedding_multiplier": 12, "tie_word_embeddings": False},
}


def written(folder: Path, architecture: str, told: dict[str, Any], **metadata: Any) -> tuple[Path, Path]:
    """A Hugging Face folder of random weights, and a GGUF file of the same; a metadata of None is left out."""
    source = folders.write_checkpoint(folder / "source", model_type=architecture, **told)
    cfg, stored = hf_folder.read_config(source), folders.read_tensors(source)
    tensors = foreign.gguf_tensors(stored, cfg, architecture)
    said = foreign.gguf_metadata(cfg, architecture) | {f"{architecture}.{k}": v for k, v in metadata.items()}
    foreign.write_gguf(folder / "model.gguf", tensors, said, architecture=architecture)
    return source, folder / "model.gguf"


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_file_computes_what_its_folder_does(tmp_path: Path, name: str) -> None:
    architecture = name.partition(",")[0]
    source, path = written(tmp_path, architecture, MODELS[name])
    convert(path, tmp_path / "out")
    assert hf_folder.read_config(tmp_path / "out") == hf_folder.read_config(source)
    assert files.read_json(tmp_path / "out" / "config.json")["model_type"] == architecture
    folders.assert_tensors(tmp_path / "out", folders.read_tensors(source))
    before, after = (
        np.asarray(entropix.forward(entropix.load(folder), "Two and two.").logits_TV)[:, :256]
        for folder in (source, tmp_path / "out")
    )
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


def test_the_layers_without_rotation_are_those_of_the_published_model(tmp_path: Path) -> None:
    """No key has them: llama.cpp leaves every fourth layer unrotated, as SmolLM3 does."""
    _, path = written(tmp_path, "smollm3", {"num_hidden_layers": 9})
    convert(path, tmp_path / "out")
    assert hf_folder.read_config(tmp_path / "out").no_rope_layers == (3, 7)


@pytest.mark.parametrize(
    ("architecture", "metadata", "message"),
    [
        (
            "qwen2",
            {"rope.scaling.type": "yarn"},
            "qwen2.rope.scaling.type is 'yarn'; only 'none' is supported",
        ),
        ("qwen2", {"attention.scale": 0.5}, "qwen2.attention.scale is 0.5; this may change the model"),
        ("qwen3", {"pooling_type": 3}, "qwen3.pooling_type is 3; this may change the model"),
        (
            "olmo2",
            {"attention.sliding_window": 4096},
            "olmo2.attention.sliding_window is 4096; this may change",
        ),
        (
            "granite",
            {"attention.scale": None},
            "granite.attention.scale must be one number above 0, got None",
        ),
        ("granite", {"expert_count": 40}, "granite.expert_count is 40; only 0 is supported"),
        ("smollm3", {"vocab_size": 7}, "smollm3.vocab_size is 7, the embedding has 259 rows"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, architecture: str, metadata: dict[str, Any], message: str
) -> None:
    told = SCALES if architecture == "granite" else {}
    _, path = written(tmp_path, architecture, told, **metadata)
    with pytest.raises(ValueError) as error:
        convert(path, tmp_path / "out")
    assert message in str(error.value) and not (tmp_path / "out").exists()


def test_a_tensor_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    source = folders.write_checkpoint(tmp_path / "source", model_type="qwen3", head_dim=16)
    cfg = hf_folder.read_config(source)
    tensors = foreign.gguf_tensors(folders.read_tensors(source), cfg, "qwen3")
    tensors |= {"blk.0.attn_q.bias": np.ones(64, np.float32), "rope_freqs.weight": np.ones(8, np.float32)}
    foreign.write_gguf(
        tmp_path / "m.gguf", tensors, foreign.gguf_metadata(cfg, "qwen3"), architecture="qwen3"
    )
    with pytest.raises(ValueError, match="do not fit the metadata") as error:
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert str(error.value).splitlines()[1:] == [
        "  unexpected: blk.0.attn_q.bias [64]",
        "  unexpected: rope_freqs.weight [8]",
    ]


def test_a_long_text_of_another_family_needs_no_scaling(tmp_path: Path) -> None:
    """Llama 3's base with more tokens than it was trained for means a scaled Llama, and nothing of others."""
    source, path = written(tmp_path, "olmo2", {"rope_theta": 500_000.0, "max_position_embeddings": 65_536})
    convert(path, tmp_path / "out")
    assert hf_folder.read_config(tmp_path / "out") == hf_folder.read_config(source)


def test_qwens_vocabulary_puts_text_into_normal_form(tmp_path: Path) -> None:
    folder = vocabularies.written(tmp_path, ["Ã ©", "1 2"], ["<|im_end|>"], pre="qwen2")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("e\N{COMBINING ACUTE ACCENT}12") == [256, ord("1"), ord("2")]  # each digit alone
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    for text in vocabularies.random_texts(200, seed=3):
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
