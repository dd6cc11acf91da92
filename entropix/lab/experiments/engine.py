"""Grids: every variant of a sampler with every prompt and every seed, answer by answer, so that they can be resumed.

A grid is planned before anything runs: `plan` lists all answers in their order, `answers` computes some of them, `run`
those that a `Store` does not hold yet. A plan depends on nothing but the grid, and an answer on nothing but
itself, so a grid that was interrupted and resumed, or divided into parts and merged, has the answers of one that was
not, token for token; the last digits of their numbers depend on what was computed beside them.

Variants that differ in numbers alone share the rows of one batch, in which a row that has ended takes the next answer
(`batching`). A sampler compiles once (and once more for each size that its cache grows to, and for each half to which
the last rows shrink), however many variants of its numbers there are.

Random numbers are common to all variants: the key of a row is made of its seed and its prompt. Where two variants pick
from the same candidates with the same probabilities, they draw the same token.
"""

import math
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from entropix import trace
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.cot import parallel
from entropix.cot.parallel import CotResult
from entropix.cot.plan import Plan
from entropix.decoding.batching import ContinuousBatch
from entropix.decoding.request import GenerationRequest, check_prompts
from entropix.generation import prepare
from entropix.lab.experiments.results import Follower, Line, Store
from entropix.results import FinishReason, Result, TokenEvent, add
from entropix.samplers import ResolvedSampler
from entropix.trace import run_statistics

FORMAT, VERSION = "entropix-grid", 2
_SEEDS = ("seed", "seeds", "occurrences")  # of `GenerateConfig`; those of a grid are its own
_DECIMALS = 4  # of the entropies kept for every token, in bits
_DIGITS = 5  # of an answer's means
_TURN = 8  # batches full of answers of one program, before the next has its turn


@dataclass(frozen=True)
class Variant:
    """A sampler with its numbers, under a name of its own."""

    label: str
    sampler: ResolvedSampler
    plan: Plan | None = None  # of several paths to each answer

    def described(self) -> dict[str, Any]:
        """What its answers depend on, as JSON has it."""
        sampler = self.sampler
        told = {"label": self.label, "sampler": sampler.name, "config": asdict(sampler.numbers)}
        if self.plan is not None:
            told["paths"] = {
                name: value for name, value in asdict(self.plan).items() if name != "above" or value
            }
        told |= {name: asdict(own) for name, own in sampler.looking.items()}
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
    part: tuple[int, int] = (1, 1)  # (which, of how many) parts of the whole, from 1


class Cell(NamedTuple):
    """One answer."""

    prompt: int  # its number, from 0
    seed: int


class Answer(NamedTuple):
    """What is to be generated: by which variant, for which prompt and seed."""

    variant: int  # its number, from 0
    cell: Cell


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
    cell = Cell(0, grid.seeds[0])
    for number in {program(v): n for n, v in enumerate(grid.variants) if v.sampler.looking}.values():
        _request(model, grid, [Answer(number, cell)])
    for variant in grid.variants:
        if variant.plan is not None:
            parallel.check_room(variant.plan, grid.prompts, grid.options.max_new_tokens, model.config)
    if grid.max_rows % grid.groups:
        raise ValueError(
            f"a batch of {grid.max_rows} rows cannot be shared evenly by data={grid.groups}; choose a multiple of "
            f"{grid.groups}"
        )
    if grid.part[1] > (most := len(_cells(grid))):
        raise ValueError(f"{grid.part[1]} parts are too many for {most} answers of each variant; take fewer")


