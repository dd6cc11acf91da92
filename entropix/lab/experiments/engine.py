"""Grids: every variant of a sampler with every prompt and every seed, in batches that can be resumed.

A grid is planned before anything runs: `plan` lists its batches, `generate_batch` computes one, `run` those that a
`Store` does not hold yet. A plan depends on nothing but the grid, and a batch on nothing but itself, so a grid that was
interrupted and resumed, or divided into parts and merged, has the results of one that was not, to the byte.

All batches of a grid have the same number of rows: a sampler compiles once (and once more for each size that its cache
grows to), however many variants of its numbers there are.

Random numbers are common to all variants: the key of a row is made of its seed and its prompt. Where two variants pick
from the same candidates with the same probabilities, they draw the same token.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from entropix import run_statistics, sharding, trace
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.decoding.request import check_prompts
from entropix.decoding.session import Session
from entropix.generation import prepare
from entropix.generation import run as events_of
from entropix.lab.experiments.results import Follower, Line, Store
from entropix.results import Result, add
from entropix.samplers import ResolvedSampler

FORMAT, VERSION = "entropix-grid", 1
_SEEDS = ("seed", "seeds", "occurrences")  # of `GenerateConfig`; those of a grid are its own
_DECIMALS = 4  # of the entropies kept for every token, in bits


@dataclass(frozen=True)
class Variant:
    """A sampler with its numbers, under a name of its own."""

    label: str
    sampler: ResolvedSampler

    def described(self) -> dict[str, Any]:
        """What its answers depend on, as JSON has it."""
        sampler = self.sampler
        told = {"label": self.label, "sampler": sampler.name, "config": asdict(sampler.numbers)}
        if sampler.source is None:
            return told
        # Without its folder, which differs among machines that share a grid.
        source = sampler.source._replace(file=Path(sampler.source.file).name)
        return {**told, "sampler_source": source._asdict()}


@dataclass(frozen=True)
class Grid:
    """What shall be generated: every variant × prompt × seed."""

    variants: Sequence[Variant]
    prompts: Sequence[Sequence[int]]  # token ids
    texts: Sequence[str]  # the prompts, as shown to people
    seeds: Sequence[int]
    options: GenerateConfig  # its own seeds are ignored
    max_rows: int  # most rows of a batch
    groups: int = 1  # of devices, which share the rows of a batch evenly: the axis `data` of the mesh
    part: tuple[int, int] = (1, 1)  # the how manieth of how many parts of the whole, from 1


class Cell(NamedTuple):
    """One answer."""

    prompt: int  # its number, from 0
    seed: int


class Batch(NamedTuple):
    """Answers that are generated together."""

    variant: int  # its number, from 0
    cells: tuple[Cell, ...]
    size: int  # rows; those beyond the cells are padding


# ----- planning ---------------------------------------------------------------------------------------------


def groups(model: Model) -> int:
    """How many groups of devices have rows of their own."""
    return 1 if model.mesh is None else model.mesh.shape[sharding.DATA]


def check(grid: Grid, model: Model) -> None:
    """Raises a ValueError for the first thing that would make the grid fail or its results ambiguous."""
    for what, items in (("variant", grid.variants), ("prompt", grid.prompts), ("seed", grid.seeds)):
        if not items:
            raise ValueError(f"a grid needs at least one {what}")
    if grid.max_rows < 1:
        raise ValueError(f"a batch needs at least one row, got {grid.max_rows}")
    if twice := _first_twice([variant.label for variant in grid.variants]):
        raise ValueError(f"two variants are called {grid.variants[twice[0]].label!r}; name each once")
    if twice := _first_twice(list(map(tuple, grid.prompts))):
        first, second = (number + 1 for number in twice)
        raise ValueError(
            f"prompts {first} and {second} are the same; drop one of them, and ask for more seeds instead"
        )
    if twice := _first_twice(grid.seeds):
        raise ValueError(f"seed {grid.seeds[twice[0]]} is there twice; name each once")
    check_prompts(grid.prompts, model.config)
    if grid.max_rows % grid.groups:
        raise ValueError(
            f"a batch of {grid.max_rows} rows cannot be shared evenly by data={grid.groups}; choose a multiple of "
            f"{grid.groups}"
        )
    if grid.part[1] > (most := len(_pieces(grid))):
        raise ValueError(
            f"{grid.part[1]} parts are too many: with batches of {grid.max_rows} there is work for {most}; take fewer "
            "parts or smaller batches"
        )


def plan(grid: Grid) -> list[Batch]:
    """The batches of a grid, in order: the same answers of all variants come together, so that whenever it ends, what
    is there compares the variants fairly.

    Part I of N has every N-th piece of it from the I-th on, so that all parts together compute the very batches of the
    whole.
    """
    number, parts = grid.part
    return [
        Batch(variant, piece, size)
        for size, piece in _pieces(grid)[number - 1 :: parts]
        for variant in range(len(grid.variants))
    ]


def _pieces(grid: Grid) -> list[tuple[int, tuple[Cell, ...]]]:
    """(rows of the batch, answers in it) of what all variants do, one after the other."""
    cells = [Cell(prompt, seed) for prompt in range(len(grid.prompts)) for seed in grid.seeds]
    even = math.ceil(len(cells) / math.ceil(len(cells) / grid.max_rows))
    size = math.ceil(even / grid.groups) * grid.groups
    return [(size, tuple(cells[start : start + size])) for start in range(0, len(cells), size)]


def keys(grid: Grid) -> list[list[dict[str, Any]]]:
    """What names each answer of each batch in its line."""
    return [
        [{"variant": grid.variants[batch.variant].label, **cell._asdict()} for cell in batch.cells]
        for batch in plan(grid)
    ]


def manifest(grid: Grid, model: Model) -> dict[str, Any]:
    """Everything that the results depend on, as JSON has it. Results of equal manifests may stand in one file."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **trace.circumstances(model),
        "variants": [variant.described() for variant in grid.variants],
        "prompts": [
            {"text": text, "token_ids": list(ids)} for text, ids in zip(grid.texts, grid.prompts, strict=True)
        ],
        **_date(model),
        "seeds": list(grid.seeds),
        "generation": {name: value for name, value in asdict(grid.options).items() if name not in _SEEDS},
        "batch": grid.max_rows,
        "groups": grid.groups,
        "part": grid.part[0],
        "parts": grid.part[1],
    }


