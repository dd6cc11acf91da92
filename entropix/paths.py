"""Where named weights live on disk. Imports nothing heavy, so that asking is quick.

A name is looked up in these folders, in this order:

1. `$ENTROPIX_WEIGHTS`, where it is set
2. `weights/` of the checkout around this file, where there is one
3. `weights/` of the working directory
4. `$XDG_DATA_HOME/entropix/weights`, by default `~/.local/share/entropix/weights`, the user's own

What is downloaded or converted goes into the first of the first two that there is; else into the third, where it
exists already; else into the fourth. Whatever is in none of them can be given as a path.
"""

import difflib
import os
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

from entropix import PACKAGE_ROOT
from entropix.showing import shown

_CHECKOUT = PACKAGE_ROOT.parent / "weights"
_IN_CHECKOUT = (_CHECKOUT / "manifest.toml").is_file()
# Which weights there are to download; a wheel carries its copy inside the package.
MANIFEST = _CHECKOUT / "manifest.toml" if _IN_CHECKOUT else PACKAGE_ROOT / "manifest.toml"

DEFAULT_MODEL = "smollm2-135m-instruct"
DOWNLOAD, CONVERT = "python -m entropix.download", "python -m entropix.convert"


def weights_roots() -> list[Path]:
    """The folders in which names are looked up, in order; see above."""
    roots = []
    if configured := os.environ.get("ENTROPIX_WEIGHTS"):
        roots.append(Path(configured))
    if _IN_CHECKOUT:
        roots.append(_CHECKOUT)
    roots.append(Path("weights"))
    if (own := _own_folder()) is not None:
        roots.append(own)
    return roots


def weights_root() -> Path:
    """The folder for what is downloaded or converted; see above."""
    first, *_ = roots = weights_roots()
    if first == Path("weights") and not first.is_dir():  # neither named nor a checkout
        return roots[-1]
    return first


def _own_folder() -> Path | None:
    """The user's own folder; None for a user without a home directory."""
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # which the specification says to ignore
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError:
            return None
    return data / "entropix" / "weights"


def is_complete(folder: Path) -> bool:
    """Whether this is a checkpoint folder. They are renamed into place when finished, so none is half."""
    try:
        return (folder / "config.json").is_file()
    except OSError:  # a folder that may not be entered, a name that is too long
        return False


def weights_folder(name_or_dir: str | Path) -> Path:
    """The checkpoint folder of a name below one of `weights_roots()`, or of a path to a directory.

    Raises a ValueError that says what is there instead, and what to do.
    """
    if not isinstance(name_or_dir, str | Path):
        raise ValueError(f"expected the name of weights or a folder, got {shown(name_or_dir)}")
    candidates = [*(root / name_or_dir for root in weights_roots()), Path(name_or_dir)]
    for folder in candidates:
        if is_complete(folder):
            return folder
    for path in candidates:
        try:
            if path.is_dir():
                names = [file.name for file in path.iterdir()]
                if "config.json" in names:
                    raise ValueError(
                        f"{path / 'config.json'}: expected a regular file, this is something else, or a link to nothing"
                    )
                raise ValueError(f"{path}: {what_is_there(names, path)}")
            if path.exists():
                raise ValueError(f"{path}: {_what_file(path)}")
        except PermissionError:
            raise ValueError(f"{path}: this user may not read it (permission denied)") from None
        except OSError:  # no name that a file could have
            continue
    raise ValueError(_unknown(str(name_or_dir)))


def what_is_there(names: Collection[str], where: str | Path) -> str:
    """What to do with a folder of these files, which cannot be used as it stands; for the end of an error."""
    convert = f"`{CONVERT} {where}` makes a folder that --weights takes"
    if "adapter_config.json" in names:
        return (
            "this is an adapter (adapter_config.json; LoRA or the like), which is no model of its own; "
            "give its base model to --weights, and this folder to --adapter"
        )
    if "params.json" in names:
        return f"no config.json in this folder: these are Meta's original files; {convert}"
    if gguf := sorted(name for name in names if name.lower().endswith(".gguf")):
        return (
            f"no config.json in this folder, but GGUF files; `{CONVERT} {Path(where) / gguf[0]}` makes a folder that "
            "--weights takes"
        )
    if "snapshots" in names:
        return (
            "no config.json in this folder: this is the cache of Hugging Face for a repository; give the folder below "
            "its snapshots/"
        )
    has_config = "config.json" in names
    if has_config and any(name.startswith("pytorch_model") for name in names):
        return f"its tensors are in pytorch_model.bin, which is not read as it is; {convert}"
    if has_config:
        return (
            "no .safetensors file here; with transformers, save_pretrained(..., safe_serialization=True) makes one of "
            "other formats"
        )
    if any(name.endswith(".safetensors") for name in names):
        return "no config.json in this folder, to say what its tensors are; download the whole repository"
    return (
        f"no config.json in this folder, and no .safetensors file here; `{CONVERT}` makes such a folder of GGUF files "
        "and Meta's originals"
    )


def _what_file(path: Path) -> str:
    """What to do with a file that was given for a folder."""
    start = b""
    if path.is_file():
        with path.open("rb") as stream:
            start = stream.read(4)
    if start == b"GGUF" or path.suffix.lower() in (".gguf", ".pth"):
        source = path if path.suffix.lower() != ".pth" else path.resolve().parent
        return f"a file, not a folder; `{CONVERT} {source}` makes a folder of it that --weights takes"
    if path.suffix == ".safetensors":
        return f"a file, not a folder; give the folder it is in, {path.resolve().parent}"
    return "not a folder; expected a checkpoint folder, with config.json, tensors and a tokenizer"


def manifest_names(path: Path = MANIFEST) -> list[str]:
    """The names that can be downloaded; none where the list cannot be read."""
    try:
        return list(tomllib.loads(path.read_text("utf-8-sig")))
    except (OSError, ValueError):
        return []


def _known() -> Iterator[str]:
    """Names of the weights that are there."""
    for root in weights_roots():
        try:
            yield from sorted(folder.name for folder in root.iterdir() if is_complete(folder))
        except OSError:
            continue


def _unknown(name: str) -> str:
    """The error for a name that is neither there nor a path."""
    roots = ", ".join(map(str, dict.fromkeys(weights_roots())))
    there, offered = list(_known()), manifest_names()
    if name in offered:
        return f"no weights {name!r} in {roots}; `{DOWNLOAD} {name}` fetches them"
    near = difflib.get_close_matches(name, [*there, *offered], n=1)
    missing = f"no weights {name!r}, neither in {roots} nor as a folder"
    if near:
        fetched = "" if near[0] in there else f", which `{DOWNLOAD} {near[0]}` fetches"
        return f"{missing}; did you mean {near[0]!r}{fetched}?"
    return f"{missing}; `{DOWNLOAD}` fetches the default model, `{DOWNLOAD} --model-id ORG/NAME` another one"
