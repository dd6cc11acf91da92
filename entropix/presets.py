"""Configurations by name: the TOML files of configs/ and those of users."""

from pathlib import Path

from entropix import PACKAGE_ROOT
from entropix.config import ModelConfig, from_mapping
from entropix.files import read_text, read_toml
from entropix.showing import suggestions

PUBLISHED = "entropix"
# By the name of a model's folder: the preset whose numbers were chosen for it, by its answers.
FOR_MODELS = {"smollm2-135m-instruct": "entropix-smollm2-135m-instruct"}


def for_model(weights: str | Path) -> str:
    """The preset that is taken for these weights where none is named: the one that was chosen for them, else the
    published numbers."""
    return FOR_MODELS.get(Path(weights).name, PUBLISHED)


def preset_names(kind: str) -> list[str]:
    """Names of the files in `configs/<kind>` (`models` or `samplers`)."""
    return sorted(path.stem for path in shipped(kind).glob("*.toml"))


def read_model(name: str) -> ModelConfig:
    """The architecture of a name in `configs/models` or of a TOML file."""
    path = preset_path("models", name)
    return from_mapping(ModelConfig, read_toml(path), str(path))


def preset_comment(name: str) -> str:
    """The first line of a sampler's preset, which is a comment that says what the preset is."""
    return read_text(preset_path("samplers", name)).partition("\n")[0].removeprefix("# ")


def shipped(name: str) -> Path:
    """A file or folder of `configs/`, which stands beside the package in a checkout and inside it in a wheel."""
    installed = PACKAGE_ROOT / "configs"
    return (installed if installed.is_dir() else PACKAGE_ROOT.parent / "configs") / name


def preset_path(kind: str, name: str) -> Path:
    """The TOML file that is meant; a ValueError for a name that there is none of."""
    if name.endswith(".toml"):
        return Path(name)
    path = shipped(kind) / f"{name}.toml"
    if not path.is_file():
        raise ValueError(unknown(kind, name, preset_names(kind)))
    return path


def unknown(kind: str, name: str, known: list[str]) -> str:
    """What to say of a name that is not known."""
    files = "a .toml file" if kind == "models" else "a .toml file or a rule of yours, FILE.py:NAME"
    return f"no {kind[:-1]} preset {name!r}{suggestions(name, known)}, or give {files}"
