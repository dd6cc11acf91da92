"""Where named weights live on disk. Imports nothing heavy, so that asking is quick."""

import os
from pathlib import Path

from entropix import PACKAGE_ROOT

MANIFEST = PACKAGE_ROOT.parent / "weights" / "manifest.toml"


def weights_root() -> Path:
    """`$ENTROPIX_WEIGHTS`, else `weights/` of the checkout around this file, else `weights/` right here."""
    if configured := os.environ.get("ENTROPIX_WEIGHTS"):
        return Path(configured)
    return MANIFEST.parent if MANIFEST.is_file() else Path("weights")


def is_complete(folder: Path) -> bool:
    """Whether this is a checkpoint folder. They are renamed into place when finished, so none is half."""
    return (folder / "config.json").is_file()


def weights_folder(name_or_dir: str | Path) -> Path:
    """The checkpoint folder of a name below `weights_root()`, or of a path to a directory."""
    candidates = (weights_root() / name_or_dir, Path(name_or_dir))
    for folder in candidates:
        if is_complete(folder):
            return folder
    for folder in candidates:
        if folder.is_dir():
            raise ValueError(
                f"{folder}: no config.json in this folder; `python scripts/convert_weights.py` converts GGUF "
                "files and Meta's originals"
            )
    raise ValueError(
        f"no weights {str(name_or_dir)!r}, neither in {weights_root()} nor as a folder; `python "
        "scripts/download_weights.py` fetches the default model, `--model-id ORG/NAME` another one"
    )
