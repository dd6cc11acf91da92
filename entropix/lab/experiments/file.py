"""Grids as TOML files, for `scripts/run_grid.py`.

    prompts = "prompts.txt"       # a file, as for --prompt-file of entropix.main, or a list of texts
    seeds = [0, 1, 2]             # or how many, counted from 0
    max_new_tokens = 64           # like stop, speculate and the other fields of `GenerateConfig` that `OPTIONS` names
    system = "Be brief."          # before every prompt; left out: none
    raw = false                   # true: prompts are continued as plain text, without a chat template
    template_args = {}            # what the chat template reads besides: {enable_thinking = false}

    [[samplers]]                  # as often as wanted
    sampler = "entropix"          # a preset, a .toml file, or a rule of yours: "my_rule.py:RULE"
    temp = 0.6                    # a number of the sampler's config
    high_ent_thresh = [3.0, 5.0]  # several: every combination is a variant of its own
    cot = 4                       # each answer chosen from several paths: also best_of = 8 or self_consistency = 5,
    select = "borda"              # and cot_at, cot_entropy, sample_above, select, extract, as flags of entropix.main

Only `prompts` and `samplers` must be there. Files are looked for beside the grid's own.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropix import config, files, prompts, samplers, sharding
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.cot.plan import KINDS
from entropix.generation import encode_prompt
from entropix.lab.experiments.command import MOST_SEEDS, chunk_length
from entropix.lab.experiments.engine import Grid, Variant
from entropix.lab.experiments.variants import expand, with_paths
from entropix.showing import suggestion

_KEYS = ("prompts", "seeds", "system", "raw", "template_args", "samplers")
# Fields that a grid sets itself, or whose outcome its results have no place for.
_OWN = ("seed", "seeds", "occurrences", "chunk_length", "alternatives", "head_entropies")
OPTIONS = tuple(field.name for field in dataclasses.fields(GenerateConfig) if field.name not in _OWN)
ROWS = 16  # of a batch, for each group of devices that has rows of its own
_SEEDS = 4  # unless told otherwise, as for `entropix.compare`


@dataclass(frozen=True)
class GridFile:
    """What a file asks for, checked as far as that goes without a model."""

    prompts: list[Any]  # texts and conversations
    seeds: tuple[int, ...]
    options: GenerateConfig
    system: str | None
    raw: bool
    template_args: Mapping[str, Any]
    variants: list[Variant]


def read(path: Path) -> GridFile:
    """The grid of a file. Raises a ValueError that names the file and the key for whatever is wrong in it."""
    values = files.read_toml(path)
    _check_keys(values, (*_KEYS, *OPTIONS), str(path))
    if missing := [key for key in ("prompts", "samplers") if key not in values]:
        raise ValueError(f"{path}: {missing[0]} is missing")
    system, raw = values.get("system"), values.get("raw", False)
    if not isinstance(system, str | None):
        raise ValueError(f"{path}: system must be a text, got {system!r}")
    arguments = values.get("template_args", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: template_args must be a table, got {arguments!r}")
    if not isinstance(raw, bool):
        raise ValueError(f"{path}: raw must be true or false, got {raw!r}")
    if raw and system is not None:
        raise ValueError(
            f"{path}: raw completes plain text, which has no system message; drop one of the two"
        )
    options = _options(values, str(path))
    return GridFile(
        prompts=_prompts(values["prompts"], path, system, raw),
        seeds=options.seeds,
        options=options,
        system=system,
        raw=raw,
        template_args=arguments,
        variants=[_looking(variant, values, options) for variant in _variants(values["samplers"], path)],
    )


def grid(file: GridFile, model: Model, max_rows: int | None = None, part: tuple[int, int] = (1, 1)) -> Grid:
    """The grid of a file for a model. max_rows: by default `ROWS` for each group of devices."""
    groups = sharding.groups(model.mesh)
    return Grid(
        variants=file.variants,
        prompts=[encode_prompt(model, p, system=file.system, raw=file.raw) for p in file.prompts],
        texts=[prompts.shown(prompt) for prompt in file.prompts],
        seeds=file.seeds,
        options=file.options,
        max_rows=ROWS * groups if max_rows is None else max_rows,
        groups=groups,
        part=part,
    )


def _options(values: Mapping[str, Any], where: str) -> GenerateConfig:
    """How answers are generated, and with which seeds."""
    seeds = values.get("seeds", _SEEDS)
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds > MOST_SEEDS:
            raise ValueError(f"{where}: seeds must be at most {MOST_SEEDS}, got {seeds}")
        seeds = range(seeds)
    given = {name: value for name, value in values.items() if name in OPTIONS}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    options = config.from_mapping(GenerateConfig, {**given, "seeds": seeds}, where)
    if "" in options.stop:
        raise ValueError(f"{where}: stop must not be an empty text")
    return dataclasses.replace(options, chunk_length=chunk_length(options.max_new_tokens))


def _prompts(value: Any, path: Path, system: str | None, raw: bool) -> list[Any]:
    """The prompts of a file, or those listed."""
    if isinstance(value, str):
        return prompts.from_file(path.parent / value, system, raw)
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError(f"{path}: prompts must be the name of a file or a list of texts, none of them empty")
    return value


def _variants(value: Any, path: Path) -> list[Variant]:
    """All combinations of all samplers, each labelled by its sampler and the numbers that the file gives it."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ValueError(f'{path}: samplers must be tables: [[samplers]], and below it sampler = "entropix"')
    variants = []
    for number, table in enumerate(value, start=1):
        where = f"{path}: samplers, number {number}"
        numbers = dict(table)
        name = numbers.pop("sampler", None)
        if not isinstance(name, str):
            raise ValueError(f'{where}: expected an entry like sampler = "entropix", got {name!r}')
        axes = {field: values if isinstance(values, list) else [values] for field, values in numbers.items()}
        if empty := [field for field, values in axes.items() if not values]:
            raise ValueError(f"{where}: {empty[0]} has no value; give at least one")
        try:
            of_paths = {field: axes.pop(field) for field in [*axes] if field in KINDS}
            found = with_paths(expand(samplers.resolve(name, folder=path.parent), axes, where), of_paths)
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
        variants += [
            dataclasses.replace(variant, label=f"{name} {variant.label}".rstrip()) for variant in found
        ]
    return variants


def _looking(variant: Variant, values: Mapping[str, Any], options: GenerateConfig) -> Variant:
    """The variant, whose preset says how to look ahead and back where the file does not say it for all."""
    told = {name: getattr(options, name) for name in variant.sampler.looking if name in values}
    return dataclasses.replace(variant, sampler=dataclasses.replace(variant.sampler, **told))


def _check_keys(values: Iterable[str], known: tuple[str, ...], where: str) -> None:
    """Raises a ValueError for the first key that means nothing."""
    for key in values:
        if key not in known:
            hint = suggestion(key, known, f"known: {', '.join(known)}")
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
