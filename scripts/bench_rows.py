"""Measures how many rows of a batch work, and what that is worth: many prompts in batches that wait for their longest
answer, against rows that take the next prompt when theirs has ended.

Both ways compute the same answers, in turns; everything is compiled in a first round that does not count. A table goes
to stdout, and after it one line of JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from unittest import mock

from entropix import backend, generation, prompts
from entropix.checkpoint import loading
from entropix.console import cli
from entropix.decoding.batching import ContinuousBatch
from entropix.decoding.request import GenerationRequest
from entropix.decoding.session import Session


@dataclass(frozen=True)
class Args:
    """What to measure."""

    weights: str = loading.DEFAULT_MODEL
    """A name below weights/ or a checkpoint folder."""
    prompts: str = "configs/calibration-prompts.txt"
    """One prompt a line, or .jsonl."""
    seeds: int = 4
    """Answers to each prompt."""
    max_new_tokens: int = 512
    """Most tokens of an answer."""
    batch: int = 16
    """Rows."""
    rounds: int = 3
    """How often each way is timed."""
    grid: bool = False
    """Answers to a prompt differ in their temperature, as the variants of a grid do, instead of in their seed."""


@dataclass(frozen=True)
class Run:
    """All answers, one way."""

    tokens: int
    row_steps: int
    seconds: float
    reading: float  # seconds of it that newcomers were read in, while the other rows waited

    @property
    def share(self) -> float:
        """Of the rows' steps, those that made a token of an answer."""
        return self.tokens / self.row_steps

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def measure(pieces: list[GenerationRequest], rows: int) -> tuple[Run, list[list[int]]]:
    """The pieces one after the other, each in a batch of so many rows; the tokens of all answers."""
    answers: list[list[int]] = []
    tokens = row_steps = 0
    reading = 0.0
    usual = Session.refill

    def timed(self: Session, *args: object) -> None:
        nonlocal reading
        began = time.perf_counter()
        usual(self, *args)  # type: ignore[arg-type]
        reading += time.perf_counter() - began

    began = time.perf_counter()
    with mock.patch.object(Session, "refill", timed):
        for request in pieces:
            session = Session(request.model, min(rows, len(request.prompt_ids)))
            found: list[list[int]] = [[] for _ in request.prompt_ids]
            for event in ContinuousBatch(request, session=session).run():
                if event.record is not None:
                    found[event.row].append(event.record["id"])
            answers += found
            row_steps += session.costs.n_row_steps
    tokens = sum(map(len, answers))
    return Run(tokens, row_steps, time.perf_counter() - began, reading), answers


def ways(request: GenerationRequest, rows: int) -> Iterator[tuple[str, list[GenerationRequest]]]:
    n = len(request.prompt_ids)
    yield "batch by batch", [request.of_rows(range(i, min(i + rows, n))) for i in range(0, n, rows)]
    yield "refilled", [request]


def main(args: Args) -> None:
    """Measures and prints."""
    backend.use_compilation_cache()
    model = loading.load(args.weights)
    texts = prompts.from_file(args.prompts, None, False)
    numbers = range(args.seeds)
    temperatures = [{"temp": 0.3 + 0.2 * n} for _ in texts for n in numbers]
    request = generation.prepare(
        model,
        [text for text in texts for _ in numbers],
        seeds=[0 if args.grid else n for _ in texts for n in numbers],
        occurrences=[0] * (len(texts) * args.seeds),
        max_new_tokens=args.max_new_tokens,
        sampler_config=temperatures if args.grid else None,
    )
    runs: dict[str, list[Run]] = {}
    for number in range(args.rounds + 1):
        answers = []
        for name, pieces in ways(request, args.batch):
            run, found = measure(pieces, args.batch)
            answers.append(found)
            if number:
                runs.setdefault(name, []).append(run)
            print(f"round {number}, {name}: {run.speed:.1f} tokens/s", file=sys.stderr)
        assert answers[0] == answers[1], "the two ways gave different answers"
    print(f"{len(request.prompt_ids)} answers, {runs['refilled'][0].tokens} tokens, batch {args.batch}")
    print(f"{'':16}{'share':>8}{'tokens/s':>10}{'reading':>9}")
    for name, mine in runs.items():
        speed, reading = median(r.speed for r in mine), median(r.reading / r.seconds for r in mine)
        print(f"{name:16}{mine[0].share:8.3f}{speed:10.1f}{reading:9.3f}")
    ratio = median(b.speed / a.speed for a, b in zip(*runs.values(), strict=True))
    print(f"refilled / batch by batch: {ratio:.2f} x")
    print(
        json.dumps(
            {"ratio": ratio} | {name: [dataclasses.asdict(r) for r in mine] for name, mine in runs.items()}
        )
    )


if __name__ == "__main__":
    cli.leave(cli.run(lambda: main(cli.parse(Args, sys.argv[1:], "bench_rows.py", __doc__ or ""))))
