"""Measures what branching costs, in tokens a second and in forward passes a token.

Every case continues the same prompt by the same number of tokens and forks wherever it may, so that the numbers are
those of the forks themselves and not of how rarely they happen. The first run of a case compiles and is not counted;
then all cases run in turn, and the median counts. A table goes to stdout, and after it one line of JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from entropix import generation
from entropix.checkpoint import loading
from entropix.console import cli
from entropix.decoding.session import Session
from entropix.generation import GenerationRequest

PROMPT = "The history of the lighthouse begins"
EVERYWHERE = {"entropy": 1e-6, "among": "all", "budget": 2**31 - 1}


class Case(NamedTuple):
    """A size of branching."""

    paths: int
    depth: int
    keep: str = "path"

    @property
    def name(self) -> str:
        return (
            f"{self.paths} paths of depth {self.depth}, {self.keep} kept"
            if self.paths > 1
            else "no branching"
        )


class Run(NamedTuple):
    """What one generation took."""

    tokens_per_second: float
    passes_per_token: float


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    weights: str = loading.DEFAULT_MODEL
    """A name below weights/ or a checkpoint folder."""
    new_tokens: int = 96
    repeats: int = 5
    quick: bool = False
    """Only the smallest cases, once: to see that it works."""


def main() -> None:
    """Prints a table, and all of it as JSON at the end."""
    args = cli.parse(Args, None, None, __doc__)
    if args.new_tokens < 2 or args.repeats < 1:
        raise ValueError("--new-tokens must be at least 2 and --repeats at least 1")
    model = loading.load(args.weights)
    sizes = (2,) if args.quick else (2, 4, 8)
    cases = [Case(1, 0), *(Case(c, d) for c in sizes for d in sizes), Case(sizes[-1], sizes[-1], "token")]
    jobs = {case: job(model, case, args.new_tokens) for case in cases}
    for case in cases:
        measured(jobs[case])
        print(f"compiled: {case.name}", file=sys.stderr, flush=True)
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    for _ in range(1 if args.quick else args.repeats):
        for case in cases:
            runs[case].append(measured(jobs[case]))
    lines = list(table(runs, model))
    print(f"{'':36}{'tokens/s':>10}{'of none':>10}{'passes/token':>14}{'KiB of paths':>14}")
    for line in lines:
        print(
            f"{line['case']:36}{line['tokens_per_second']:>10.1f}{line['of_none']:>10.2f}"
            f"{line['passes_per_token']:>14.2f}{line['path_bytes'] / 1024:>14.0f}"
        )
    print(json.dumps({"options": dataclasses.asdict(args), "cases": lines}))


def job(model: loading.Model, case: Case, new_tokens: int) -> GenerationRequest:
    """A continuation of the prompt that never ends early."""
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "ignore_stop_tokens": True, "raw": True}
    branching = {"paths": case.paths, "depth": case.depth, "keep": case.keep, **EVERYWHERE}
    return generation.prepare(model, PROMPT, sampler="min-p", branching=branching, **options)


def measured(job: GenerationRequest) -> Run:
    """One generation of a job, from its first token on; the prompt is read before."""
    session = Session(job.model, 1)
    session.start(job)
    start, n_tokens = time.perf_counter(), 0
    while session.running:
        n_tokens += int(session.advance().live_B.sum())
    return Run(n_tokens / (time.perf_counter() - start), session.costs.n_passes / n_tokens)


def table(runs: dict[Case, list[Run]], model: loading.Model) -> Iterator[dict[str, Any]]:
    """A line a case: medians, and the bytes of keys and values of all of its paths."""
    cfg = model.config
    position_bytes = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * model.dtype.itemsize
    none = median(run.tokens_per_second for run in runs[Case(1, 0)])
    for case, several in runs.items():
        speed = median(run.tokens_per_second for run in several)
        yield {
            "case": case.name,
            "tokens_per_second": speed,
            "of_none": speed / none,
            "passes_per_token": median(run.passes_per_token for run in several),
            "path_bytes": case.paths * case.depth * position_bytes,
        }


if __name__ == "__main__":
    cli.leave(cli.run(main))
