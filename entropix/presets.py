"""Configurations by name: the TOML files of configs/ and those of users."""

import difflib
from pathlib import Path

from entropix import PACKAGE_ROOT
from entropix.config import ModelConfig, SamplerConfig, from_mapping
from entropix.files import read_text, read_toml


def preset_names(kind: str) -> list[str]:
    """Names of the files in `configs/<kind>` (`models` or `samplers`)."""
    return sorted(path.stem for path in shipped(kind).glob("*.toml"))


def read_model(name: str) -> ModelConfig:
    """The architecture of a name in `configs/models` or of a TOML file."""
    path = _preset_path("models", name)
    return from_mapping(ModelConfig, read_toml(path), str(path))


def read_preset(name: str) -> tuple[str, SamplerConfig]:
    """(sampler name, config) of a name in `configs/samplers` or of a TOML file.

    The file's `sampler` names the rule; its other entries replace numbers of that rule's own preset.
    """
    path = _preset_path("samplers", name)
    values = read_toml(path)
    sampler = values.pop("sampler", None)
    if not isinstance(sampler, str):
        raise ValueError(f'{path}: expected an entry like sampler = "entropix", got {sampler!r}')
    own = shipped("samplers") / f"{sampler}.toml"
    defaults = read_toml(own) if own.is_file() else {}
    defaults.pop("sampler", None)
    return sampler, from_mapping(SamplerConfig, defaults | values, str(path))


def preset_comment(name: str) -> str:
    """The first line of a sampler's preset, which is a comment that says what the preset is."""
    return read_text(_preset_path("samplers", name)).partition("\n")[0].removeprefix("# ")


def shipped(name: str) -> Path:
    """A file or folder of `configs/`, which stands beside the package in a checkout and inside it in a wheel."""
    installed = PACKAGE_ROOT / "configs"
    return (installed if installed.is_dir() else PACKAGE_ROOT.parent / "configs") / name


def _preset_path(kind: str, name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    path = shipped(kind) / f"{name}.toml"
    if not path.is_file():
        known = preset_names(kind)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? There are" if near else "there are"
        raise ValueError(f"no {kind[:-1]} preset {name!r}; {hint} {', '.join(known)}, or give a .toml file")
    return path
