"""Files of weights as they come: pointers, pipes, files of others, names that lead elsewhere."""

import os
from pathlib import Path

import folders
import numpy as np
import pytest
import toy
from safetensors.numpy import save_file

from entropix.checkpoint import tensors
from entropix.checkpoint.convert import convert
from entropix.checkpoint.pth_file import read_pth
from entropix.checkpoint.vocabulary.files import read_vocabulary
from entropix.checkpoint.weight_files import check_file

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4400000000\n"


def read(path: Path) -> None:
    """Opens a file as what its name says."""
    if path.suffix == ".safetensors":
        tensors.stored_tensors(path.parent)
    elif path.suffix == ".gguf":
        convert(path, path.parent / "out")
    else:
        read_pth(path)


NAMES = ["model.safetensors", "model.gguf", "consolidated.00.pth"]


@pytest.mark.parametrize("name", NAMES)
def test_a_git_lfs_pointer_is_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{name}: this is a Git LFS pointer.*`git lfs pull`"):
        read(tmp_path / name)


def test_a_vocabulary_that_is_a_pointer_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with pytest.raises(ValueError, match=r"tokenizer\.json: this is a Git LFS pointer"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pytorch_model.bin",
            "its tensors are in pytorch_model.bin, .*`python -m entropix.convert .*` makes a folder",
        ),
        ("adapter_model.safetensors", "this is an adapter"),
        ("model.h5", "no .safetensors file here; with transformers, save_pretrained"),
    ],
)
def test_a_folder_of_tensors_in_other_formats_says_which(tmp_path: Path, name: str, message: str) -> None:
    folders.write_config(tmp_path)
    (tmp_path / name).touch()
    if name.startswith("adapter"):
        (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^{tmp_path}: {message}"):
        tensors.stored_tensors(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: expected a regular file, but this is a pipe"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name}: expected a regular file, but this is a device"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_be_read_is_not_called_absent(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind the superuser, under whom tests may run, so that opening refuses by itself here."""

    def refuse(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / name).write_bytes(b"GGUF")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=rf"{name}: you may not read this \(permission denied\)"):
        read(tmp_path / name)


def test_a_file_that_is_not_there_is_called_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent: no such file"):
        check_file(tmp_path / "absent")


# ----- names in an index ------------------------------------------------------------------------------------


def indexed(folder: Path, name: str) -> None:
    """A folder whose index names one file of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{name}"}}}}')


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{tmp}/outside.safetensors", "sub/../../outside.safetensors"]
)
def test_an_index_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    indexed(tmp_path / "in", name.format(tmp=tmp_path))
    with pytest.raises(
        ValueError, match=r"index\.json: it names '.*'; expected the name of a file in the same folder"
    ):
        tensors.stored_tensors(tmp_path / "in")


def test_a_link_out_of_the_folder_is_followed_only_into_the_cache_of_hugging_face(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--toy"
    snapshot = repository / "snapshots" / "c0ffee"
    indexed(snapshot, "model-1.safetensors")
    (repository / "blobs").mkdir()
    save_file({"a": np.zeros(2, np.float32)}, repository / "blobs" / "0123")
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/0123")
    assert tensors.stored_tensors(snapshot)["a"].shape == (2,)
    (snapshot / "model-1.safetensors").unlink()
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside")
    (snapshot / "model-1.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(
        ValueError, match=r"it names 'model-1\.safetensors', a link to .*outside outside the folder"
    ):
        tensors.stored_tensors(snapshot)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    indexed(tmp_path, "loop.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with pytest.raises(ValueError, match=r"loop\.safetensors"):
        tensors.stored_tensors(tmp_path)


# ----- counts and sizes ---------------------------------------------------------------------------------------


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"a header of 4611686018427387904 bytes in a file of 10"):
        tensors.stored_tensors(tmp_path)


def test_a_header_longer_than_any_list_of_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((9_000_000).to_bytes(8, "little") + b"{" + b" " * 9_000_000)
    with pytest.raises(ValueError, match=r"a header of 9000000 bytes in a file of 9000009"):
        tensors.stored_tensors(tmp_path)


def test_more_layers_than_tensors_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    folders.write_tensors(tmp_path, folders.random_tensors(toy.config()))
    with pytest.raises(
        ValueError, match=r"config\.json implies 1000000000 layers, but there are only 20 tensors"
    ):
        tensors.check(tmp_path, toy.config(n_layers=10**9))


def test_of_many_faults_the_first_are_listed(tmp_path: Path) -> None:
    save_file({f"t{i:02}": np.zeros(1, np.float32) for i in range(30)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as raised:
        tensors.check(tmp_path, toy.config())
    lines = str(raised.value).splitlines()
    assert (len(lines), lines[-1]) == (22, "  and 30 more")
