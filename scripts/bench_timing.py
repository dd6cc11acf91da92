"""Timing in turns, and the table of what comes out: the parts of scripts/bench_decode.py that know no model."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PAUSE = 0.05  # seconds before each run: the last one's idle threads spin for a while before they sleep
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event: a program was compiled


class Case(NamedTuple):
    """Something to time."""

    name: str
    tokens: int  # that a run computes; 0 where the case is not about tokens
    run: Callable[[], Any]
    before: Callable[[], Any] | None = None  # called before each run and not timed
    read_bytes: int = 0  # that a run must read
    ratio: tuple[str, str] | None = None  # (a, b): report the tokens/s of case a over those of another, b


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str
    gigabytes: float | None = None  # of weights read, a second
    share: float | None = None  # of the bandwidth
    ratio: float | None = None
    ratio_of: tuple[str, str] | None = None  # the two cases whose tokens/s it compares


# Seconds of every run of a round, by the case's name: a case that is listed several times has that many.
Round = Mapping[str, Sequence[float]]


def reading_cases(megabytes: int) -> list[Case]:
    """Programs that read a large float32 matrix and do next to nothing with it."""
    matrix = jnp.ones((megabytes * 256, 1024), jnp.float32)
    vector = jnp.ones(1024, jnp.float32)
    product, total = jax.jit(jnp.matmul), jax.jit(jnp.sum)
    return [
        Case("read: matrix-vector product", 0, partial(product, matrix, vector), read_bytes=matrix.nbytes),
        Case("read: sum", 0, partial(total, matrix), read_bytes=matrix.nbytes),
    ]


def rounds(cases: Sequence[Case], repeats: int) -> list[Round]:
    """All cases once, then all cases again, `repeats` times."""
    found: list[Round] = []
    for number in range(1, repeats + 1):
        print(f"round {number} of {repeats}", file=sys.stderr, flush=True)
        seconds: dict[str, list[float]] = {case.name: [] for case in cases}
        for case in cases:
            if case.before is not None:
                case.before()
                jax.block_until_ready(jax.live_arrays())  # whatever it has launched
            time.sleep(PAUSE)
            start = time.perf_counter()
            jax.block_until_ready(case.run())
            seconds[case.name].append(time.perf_counter() - start)
        found.append(seconds)
    return found


def typical(found: Sequence[Round], figure: Callable[[Round], float]) -> float:
    """The median over the rounds of a figure that is computed within each of them.

    A shared machine is twice as fast in one minute as in the next. What is compared is therefore never taken from two
    rounds: the ratio of two medians may pair a good minute with a bad one, the median of ratios does not.
    """
    return median(map(figure, found))


class Compilations:
    """Counts the programs that this process compiles from now on."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self.count += 1
            self.seconds += duration_secs


def bandwidth(cases: Sequence[Case], seconds: Round) -> float:
    """Bytes a second of the best run of a case that reads and computes no tokens."""
    readers = [case for case in cases if case.read_bytes and not case.tokens]
    return max(case.read_bytes / min(seconds[case.name]) for case in readers)


def speed_rows(cases: Sequence[Case], found: Sequence[Round]) -> Iterator[Row]:
    """A row for every case that computes tokens."""
    tokens = {case.name: case.tokens for case in cases}

    def speed(name: str, seconds: Round) -> float:
        return tokens[name] / median(seconds[name])

    def read(case: Case, seconds: Round) -> float:
        return case.read_bytes / median(seconds[case.name])

    def share(case: Case, seconds: Round) -> float:
        return read(case, seconds) / bandwidth(cases, seconds)

    def ratio(over: str, under: str, seconds: Round) -> float:
        return speed(over, seconds) / speed(under, seconds)

    for case in cases:
        if not case.tokens:
            continue
        row = Row(case.name, typical(found, partial(speed, case.name)), "tokens/s")
        if case.read_bytes:
            gigabytes = typical(found, partial(read, case)) / 1e9
            row = row._replace(gigabytes=gigabytes, share=typical(found, partial(share, case)))
        if case.ratio is not None and case.ratio[0] != case.ratio[1]:
            row = row._replace(ratio=typical(found, partial(ratio, *case.ratio)), ratio_of=case.ratio)
        yield row


HEADING = f"{'':46}{'':>10} {'':10}{'GB/s':>8}{'ceiling':>8}  ratio of tokens/s"


def show(row: Row) -> str:
    """The row as a line below `HEADING`."""
    speed = "" if row.gigabytes is None else f"{row.gigabytes:.1f}"
    share = "" if row.share is None else f"{row.share:.2f}"
    ratio = ""
    if row.ratio_of is not None:
        over, under = row.ratio_of
        ratio = f"{row.ratio:.2f} × {under}" if over == row.what else f"{over} = {row.ratio:.2f} × this"
    return f"{row.what:46}{row.value:>10.4g} {row.unit:10}{speed:>8}{share:>8}  {ratio}".rstrip()