def plan(grid: Grid) -> list[list[Answer]]:
    """The answers of a grid, in order, those together that share a batch: the same answers of all variants come one
    after the other, so that whenever it ends, what is there compares the variants fairly.

    Part I of N has every N-th answer of each variant from the I-th on.
    """
    number, parts = grid.part
    cells = _cells(grid)[number - 1 :: parts]
    together: dict[Hashable, list[int]] = {}
    for variant, described in enumerate(grid.variants):
        together.setdefault(program(described), []).append(variant)
    size = max(1, _TURN * grid.max_rows // max(map(len, together.values())))
    return [
        [Answer(variant, cell) for cell in cells[start : start + size] for variant in variants]
        for start in range(0, len(cells), size)
        for variants in together.values()
    ]


def program(variant: Variant) -> Hashable:
    """What variants of one batch have in common: all but numbers that compile nothing."""
    return variant.plan, *variant.sampler.fixed


def _cells(grid: Grid) -> list[Cell]:
    """The answers of each variant."""
    return [Cell(prompt, seed) for prompt in range(len(grid.prompts)) for seed in grid.seeds]


def keys(grid: Grid) -> list[dict[str, Any]]:
    """What names each answer in its line."""
    return [
        {"variant": grid.variants[variant].label, **cell._asdict()}
        for turn in plan(grid)
        for variant, cell in turn
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


def run(model: Model, grid: Grid, store: Store | Follower) -> Iterator[list[Line]]:
    """Generates the answers that the store does not hold yet; yields some, as they come, when they are safely kept."""
    done = store.n_lines
    for turn in plan(grid):
        wanted = turn[done:]
        done -= len(turn) - len(wanted)
        for lines, timing in answers(model, grid, wanted) if wanted else ():
            store.append(lines, timing)
            yield lines


def answers(
    model: Model, grid: Grid, wanted: Sequence[Answer]
) -> Iterator[tuple[list[Line], Mapping[str, Any]]]:
    """(lines, how long they took) of answers of one program, in this order, as soon as all before them are there.

    Time is counted from the end of the first chunk, which includes compilation: the `tokens` of each variant in
    `seconds`, of which a variant has the share that its tokens have; 0 where all was done in one chunk.
    """
    variants = [grid.variants[answer.variant] for answer in wanted]
    request, clock = _request(model, grid, wanted), _Clock([variant.label for variant in variants])
    paths = variants[0].plan
    found = _single(request, variants, grid.max_rows, clock)
    if paths is not None:
        found = _paths(request, variants, paths, grid.max_rows, clock)
    waiting: dict[int, Line] = {}
    n_done = 0
    for number, told in found:
        variant = variants[number]
        key = {"variant": variant.label, **wanted[number].cell._asdict(), "sampler": variant.sampler.name}
        waiting[number] = {**key, **told}
        lines = []
        while n_done in waiting:
            lines.append(waiting.pop(n_done))
            n_done += 1
        if lines:
            yield lines, clock.lap()


def _single(
    request: GenerationRequest, variants: Sequence[Variant], max_rows: int, clock: "_Clock"
) -> Iterator[tuple[int, Line]]:
    """(its number, its line) of each answer, as they end."""
    batch = ContinuousBatch(request, max_rows)
    costs_more = request.program.branching is not None or request.config.backtracking.is_on
    results = {number: Result(ids) for number, ids in enumerate(request.prompt_ids)}
    for event in batch.run():
        add(results, event)
        clock.tick(batch.n_passes, event)
        if event.finish != FinishReason.RUNNING:
            told = line(variants[event.row], results.pop(event.row))
            if costs_more:
                cost = batch.cost(event.row)
                told |= {"computed_tokens": cost.computed, "forward_passes": cost.passes}
            yield event.row, told


def _paths(
    request: GenerationRequest, variants: Sequence[Variant], plan: Plan, max_rows: int, clock: "_Clock"
) -> Iterator[tuple[int, Line]]:
    """The same where an answer is chosen from several paths, whose tokens count all."""
    paths = parallel.ParallelPaths(request, plan, max_rows)

    def watch(events: Iterator[TokenEvent]) -> Iterator[TokenEvent]:
        for event in events:
            clock.tick(paths.n_passes, event)
            yield event

    return ((i, path_line(variants[i], result)) for i, result in enumerate(paths.run(watch)))


def _request(model: Model, grid: Grid, wanted: Sequence[Answer]) -> GenerationRequest:
    """What generates these answers. A draw depends on seed and prompt, not on what else is in the batch."""
    variants = [grid.variants[variant] for variant, _ in wanted]
    numbers = [variant.sampler.numbers for variant in variants]
    options = {name: value for name, value in vars(grid.options).items() if name not in _SEEDS}
    options |= variants[0].sampler.looking
    request = prepare(
        model,
        [list(grid.prompts[cell.prompt]) for _, cell in wanted],
        sampler=variants[0].sampler,
        sampler_config=numbers[0] if len({*numbers}) == 1 else numbers,
        seeds=[cell.seed for _, cell in wanted],
        occurrences=[0] * len(wanted),
        **options,
    )
    if not grid.most_tokens:
        return request
    return request.with_each(most_tokens=[grid.most_tokens[cell.prompt] for _, cell in wanted])


class _Clock:
    """Time from the end of the first chunk to the last token, and which variant the tokens are of."""

    def __init__(self, labels: Sequence[str]) -> None:
        """labels: of the answers, by number."""
        self._labels = labels
        self._first_chunk, self._began, self._ended = 0, 0.0, 0.0
        self._late: Counter[str] = Counter()  # tokens since the last lap

    def tick(self, n_passes: int, event: TokenEvent) -> None:
        """Notes an event, after so many forward passes."""
        if self._first_chunk in (0, n_passes):
            self._first_chunk, self._began = n_passes, time.perf_counter()
        elif event.record is not None:
            self._ended = time.perf_counter()
            self._late[self._labels[event.row]] += 1

    def lap(self) -> dict[str, Any]:
        """What was noted since the last lap."""
        tokens, self._late = dict(self._late), Counter()
        seconds = self._ended - self._began if tokens else 0.0
        self._began = max(self._began, self._ended)
        return {"tokens": tokens, "seconds": seconds}


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
