"""Meta's original folders: shards of a model become the folder it came from, value by value."""

import base64
from pathlib import Path
from typing import Any

import folders
import foreign
import ml_dtypes
import numpy as np
import pth_files
import pytest
import toy

from entropix import convert as convert_command
from entropix import files
from entropix.checkpoint import hf_folder, load_weights
from entropix.checkpoint.convert import convert, folder, meta
from entropix.checkpoint.vocabulary.files import read_vocabulary
from entropix.config import ModelConfig, RopeScaling


def llama3_tokenizer() -> bytes:
    """A tokenizer.model of 256 single bytes; 256 special tokens follow from Meta's code."""
    return b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"  # how such a file begins


def from_meta(
    tmp_path: Path, cfg: ModelConfig, parts: list[foreign.Tensors], tokenizer: bytes, **changes: Any
) -> folder.Foreign:
    """The folder of these shards, opened without torch."""
    foreign.write_meta(tmp_path, cfg, len(parts), tokenizer, **changes)
    return meta.open_meta(tmp_path, read_shard=lambda path: parts[int(path.name.split(".")[1])])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("n_shards", [1, 2, 4])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_llama3_shards_become_the_folder_they_came_from(
    tmp_path: Path, tied: bool, n_shards: int, dtype: type
) -> None:
    cfg = toy.config(
        vocab_size=512, n_heads=8, n_kv_heads=4, head_dim=4, context_length=8192, tied_embeddings=tied
    )
    tensors = folders.random_tensors(cfg)
    stored = tensors if not tied else tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    cast = {name: array.astype(dtype) for name, array in foreign.meta_tensors(stored, cfg).items()}
    opened = from_meta(tmp_path, cfg, foreign.shards(cast, n_shards, embedding_axis=0), llama3_tokenizer())
    folder.write_folder(opened, tmp_path / "out")
    assert hf_folder.read_config(tmp_path / "out") == cfg
    folders.assert_tensors(tmp_path / "out", tensors, dtype)
    load_weights.load(tmp_path / "out", cfg, np.float32)


@pytest.mark.parametrize("n_shards", [1, 2])
@pytest.mark.parametrize(
    ("norm_eps", "theta", "context"),
    [(1e-6, 10_000.0, 2048), (1e-5, 10_000.0, 4096), (1e-5, 1_000_000.0, 16_384)],
)
def test_llama2_shards_become_the_folder_they_came_from(
    tmp_path: Path, n_shards: int, norm_eps: float, theta: float, context: int
) -> None:
    cfg = toy.config(norm_eps=norm_eps, rope_theta=theta, context_length=context, tied_embeddings=False)
    cfg = toy.config(**vars(cfg) | {"vocab_size": 260})
    tensors = folders.random_tensors(cfg)
    stored = foreign.meta_tensors(tensors, cfg)
    parts = foreign.shards(stored, n_shards, embedding_axis=1)
    parts = [part | {"rope.freqs": np.ones(4, np.float32)} for part in parts]
    opened = from_meta(tmp_path, cfg, parts, SENTENCEPIECE, vocab_size=-1)
    folder.write_folder(opened, tmp_path / "out")
    assert hf_folder.read_config(tmp_path / "out") == cfg
    folders.assert_tensors(tmp_path / "out", tensors)
    assert hf_folder.stop_token_ids(tmp_path / "out") == (2,)


@pytest.mark.parametrize(
    ("tied", "given", "factor"),
    [(False, None, 8.0), (True, None, 32.0), (False, 16, 16.0)],
    ids=["3.1", "3.2", "given"],
)
def test_scaled_frequencies_have_the_factor_of_the_release(
    tmp_path: Path, tied: bool, given: int | None, factor: float
) -> None:
    scaling = RopeScaling(factor, 1.0, 4.0, 8192)
    cfg = toy.config(vocab_size=512, rope_scaling=scaling, context_length=131_072, tied_embeddings=tied)
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)
    assert from_meta(tmp_path, cfg, [stored], llama3_tokenizer(), rope_scaling_factor=given).config == cfg


@pytest.mark.parametrize("template", [None, "{{ messages }}"])
def test_llama3_folders_stop_at_every_end_token(tmp_path: Path, template: str | None) -> None:
    cfg = toy.config(vocab_size=512, context_length=8192)
    foreign.write_meta(tmp_path, cfg, 1, llama3_tokenizer())
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)
    folder.write_folder(meta.open_meta(tmp_path, template, lambda path: stored), tmp_path / "out")
    # <|end_of_text|>, <|eom_id|> and <|eot_id|> are the 2nd, 9th and 10th special token: 128001, 128008 and
    # 128009 after the 128,000 ranks of the released file.
    assert hf_folder.stop_token_ids(tmp_path / "out") == (257, 264, 265)
    tokenizer_config = files.read_json(tmp_path / "out" / "tokenizer_config.json")
    assert tokenizer_config["bos_token"] == "<|begin_of_text|>"
    assert tokenizer_config["eos_token"] == ("<|eot_id|>" if template else "<|end_of_text|>")
    assert tokenizer_config.get("chat_template") == template
    assert read_vocabulary(tmp_path / "out").bos_ids == (256,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_args": {"group_size": 32}}, "quantization_args is .*: this variant is not supported"),
        ({"moe_args": {"num_experts": 16}}, "moe_args is .*: this variant is not supported"),
        ({"dim": None}, "dim must be one whole number of at least 1, got None"),
        ({"norm_eps": "1e-5"}, "norm_eps must be one number above 0, got '1e-5'"),
        ({"norm_eps": 10**400}, "norm_eps must be one number above 0, got a number of some 401 digits"),
        ({"n_layers": 10**7}, "n_layers is 10000000, but there are only 20 tensors"),
        ({"n_heads": 2**40}, "n_heads must be one whole number of at least 1, got 1099511627776"),
        ({"n_heads": 3}, r"dim \(32\) must be a multiple of n_heads \(3\)"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope must be true or false, got 'yes'"),
        ({"rope_scaling_factor": 8}, "rope_scaling_factor is 8, but use_scaled_rope is not true"),
        ({"model": 7}, "model must be an object, got 7"),
        ({"vocab_size": [512]}, r"vocab_size must be one whole number of at least -1, got \[512\]"),
        ({"n_layers": 3}, r"missing: layers\.2\.attention\.wq\.weight \[32, 32\]"),
        ({"vocab_size": 511}, "vocab_size is 511, but the embedding has 512 rows"),
        ({"n_kv_heads": 3}, "multiple of n_kv_heads"),
    ],
)
def test_parameters_of_another_model_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    cfg = toy.config(vocab_size=512)
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)
    with pytest.raises(ValueError, match=message):
        from_meta(tmp_path, cfg, [stored], llama3_tokenizer(), **changes)


