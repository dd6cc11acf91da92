"""Writing a folder: whole or not at all, in the dtype asked for, never over something else."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import foreign
import ml_dtypes
import numpy as np
import pth_files
import pytest
import toy
from safetensors.numpy import load_file

from entropix import PACKAGE_ROOT, files
from entropix.checkpoint.convert import convert, folder
from entropix.checkpoint.hf_folder import read_config, stop_token_ids
from entropix.checkpoint.tensors import check
from entropix.config import ModelConfig
from entropix.convert import main


def opened(cfg: ModelConfig, tensors: foreign.Tensors) -> folder.Foreign:
    """A foreign checkpoint of these tensors without any file behind it."""
    return folder.Foreign(Path("source"), cfg, "float32", tensors.__getitem__, 1, (2,), lambda path: None)


def test_large_models_are_split_into_files_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SHARD_BYTES", 40_000)
    cfg = toy.config(tied_embeddings=False)
    tensors = folders.random_tensors(cfg)
    folder.write_folder(opened(cfg, tensors), tmp_path / "out")
    parts = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in parts] == [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    sizes = [sum(array.nbytes for array in load_file(file).values()) for file in parts]
    assert sizes == [
        39_424,
        39_168,
        28_928,
        33_152,
    ]  # embedding 33,152, layer 37,120, in the order of the folder
    index = files.read_json(tmp_path / "out" / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    folders.assert_tensors(tmp_path / "out", tensors)
    assert check(tmp_path / "out", cfg).keys() == tensors.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_is_written(tmp_path: Path, dtype: str) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    folder.write_folder(opened(cfg, tensors), tmp_path / "out", dtype)
    folders.assert_tensors(
        tmp_path / "out", tensors, np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    )
    assert files.read_json(tmp_path / "out" / "config.json")["torch_dtype"] == dtype


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    cfg = toy.config()
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        folder.write_folder(opened(cfg, folders.random_tensors(cfg)), tmp_path / "out", "int8")


def test_tensor_data_is_aligned(tmp_path: Path) -> None:
    cfg = toy.config()
    folder.write_folder(opened(cfg, folders.random_tensors(cfg)), tmp_path / "out")
    assert check(tmp_path / "out", cfg)["model.embed_tokens.weight"].offset % 64 == 0


def test_values_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = -70_000
    with pytest.raises(
        ValueError, match=r"source: model\.layers\.1\.mlp\.down_proj\.weight does not fit float16"
    ):
        folder.write_folder(opened(cfg, tensors), tmp_path / "out", "float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left on device")])
def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)

    def tensor(name: str) -> np.ndarray:
        if name == "model.norm.weight":
            raise error
        return tensors[name]

    with pytest.raises((KeyboardInterrupt, OSError)):
        folder.write_folder(opened(cfg, tensors)._replace(tensor=tensor), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_conversion_leaves_nothing_that_looks_complete_or_is_in_the_way(tmp_path: Path) -> None:
    cfg = toy.config()
    partial = folder.partial_folder(tmp_path / "out")
    partial.mkdir()
    folders.write_config(partial)
    (partial / "rubbish.safetensors").touch()
    assert not (tmp_path / "out").exists()
    folder.write_folder(opened(cfg, folders.random_tensors(cfg)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "rubbish.safetensors").exists()


def test_weights_are_replaced_only_by_force(tmp_path: Path) -> None:
    cfg = toy.config()
    old, new = folders.random_tensors(cfg, seed=1), folders.random_tensors(cfg, seed=2)
    folder.write_folder(opened(cfg, old), tmp_path / "out")
    with pytest.raises(ValueError, match="out is there already; --force replaces it"):
        folder.write_folder(opened(cfg, new), tmp_path / "out")
    folders.assert_tensors(tmp_path / "out", old)
    folder.write_folder(opened(cfg, new), tmp_path / "out", force=True)
    folders.assert_tensors(tmp_path / "out", new)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="mine exists and is no weights folder"):
        convert(foreign.toy_gguf(tmp_path), tmp_path / "mine", force=True)
    folders.write_config(tmp_path / "mine")  # a config.json alone proves nothing: many projects have one
    with pytest.raises(ValueError, match="mine exists and is no weights folder"):
        convert(foreign.toy_gguf(tmp_path), tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"


def test_a_source_inside_its_destination_is_not_replaced(tmp_path: Path) -> None:
    folders.write_config(tmp_path)
    folders.write_tensors(tmp_path, {})
    with pytest.raises(ValueError, match=r"model\.gguf lies in the destination"):
        convert(foreign.toy_gguf(tmp_path), tmp_path, force=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.gguf", "no such file"),
        ("empty", "the folder is empty; expected a GGUF file, a folder with Meta's"),
        ("text.txt", "expected a GGUF file, a folder with Meta's"),
        ("web.gguf", "not a GGUF file, which begins with the letters GGUF"),
    ],
)
def test_a_source_of_no_known_format_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "web.gguf").write_text("<!doctype html><title>Not Found</title>")
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        convert(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("name", ["model", "model.GGUF", "model.bin"])
def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    foreign.toy_gguf(tmp_path).rename(tmp_path / name)
    convert(tmp_path / name, tmp_path / "out")
    folders.assert_tensors(tmp_path / "out", folders.random_tensors(toy.config()))


# ----- pytorch_model.bin ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_files", [1, 2])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_folder_with_pytorch_model_bin_becomes_the_same_with_safetensors(
    tmp_path: Path, n_files: int, tied: bool
) -> None:
    cfg = toy.config(tied_embeddings=tied)
    tensors = folders.random_tensors(cfg)
    stored = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]} if tied else dict(tensors)
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    source = torch_folder(tmp_path / "source", stored, n_files, tie_word_embeddings=tied)
    convert(source, tmp_path / "out", chat_template=None)
    assert read_config(tmp_path / "out") == read_config(source) == cfg
    folders.assert_tensors(tmp_path / "out", tensors)
    assert stop_token_ids(tmp_path / "out") == stop_token_ids(source) == (258,)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_a_template_that_is_given_replaces_the_folders_own(tmp_path: Path) -> None:
    source = torch_folder(tmp_path / "source", folders.random_tensors(toy.config()))
    (source / "chat_template.jinja").write_text("theirs")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("theirs")
    convert(source, tmp_path / "as it is")
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
        assert (tmp_path / "as it is" / name).read_text() == "theirs"
    (tmp_path / "mine.jinja").write_text("mine")
    convert(source, tmp_path / "out", chat_template=tmp_path / "mine.jinja")
    assert files.read_json(tmp_path / "out" / "tokenizer_config.json")["chat_template"] == "mine"
    assert not list((tmp_path / "out").glob("**/*.jinja"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantised tensors are not supported"),
        ({"num_hidden_layers": 900}, "config.json implies 900 layers, but there are only 20 tensors"),
        ({"num_hidden_layers": 3}, r"missing: model\.layers\.2\.input_layernorm\.weight \[32\]"),
        ({"bos_token_id": 259}, "bos_token_id must be one whole number from 0 to 258, got 259"),
        ({"tie_word_embeddings": False}, r"missing: lm_head\.weight"),
    ],
)
def test_a_torch_folder_that_is_no_plain_llama_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = torch_folder(tmp_path / "source", folders.random_tensors(toy.config()), **changes)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_of_torch_files_names_no_file_elsewhere(tmp_path: Path) -> None:
    source = torch_folder(tmp_path / "source", folders.random_tensors(toy.config()), n_files=2)
    (source / "pytorch_model-2.bin").rename(tmp_path / "outside.bin")
    text = (source / "pytorch_model.bin.index.json").read_text()
    (source / "pytorch_model.bin.index.json").write_text(text.replace("pytorch_model-2", "../outside"))
    with pytest.raises(
        ValueError, match=r"it names '\.\./outside\.bin'; expected the name of a file in the same"
    ):
        convert(source, tmp_path / "out")


def torch_folder(folder: Path, tensors: foreign.Tensors, n_files: int = 1, **changes: Any) -> Path:
    """A checkpoint of the toy as older releases of transformers wrote it."""
    folder.mkdir()
    folders.write_config(folder, **changes)
    folders.write_tokenizer(folder)
    if n_files == 1:
        pth_files.write_pth(folder / "pytorch_model.bin", tensors)
        return folder
    places = {name: f"pytorch_model-{i % n_files + 1}.bin" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: array for name, array in tensors.items() if places[name] == file}
        pth_files.write_pth(folder / file, part)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


# ----- the script -------------------------------------------------------------------------------------------


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(PACKAGE_ROOT.parent / "scripts" / "convert_weights.py"),
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_converts_a_gguf_file(tmp_path: Path) -> None:
    ran = script(foreign.toy_gguf(tmp_path), "--out-dir", tmp_path / "out", "--dtype", "bfloat16")
    assert (ran.returncode, ran.stdout) == (0, f"weights in {tmp_path / 'out'}\n")
    folders.assert_tensors(tmp_path / "out", folders.random_tensors(toy.config()), ml_dtypes.bfloat16)


def test_the_script_leaves_a_hugging_face_folder_as_it_is(tmp_path: Path) -> None:
    source = folders.write_checkpoint(tmp_path / "toy")
    ran = script(source, "--out-dir", tmp_path / "out")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{source} is a Hugging Face folder: use it as it is, with --weights {source}\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_used_as_it_is_is_not_called_so(
    tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    """What converting says and what --weights says is the same."""
    source = folders.write_checkpoint(tmp_path / "toy")
    folders.write_config(source, quantization_config={"quant_method": "gptq"})
    code, out, err = run_command(main, str(source))
    assert (code, out) == (1, "")
    assert "quantised tensors are not supported; use the unquantised checkpoint" in err


@pytest.mark.parametrize(
    ("source", "made"),
    [("elsewhere/Toy.GGUF", "toy"), ("elsewhere/Toy-1B", "toy-1b"), ("weights/toy", "toy-safetensors")],
)
def test_the_folder_is_named_after_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, made: str
) -> None:
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / source).parent.mkdir()
    if source.endswith(".GGUF"):
        foreign.toy_gguf(tmp_path).rename(tmp_path / source)
    else:
        torch_folder(tmp_path / source, folders.random_tensors(toy.config()))
    main([str(tmp_path / source)])
    folders.assert_tensors(tmp_path / "weights" / made, folders.random_tensors(toy.config()))


def test_help_says_what_each_flag_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "pytorch_model.bin",
        "the folder to make",
        "replace weights that",
        "python -m entropix.convert",
    ):
        assert text in out


def test_the_script_explains_a_refusal_in_one_line(tmp_path: Path) -> None:
    ran = script(foreign.toy_gguf(tmp_path, architecture="gemma"), "--out-dir", tmp_path / "out")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"error: {tmp_path / 'model.gguf'}: the architecture is 'gemma'; only llama, qwen2, "
        "qwen3, olmo2, smollm3, granite, phi3, gemma2 and gemma3 are supported\n"
    )
