"""Grids: every variant of a sampler with every prompt and every seed, answer by answer, so that they can be resumed.

A grid is planned before anything runs: `plan` lists all answers in their order, `answers` computes some of a variant,
`run` those that a `Store` does not hold yet. A plan depends on nothing but the grid, and an answer on nothing but
itself, so a grid that was interrupted and resumed, or divided into parts and merged, has the answers of one that was
not, token for token; the last digits of their numbers depend on what was computed beside them.

A row that has ended takes the next answer of its variant (`batching`). A sampler compiles once (and once more for each
size that its cache grows to, and for each half to which the last rows shrink), however many variants of its numbers
there are.

Random numbers are common to all variants: the key of a row is made of its seed and its prompt. Where two variants pick
from the same candidates with the same probabilities, they draw the same token.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from entropix import run_statistics, trace
from entropix.batching import ContinuousBatch
from entropix.checkpoint.loading import Model
from entropix.config import BranchConfig, GenerateConfig
from entropix.cot import parallel
from entropix.cot.parallel import CotResult
from entropix.cot.plan import Plan
from entropix.decoding.request import GenerationRequest, check_prompts
from entropix.generation import prepare
from entropix.lab.experiments.results import Follower, Line, Store
from entropix.results import FinishReason, Result, TokenEvent, add
from entropix.samplers import ResolvedSampler

FORMAT, VERSION = "entropix-grid", 2
_SEEDS = ("seed", "seeds", "occurrences")  # of `GenerateConfig`; those of a grid are its own
_DECIMALS = 4  # of the entropies kept for every token, in bits
_DIGITS = 5  # of an answer's means
_TURN = 8  # batches full of answers of one variant, before the next variant has its turn


@dataclass(frozen=True)
class Variant:
    """A sampler with its numbers, under a name of its own."""

    label: str
    sampler: ResolvedSampler
    plan: Plan | None = None  # of several paths to each answer
    branching: BranchConfig | None = None  # instead of the grid's

    def described(self) -> dict[str, Any]:
        """What its answers depend on, as JSON has it."""
        sampler = self.sampler
        told = {"label": self.label, "sampler": sampler.name, "config": asdict(sampler.numbers)}
        if self.plan is not None:
            told["paths"] = asdict(self.plan)
        if self.branching is not None:
            told["branching"] = asdict(self.branching)
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
    most_tokens: Sequence[int] = ()  # of an answer to each prompt, where that is less than for all
    part: tuple[int, int] = (1, 1)  # the how manieth of how many parts of the whole, from 1


class Cell(NamedTuple):
    """One answer."""

    prompt: int  # its number, from 0
    seed: int


class Turn(NamedTuple):
    """Answers of one variant that are generated one after the other."""

    variant: int  # its number, from 0
    cells: Sequence[Cell]


# ----- planning ---------------------------------------------------------------------------------------------


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
    for variant in grid.variants:
        if variant.branching is not None:
            _request(model, grid, variant, _cells(grid)[:1])
        if variant.plan is not None:
            room = grid.options.max_new_tokens, model.config.context_length
            parallel.check_room(variant.plan, grid.prompts, *room)
    if grid.max_rows % grid.groups:
        raise ValueError(
            f"a batch of {grid.max_rows} rows cannot be shared evenly by data={grid.groups}; choose a multiple of "
            f"{grid.groups}"
        )
    if grid.part[1] > (most := len(_cells(grid))):
        raise ValueError(f"{grid.part[1]} parts are too many for {most} answers of each variant; take fewer")


def plan(grid: Grid) -> list[Turn]:
    """The answers of a grid, in order: the same answers of all variants come together, so that whenever it ends, what
    is there compares the variants fairly.

    Part I of N has every N-th answer from the I-th on.
    """
    number, parts = grid.part
    cells = _cells(grid)[number - 1 :: parts]
    size = _TURN * grid.max_rows
    return [
        Turn(variant, cells[start : start + size])
        for start in range(0, len(cells), size)
        for variant in range(len(grid.variants))
    ]


def _cells(grid: Grid) -> list[Cell]:
    """The answers of each variant."""
    return [Cell(prompt, seed) for prompt in range(len(grid.prompts)) for seed in grid.seeds]


def keys(grid: Grid) -> list[dict[str, Any]]:
    """What names each answer in its line."""
    return [
        {"variant": grid.variants[turn.variant].label, **cell._asdict()}
        for turn in plan(grid)
        for cell in turn.cells
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
        **({"most_tokens": list(grid.most_tokens)} if grid.most_tokens else {}),
        **date_of(model),
        "seeds": list(grid.seeds),
        "generation": {name: value for name, value in asdict(grid.options).items() if name not in _SEEDS},
        "batch": grid.max_rows,
        "groups": grid.groups,
        "part": grid.part[0],
        "parts": grid.part[1],
    }


def date_of(model: Model) -> dict[str, str]:
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


def run(model: Model, grid: Grid, store: Store | Follower) -> Iterator[tuple[Variant, list[Line]]]:
    """Generates the answers that the store does not hold yet; yields some, as they come, when they are safely kept."""
    done = store.n_lines
    for turn in plan(grid):
        variant, cells = grid.variants[turn.variant], turn.cells[done:]
        done -= len(turn.cells) - len(cells)
        for lines, timing in answers(model, grid, variant, cells) if cells else ():
            store.append(lines, timing)
            yield variant, lines


def answers(
    model: Model, grid: Grid, variant: Variant, cells: Sequence[Cell]
) -> Iterator[tuple[list[Line], Mapping[str, Any]]]:
    """(lines of answers, how long they took) in the order of the cells, as soon as all before them are there.

    Time is counted from the end of the first chunk, which includes compilation: `tokens` in `seconds`, 0 where all was
    done in one chunk.
    """
    request, clock = _request(model, grid, variant, cells), _Clock(variant)
    found = (
        _paths(request, variant, grid.max_rows, clock)
        if variant.plan
        else _single(request, variant, grid, clock)
    )
    waiting: dict[int, Line] = {}
    n_done = 0
    for number, told in found:
        waiting[number] = {**_key(variant, cells[number]), **told}
        lines = []
        while n_done in waiting:
            lines.append(waiting.pop(n_done))
            n_done += 1
        if lines:
            yield lines, clock.lap()


def _single(
    request: GenerationRequest, variant: Variant, grid: Grid, clock: "_Clock"
) -> Iterator[tuple[int, Line]]:
    """(its number, its line) of each answer, as they end."""
    batch = ContinuousBatch(request, grid.max_rows)
    branches = request.program.branching is not None
    results = {number: Result(ids) for number, ids in enumerate(request.prompt_ids)}
    for event in batch.run():
        add(results, event)
        clock.tick(batch.n_passes, event.record is not None)
        if event.finish != FinishReason.RUNNING:
            told = line(variant, results.pop(event.row))
            if branches:
                cost = batch.cost(event.row)
                told |= {"computed_tokens": cost.computed, "forward_passes": cost.passes}
            yield event.row, told


def _paths(
    request: GenerationRequest, variant: Variant, max_rows: int, clock: "_Clock"
) -> Iterator[tuple[int, Line]]:
    """The same where an answer is chosen from several paths, whose tokens count all."""
    assert variant.plan is not None
    paths = parallel.ParallelPaths(request, variant.plan, max_rows)

    def watch(events: Iterator[TokenEvent]) -> Iterator[TokenEvent]:
        for event in events:
            clock.tick(paths.n_passes, event.record is not None)
            yield event

    return enumerate(path_line(variant, result) for result in paths.run(watch))


def _request(model: Model, grid: Grid, variant: Variant, cells: Sequence[Cell]) -> GenerationRequest:
    """What generates these answers. A draw depends on seed and prompt, not on what else is in the batch."""
    options = {name: value for name, value in vars(grid.options).items() if name not in _SEEDS}
    if variant.branching is not None:
        options["branching"] = variant.branching
    request = prepare(
        model,
        [list(grid.prompts[cell.prompt]) for cell in cells],
        sampler=variant.sampler,
        seeds=[cell.seed for cell in cells],
        occurrences=[0] * len(cells),
        **options,
    )
    most = tuple(grid.most_tokens[cell.prompt] for cell in cells) if grid.most_tokens else ()
    return replace(request, most_tokens=most)


class _Clock:
    """Time from the end of the first chunk to the last token."""

    def __init__(self, variant: Variant) -> None:
        self._label = variant.label
        self._first_chunk, self._n_late, self._began, self._ended = 0, 0, 0.0, 0.0

    def tick(self, n_passes: int, counts: bool) -> None:
        """Notes an event, after so many forward passes. counts: it is a token that was wanted."""
        if self._first_chunk in (0, n_passes):
            self._first_chunk, self._began = n_passes, time.perf_counter()
        elif counts:
            self._n_late, self._ended = self._n_late + 1, time.perf_counter()

    def lap(self) -> dict[str, Any]:
        """What was noted since the last lap."""
        seconds = self._ended - self._began if self._n_late else 0.0
        lap = {"variant": self._label, "tokens": self._n_late, "seconds": seconds}
        self._n_late, self._began = 0, max(self._began, self._ended)
        return lap


def _key(variant: Variant, cell: Cell) -> Line:
    return {"variant": variant.label, **cell._asdict(), "sampler": variant.sampler.name}


def path_line(variant: Variant, result: CotResult) -> Line:
    """The chosen one of several paths as it is kept, and what all of them have cost."""
    return {
        **line(variant, result.winner.result),
        "answer": result.winner.answer,
        "paths": len(result.paths),
        "computed_tokens": result.computed_tokens,
        "forward_passes": result.forward_passes,
    }


def line(variant: Variant, result: Result) -> Line:
    """An answer as it is kept: all that tables and pages are made of. None stands for what is not finite."""
    logprobs = [record["logprob"] for record in result.records if record["logprob"] is not None]
    means = run_statistics.mean_metrics([result])
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish": result.finish.name.lower(),
        "new_tokens": len(result.token_ids),
        "strategies": run_statistics.strategy_counts([result], variant.sampler.rule.strategies),
        "mean_logprob": _to_digits(math.fsum(logprobs) / len(logprobs)) if logprobs else None,
        "mean_metrics": {name: _to_digits(mean) for name, mean in means.items()},
        "logits_entropy": [_rounded(record["logits_entropy"]) for record in result.records],
    }


def _to_digits(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