def test_damaged_meta_folders_are_refused_by_name(tmp_path: Path) -> None:
    cfg = toy.config(vocab_size=512)
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)

    def refused(parts: list[foreign.Tensors], message: str) -> None:
        source = tmp_path / f"case {len(list(tmp_path.iterdir()))}"
        source.mkdir()
        with pytest.raises(ValueError, match=message):
            folder.write_folder(from_meta(source, cfg, parts, llama3_tokenizer()), source / "out")
        assert not (source / "out").exists()

    norm, bias = "norm.weight", "layers.0.attention.wq.bias"
    refused(
        [{name: array for name, array in stored.items() if name != norm}], r"missing: norm\.weight \[32\]"
    )
    refused([stored | {bias: np.zeros(32, np.float32)}], r"unexpected: layers\.0\.attention\.wq\.bias \[32\]")
    refused([stored | {norm: np.zeros(32, np.int32)}], r"00\.pth: norm\.weight is of type int32")
    refused(
        [stored | {norm: np.zeros(16, np.float32)}], r"wrong shape: norm\.weight is \[16\], expected \[32\]"
    )
    first, second = foreign.shards(stored, 2, embedding_axis=0)
    refused(
        [first, {k: v for k, v in second.items() if k != norm}],
        r"01\.pth: its tensors or their shapes differ",
    )
    refused([first, second | {norm: second[norm] + 1}], r"norm\.weight is not the same in every shard")
    refused([{}], r"there is no tensor tok_embeddings\.weight")
    refused([], r"no consolidated\.\*\.pth here")


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model"])
def test_an_incomplete_meta_folder_names_what_is_missing(tmp_path: Path, name: str) -> None:
    foreign.write_meta(tmp_path, toy.config(vocab_size=512), 1, llama3_tokenizer())
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: no such file"):
        meta.open_meta(tmp_path)


@pytest.mark.parametrize("text", ["7", "[]", "null"])
def test_params_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    foreign.write_meta(tmp_path, toy.config(vocab_size=512), 1, llama3_tokenizer())
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(ValueError, match=r"params\.json: expected a JSON object, got a (int|list|NoneType)"):
        meta.open_meta(tmp_path)


def test_a_tokenizer_of_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    cfg = toy.config(vocab_size=300)
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)
    with pytest.raises(
        ValueError, match=r"tokenizer\.model has tokens up to 511, but the embedding has 300 rows"
    ):
        from_meta(tmp_path, cfg, [stored], llama3_tokenizer())


@pytest.mark.parametrize("shape", [(512,), (32, 512, 1)])
def test_an_embedding_that_is_no_matrix_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    cfg = toy.config(vocab_size=512)
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)
    with pytest.raises(ValueError, match=r"tok_embeddings\.weight must have two dimensions"):
        from_meta(
            tmp_path,
            cfg,
            [stored | {"tok_embeddings.weight": np.zeros(shape, np.float32)}],
            llama3_tokenizer(),
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_folder_of_pth_files_is_converted_without_torch(tmp_path: Path, dtype: type) -> None:
    cfg = toy.config(vocab_size=512, context_length=8192)
    tensors = folders.random_tensors(cfg)
    stored = {name: array.astype(dtype) for name, array in foreign.meta_tensors(tensors, cfg).items()}
    source = tmp_path / "source"
    source.mkdir()
    parts = foreign.shards(stored, 2, embedding_axis=0)
    foreign.write_meta(source, cfg, 2, llama3_tokenizer())
    for i, part in enumerate(parts):
        pth_files.write_pth(source / f"consolidated.{i:02}.pth", part)
    convert(source, tmp_path / "out")
    assert hf_folder.read_config(tmp_path / "out") == cfg
    folders.assert_tensors(tmp_path / "out", tensors, dtype)


def test_the_script_says_when_the_vocabulary_is_not_for_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = toy.config(tied_embeddings=False)
    foreign.write_meta(tmp_path, cfg, 1, SENTENCEPIECE)
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)
    monkeypatch.setattr(
        "entropix.checkpoint.convert.open_meta",
        lambda source, template: meta.open_meta(source, template, lambda path: stored),
    )
    convert_command.main([str(tmp_path), "--out-dir", str(tmp_path / "out")])
    assert "note: other tools can use this folder, entropix cannot:" in capsys.readouterr().err
    folders.assert_tensors(tmp_path / "out", folders.random_tensors(cfg))