def _date(model: Model) -> dict[str, str]:
    """The day that stands in the prompts, where the model's chat template writes one."""
    now = None if model.chat_template is None else model.chat_template.now
    return {} if now is None else {"date": now.date().isoformat()}


def _first_twice(items: Sequence[Any]) -> tuple[int, int] | None:
    """The places of the first item that was there before, if any."""
    places: dict[Any, int] = {}
    for place, item in enumerate(items):
        if places.setdefault(item, place) != place:
            return places[item], place
    return None


# ----- running ----------------------------------------------------------------------------------------------


def run(model: Model, grid: Grid, store: Store | Follower) -> Iterator[Batch]:
    """Generates the batches that the store does not hold yet; yields each when it is safely kept."""
    for batch in plan(grid)[store.n_batches :]:
        store.append(*generate_batch(model, grid, batch))
        yield batch


def generate_batch(model: Model, grid: Grid, batch: Batch) -> tuple[list[Line], Mapping[str, Any]]:
    """(a line for each answer, how long it took) of one batch.

    Time is counted from the end of the first chunk, which includes compilation: `tokens` in `seconds`, 0 where all was
    done in one chunk. Padding rows repeat the last cell and count for nothing.
    """
    variant = grid.variants[batch.variant]
    rows = [*batch.cells, *[batch.cells[-1]] * (batch.size - len(batch.cells))]
    request = prepare(
        model,
        [list(grid.prompts[cell.prompt]) for cell in rows],
        sampler=variant.sampler,
        seeds=[cell.seed for cell in rows],
        occurrences=[0] * len(rows),  # a draw depends on seed and prompt, not on what else is in the batch
        **{name: value for name, value in vars(grid.options).items() if name not in _SEEDS},
    )
    session = Session(model, batch.size)
    results = [Result(prompt_ids) for prompt_ids in request.prompt_ids]
    first_chunk, began, ended, late = 0, 0.0, 0.0, 0
    for event in events_of(request, session):
        add(results, event)
        if first_chunk in (0, session.costs.n_passes):
            first_chunk, began = session.costs.n_passes, time.perf_counter()
        elif event.record is not None and event.row < len(batch.cells):
            late, ended = late + 1, time.perf_counter()
    lines = [line(variant, cell, result) for cell, result in zip(batch.cells, results, strict=False)]
    timing = {"variant": variant.label, "tokens": late, "seconds": ended - began if late else 0.0}
    return lines, timing


def line(variant: Variant, cell: Cell, result: Result) -> Line:
    """An answer as it is kept: all that tables and pages are made of. None stands for what is not finite."""
    logprobs = [record["logprob"] for record in result.records if record["logprob"] is not None]
    means = run_statistics.mean_metrics([result])
    return {
        "variant": variant.label,
        "prompt": cell.prompt,
        "seed": cell.seed,
        "sampler": variant.sampler.name,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish": result.finish.name.lower(),
        "new_tokens": len(result.token_ids),
        "strategies": run_statistics.strategy_counts([result], variant.sampler.rule.strategies),
        "mean_logprob": math.fsum(logprobs) / len(logprobs) if logprobs else None,
        "mean_metrics": {name: mean if math.isfinite(mean) else None for name, mean in means.items()},
        "logits_entropy": [_rounded(record["logits_entropy"]) for record in result.records],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
