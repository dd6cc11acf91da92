"""What the toy model generates in every way there is, kept in golden.jsonl: a change of form must not change it.

`python tests/golden.py` writes the file anew, which is right only where results are meant to change.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apart
import conftest  # noqa: F401  before JAX: the compiler's flags, and the strictness of the tests
import meshes
import toy

import entropix
from entropix.checkpoint.loading import Model
from entropix.cot import parallel
from entropix.cot.parallel import CotResult
from entropix.presets import preset_names

FILE = Path(__file__).with_name("golden.jsonl")

Row = dict[str, Any]
Compute = Callable[[], list[Row]]

_PROMPTS = ["Why is the sky blue?", "ab" * 20]
_BRANCHING = {"paths": 3, "depth": 3, "strategies": ["explore", "adaptive"], "distance": 2}
_OTHER_BRANCHING = {**_BRANCHING, "keep": "token", "among": "all", "score": "entropy", "growth": 4.0}
_BACKTRACKING = {"tokens": 2, "strategies": ["explore", "resample"], "budget": 3}
# The toy has about 7 bits and 2 bits² everywhere: with these thresholds it meets every strategy.
_NUMBERS = {
    "low_ent_thresh": 7.2,
    "low_vent_thresh": 2.35,
    "med_ent_thresh": 7.1,
    "high_ent_thresh": 7.1,
    "high_vent_thresh": 2.5,
}
_OPTIONS: dict[str, Any] = {"seed": 3, "max_new_tokens": 24, "sampler_config": _NUMBERS}
_GUARD = {"repetition_penalty": 1.3, "dry_multiplier": 0.8}


@functools.cache
def _model(mesh: str = "") -> Model:
    return meshes.on_mesh(toy.model_of(), mesh) if mesh else toy.model_of()


def _rows(prompts: Sequence[str] = _PROMPTS, mesh: str = "", **options: Any) -> Compute:
    return lambda: list(map(_row, entropix.generate(_model(mesh), prompts, **options)))


def _paths(search: Callable[..., CotResult], *args: Any, **options: Any) -> Compute:
    def compute() -> list[Row]:
        found = search(_model(), "1+1=", *args, seed=5, **options)
        own = ({"answer": p.answer, "scores": p.scores, "passes": p.forward_passes} for p in found.paths)
        several = [_row(path.result) | more for path, more in zip(found.paths, own, strict=True)]
        return [{"chosen": found.chosen, "passes": found.forward_passes}, *several]

    return compute


CASES: dict[str, Compute] = {
    **{name: _rows(sampler=name, seed=1, max_new_tokens=8) for name in preset_names("samplers")},
    "thresholds": _rows(**_OPTIONS),
    "a guard": _rows(sampler="temperature", sampler_config=_GUARD, seed=2, max_new_tokens=16),
    "all that is recorded": _rows(alternatives=3, head_entropies=True, seed=4, max_new_tokens=6),
    "branching": _rows(branching=_BRANCHING, **_OPTIONS),
    "branching for one token": _rows(branching=_OTHER_BRANCHING, **_OPTIONS),
    "backtracking": _rows(backtracking=_BACKTRACKING, **_OPTIONS),
    "branching and backtracking": _rows(branching=_BRANCHING, backtracking=_BACKTRACKING, **_OPTIONS),
    "drafts": _rows(_PROMPTS[1:], sampler="greedy", speculate=3, max_new_tokens=40),
    "four rows": _rows(
        ["a", "A longer one, of some more tokens.", "a", "Why?"],
        seeds=(1, 2, 1, 3),
        stop="\n",
        chunk_length=5,
        max_new_tokens=12,
    ),
    "past a doubled cache": _rows(["x" * 220], sampler="top-p", seed=6, max_new_tokens=70),
    "a mesh": _rows(mesh="data=2,model=2", **_OPTIONS),
    "paths from the likeliest first tokens": _paths(parallel.decode, paths=3, max_new_tokens=8),
    "paths from uncertain positions": _paths(
        parallel.decode, paths=3, at="explore", sampler_config=_NUMBERS, max_new_tokens=16
    ),
    "best of three": _paths(parallel.best_of, 3, max_new_tokens=8),
    "self-consistency": _paths(parallel.self_consistency, 3, max_new_tokens=8),
}


def _row(result: Any) -> Row:
    """A result, its records turned into columns."""
    names = list(dict.fromkeys(name for record in result.records for name in record))
    columns = {name: [record.get(name) for record in result.records] for name in names}
    return {"answer_text": result.text, "finish": result.finish.name, **columns}


def plain(value: Any) -> Any:
    """What JSON can say of it: floats with nine digits, and without what follows from a token's id."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in ("text", "bytes")}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def everything() -> dict[str, list[Row]]:
    """What all cases give, by name."""
    return {name: plain(compute()) for name, compute in CASES.items()}


def write() -> None:
    """Writes the file."""
    with FILE.open("w", encoding="utf-8") as file:
        for name, rows in apart.compute(everything).items():
            file.write(json.dumps({"case": name, "rows": rows}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write()
