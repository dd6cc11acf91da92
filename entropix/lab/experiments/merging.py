"""The parts of a grid, computed by machines that know nothing of each other, made one."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropix import config, samplers
from entropix.config import GenerateConfig
from entropix.cot.plan import Plan
from entropix.lab.experiments import engine
from entropix.lab.experiments.engine import FORMAT, Grid, Variant
from entropix.lab.experiments.results import MANIFEST, Line, Store, difference, read_manifest
from entropix.lab.experiments.summary import Summary, summarize
from entropix.trace.schema import PROMPT, check

Manifest = dict[str, Any]
_MANIFEST = {
    "variants": "list of objects",
    "prompts": "list of objects",
    "seeds": "list of integers",
    "generation": "object",
    "batch": "integer",
    "groups": "integer",
}
_VARIANT = {"label": "string", "sampler": "string", "config": "object"}


def merge(folders: Sequence[str], out: str) -> list[Summary]:
    """Writes the folder of the whole grid, and returns what it says about each variant.

    The folder is what a single machine would have written, but for the last digits, and may be resumed like one; its
    timings are those of the parts. Merging that was interrupted goes on with the same call. Raises a ValueError for
    parts of different grids, for one that is missing, there twice, still running or not finished.
    """
    manifests = [read_manifest(Path(folder)) for folder in folders]
    _check_parts(folders, manifests)
    entire = manifests[0] | {"part": 1, "parts": 1}
    whole = _grid(entire, folders[0])
    lines, timing = _read_parts(folders, manifests)
    keys = engine.keys(whole)
    with Store(out, entire, keys) as store:
        if rest := [lines[tuple(key.values())] for key in keys[store.n_lines :]]:
            store.append(rest, timing)
        return summarize([variant.label for variant in whole.variants], store.lines, store.timings)


def _check_parts(folders: Sequence[str], manifests: Sequence[Manifest]) -> None:
    """Raises a ValueError unless these are all parts of one grid."""
    for folder, manifest in zip(folders, manifests, strict=True):
        numbers = [manifest.get(name) for name in ("part", "parts")]
        if manifest.get("format") != FORMAT or not all(type(n) is int and 0 < n < 1 << 20 for n in numbers):
            raise ValueError(f"{folder}: its {MANIFEST} is not that of a grid's results")
        _check_manifest(manifest, str(Path(folder) / MANIFEST))
    places: dict[int, str] = {}
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        number, parts = manifest["part"], manifest["parts"]
        if change := difference(first | {"part": number}, manifest):
            raise ValueError(
                f"{folder} is not of the same grid as {folders[0]}: {change.removesuffix(' now')} here; merge parts "
                "that were computed from one file in one way"
            )
        if number in places:
            raise ValueError(
                f"part {number}/{parts} is there twice, in {places[number]} and {folder}; drop one of them"
            )
        places[number] = folder
    if missing := sorted(set(range(1, first["parts"] + 1)) - set(places)):
        raise ValueError(f"part {missing[0]}/{first['parts']} is missing; name its folder too")


def _check_manifest(manifest: Manifest, where: str) -> None:
    """Raises a ValueError for a field of which no grid could be made."""
    check(manifest, _MANIFEST, where)
    for name in ("variants", "prompts", "seeds", "batch", "groups"):
        if not manifest[name]:
            raise ValueError(f"{where}: expected at least one in {name!r}, got {manifest[name]}")
    for i, variant in enumerate(manifest["variants"]):
        check(variant, _VARIANT, where, f"variants[{i}].")
        for name in ("paths", *config.LOOKING, "sampler_source"):
            check(variant, {name: "object"} if name in variant else {}, where, f"variants[{i}].")
    for i, prompt in enumerate(manifest["prompts"]):
        check(prompt, PROMPT, where, f"prompts[{i}].")


def _read_parts(
    folders: Sequence[str], manifests: Sequence[Manifest]
) -> tuple[dict[tuple[Any, ...], Line], dict[str, Any]]:
    """(lines by the values of their keys, what all parts took together)."""
    lines: dict[tuple[Any, ...], Line] = {}
    tokens: Counter[str] = Counter()
    seconds = 0.0
    for folder, manifest in zip(folders, manifests, strict=True):
        keys = engine.keys(_grid(manifest, folder))
        with Store(folder, manifest, keys) as store:
            if store.n_lines < len(keys):
                raise ValueError(
                    f"{folder}: {store.n_lines} of {len(keys)} answers are there; complete part "
                    f"{manifest['part']}/{manifest['parts']} first"
                )
            lines |= {tuple(key.values()): line for key, line in zip(keys, store.lines, strict=True)}
            for timing in store.timings:
                tokens.update(timing["tokens"])
                seconds += timing["seconds"]
    return lines, {"tokens": dict(tokens), "seconds": seconds}


def _variant(recorded: dict[str, Any], where: str) -> Variant:
    plan = recorded.get("paths")
    try:
        sampler = samplers.recorded(recorded["sampler"], recorded["config"], recorded.get("sampler_source"))
        looking = {name: recorded[name] for name in config.LOOKING if recorded.get(name) is not None}
        return Variant(
            recorded["label"],
            dataclasses.replace(sampler, **config.read_looking(looking)),
            None if plan is None else config.from_mapping(Plan, plan, "paths"),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _grid(manifest: Manifest, where: str) -> Grid:
    """The grid that a manifest describes."""
    return Grid(
        variants=[_variant(recorded, where) for recorded in manifest["variants"]],
        prompts=[prompt["token_ids"] for prompt in manifest["prompts"]],
        texts=[prompt["text"] for prompt in manifest["prompts"]],
        seeds=manifest["seeds"],
        options=config.from_mapping(GenerateConfig, manifest["generation"], where),
        max_rows=manifest["batch"],
        groups=manifest["groups"],
        most_tokens=manifest.get("most_tokens", ()),
        part=(manifest["part"], manifest["parts"]),
    )
