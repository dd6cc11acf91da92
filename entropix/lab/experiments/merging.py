"""The parts of a grid, computed by machines that know nothing of each other, made one."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropix import config, samplers
from entropix.config import BranchConfig, GenerateConfig
from entropix.cot.plan import Plan
from entropix.lab.experiments import engine
from entropix.lab.experiments.engine import FORMAT, Grid, Variant
from entropix.lab.experiments.results import MANIFEST, Line, Store, difference, read_manifest
from entropix.lab.experiments.summary import Summary, summarize

Manifest = dict[str, Any]


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
    lines, timings = _read_parts(folders, manifests)
    keys = engine.keys(whole)
    with Store(out, entire, keys) as store:
        rest = (lines[tuple(key.values())] for key in keys[store.n_lines :])
        for label, turn in itertools.groupby(rest, key=lambda line: str(line["variant"])):
            store.append(list(turn), timings.pop(label, {"variant": label, "tokens": 0, "seconds": 0.0}))
        return summarize([variant.label for variant in whole.variants], store.lines, store.timings)


def _check_parts(folders: Sequence[str], manifests: Sequence[Manifest]) -> None:
    """Raises a ValueError unless these are all parts of one grid."""
    for folder, manifest in zip(folders, manifests, strict=True):
        numbers = [manifest.get(name) for name in ("part", "parts")]
        if manifest.get("format") != FORMAT or not all(type(n) is int and 0 < n < 1 << 20 for n in numbers):
            raise ValueError(f"{folder}: its {MANIFEST} is not that of a grid's results")
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


def _read_parts(
    folders: Sequence[str], manifests: Sequence[Manifest]
) -> tuple[dict[tuple[Any, ...], Line], dict[str, dict[str, Any]]]:
    """(lines by the values of their keys, what each variant took in all parts together)."""
    lines: dict[tuple[Any, ...], Line] = {}
    timings: dict[str, dict[str, Any]] = {}
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
                label = timing["variant"]
                total = timings.setdefault(label, {"variant": label, "tokens": 0, "seconds": 0.0})
                total["tokens"] += timing["tokens"]
                total["seconds"] += timing["seconds"]
    return lines, timings


def _grid(manifest: Manifest, where: str) -> Grid:
    """The grid that a manifest describes."""
    return Grid(
        variants=[
            Variant(
                v["label"],
                samplers.recorded(v["sampler"], v["config"], v.get("sampler_source")),
                Plan(**v["paths"]) if "paths" in v else None,
                config.from_mapping(BranchConfig, v["branching"], where) if "branching" in v else None,
            )
            for v in manifest["variants"]
        ],
        prompts=[prompt["token_ids"] for prompt in manifest["prompts"]],
        texts=[prompt["text"] for prompt in manifest["prompts"]],
        seeds=manifest["seeds"],
        options=config.from_mapping(GenerateConfig, manifest["generation"], where),
        max_rows=manifest["batch"],
        groups=manifest["groups"],
        most_tokens=manifest.get("most_tokens", ()),
        part=(manifest["part"], manifest["parts"]),
    )
