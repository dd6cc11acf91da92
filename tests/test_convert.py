"""Writing a folder: whole or not at all, in the dtype asked for, never over something else."""

import subprocess
import sys
from pathlib import Path

import folders
import foreign
import ml_dtypes
import numpy as np
import pytest
import toy
from safetensors.numpy import load_file

from entropix import PACKAGE_ROOT, files
from entropix.checkpoint.convert import convert, folder
from entropix.checkpoint.tensors import check
from entropix.config import ModelConfig


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


@pytest.mark.parametrize("name", ["absent.gguf", "empty", "text.txt"])
def test_a_source_of_no_known_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match=f"{name}: expected a .gguf file, or a folder with Meta's"):
        convert(tmp_path / name, tmp_path / "out")


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
    folders.write_config(tmp_path)
    ran = script(tmp_path, "--out-dir", tmp_path / "out")
    assert ran.returncode == 0
    assert "use it as it is, with --weights" in ran.stdout
    assert not (tmp_path / "out").exists()


def test_the_script_explains_a_refusal_in_one_line(tmp_path: Path) -> None:
    ran = script(foreign.toy_gguf(tmp_path, architecture="gemma"), "--out-dir", tmp_path / "out")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"error: {tmp_path / 'model.gguf'}: the architecture is 'gemma'; only 'llama' is supported\n"
    )
