"""Measures how near decoding comes to the machine's memory bandwidth, with all metrics and the sampler switched on.

One process measures everything, one thing at a time, and reports medians of several runs: a noisy machine moves
all rows alike, so ratios within one report mean more than its absolute numbers. A table goes to stdout, and after it
one line of JSON with every figure.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax import Array

from entropix import cli, decode, loading, metrics, model, samplers
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decode import TAIL_SIZE, DecodeState, Finish
from entropix.loading import Model
from entropix.session import device_config, make_request

STEPS = TAIL_SIZE - 2  # of one timed chunk: it must not fill the tail


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    weights: str = loading.DEFAULT_MODEL
    """A name below weights/ or a checkpoint folder."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Batch sizes to decode."""
    contexts: tuple[int, ...] = (128, 512, 1024, 4096)
    """Tokens already in the cache, at batch 1."""
    prefills: tuple[int, ...] = (512, 2048)
    """Prompt lengths to prefill."""
    repeats: int = 7
    """Runs of each; the median is reported."""
    startup: bool = True
    """Also time the command from process start to first token, with an empty and a filled compilation cache."""


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `run`, which returns arrays to wait for, after one run to warm up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bandwidth(repeats: int) -> float:
    """Bytes a second that XLA reads: the better of a large float32 matrix-vector product and a sum, best run."""
    matrix = jnp.ones((1 << 17, 1 << 10), jnp.float32)
    vector = jnp.ones(1 << 10, jnp.float32)
    best = float("inf")
    programs: list[Callable[[], Array]] = [
        partial(jax.jit(jnp.matmul), matrix, vector),
        partial(jax.jit(jnp.sum), matrix),
    ]
    for run in programs:
        jax.block_until_ready(run())
        for _ in range(2 * repeats):
            start = time.perf_counter()
            jax.block_until_ready(run())
            best = min(best, time.perf_counter() - start)
    return matrix.nbytes / best


class Decoding:
    """A batch in the middle of a text of `context` tokens, ready to be timed."""

    def __init__(self, loaded: Model, batch: int, context: int) -> None:
        capacity = 256
        while capacity < context + TAIL_SIZE:
            capacity *= 2
        self.loaded, self.batch = loaded, batch
        cache = model.empty_cache(loaded.config, batch, capacity, loaded.dtype)
        self.cache = cache._replace(length_B=jnp.full(batch, context, jnp.int32))
        cfg = GenerateConfig(max_new_tokens=10_000, ignore_stop_tokens=True)
        self.request = make_request([[1, i] for i in range(batch)], loaded, cfg)

    def seconds_a_step(self, preset: str, repeats: int) -> float:
        """Median over chunks of the time of one step, metrics and sampler included."""
        sampler, sampler_cfg = samplers.get(preset), device_config(SamplerConfig())
        times = []
        for _ in range(repeats + 1):
            state = self._state(sampler)
            start = time.perf_counter()
            done = decode.decode_chunk(
                self.loaded.weights,
                self.request,
                self.cache,
                state,
                jnp.asarray(STEPS, jnp.int32),
                sampler_cfg,
                self.loaded.config,
                sampler,
            )
            jax.block_until_ready(done)
            times.append((time.perf_counter() - start) / STEPS)
        return statistics.median(times[1:])

    def seconds_a_bare_step(self, repeats: int) -> float:
        """The same for nothing but the forward pass and an argmax: what metrics and sampler are compared with."""

        @jax.jit
        def bare(weights: Any, token_B: Array, cache: Any, tail: Any) -> Array:
            def body(step: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
                token_B, tail = carry
                logits_BTV, tail, _ = model.forward(
                    weights, token_B[:, None], cache, tail, self.loaded.config
                )
                return jnp.argmax(logits_BTV[:, 0], axis=-1).astype(jnp.int32), tail

            return jax.lax.fori_loop(0, STEPS, body, (token_B, tail))[0]

        token_B, tail = jnp.ones(self.batch, jnp.int32), self._state(samplers.get("greedy")).tail
        return median_seconds(lambda: bare(self.loaded.weights, token_B, self.cache, tail), repeats) / STEPS

    def seconds_of_the_sampler(self, repeats: int) -> tuple[float, float]:
        """(metrics, entropix sampler) of one step alone."""
        rule, cfg = samplers.get("entropix"), device_config(SamplerConfig())
        state = self._state(rule)
        forward = jax.jit(model.forward, static_argnames="cfg")
        logits_BTV, _tail, attention = forward(
            self.loaded.weights, state.token_B[:, None], self.cache, state.tail, self.loaded.config
        )
        measure = jax.jit(metrics.measure)
        measured = jax.tree.map(lambda metric_BT: metric_BT[:, 0], measure(logits_BTV, attention))
        context = samplers.Context(logits_BTV[:, 0], measured)
        step = jax.jit(rule.step)
        return (
            median_seconds(lambda: measure(logits_BTV, attention), repeats),
            median_seconds(lambda: step(self.request.key_B, state.sampler, context, cfg), repeats),
        )

    def _state(self, sampler: samplers.Sampler) -> DecodeState:
        state = DecodeState(
            token_B=jnp.ones(self.batch, jnp.int32),
            step_B=jnp.zeros(self.batch, jnp.int32),
            finish_B=jnp.full(self.batch, int(Finish.RUNNING), jnp.int32),
            tail=model.empty_tail(self.loaded.config, self.batch, TAIL_SIZE, self.loaded.dtype),
            sampler=sampler.init(SamplerConfig(), self.batch, self.loaded.tokenizer.encode),
        )
        jax.block_until_ready(state)
        return state


def prefill_seconds(loaded: Model, length: int, repeats: int) -> float:
    """Median time to prefill a prompt of `length` tokens in pieces of 512."""
    tokens_BT = jnp.ones((1, 512), jnp.int32)
    count_B = jnp.full(1, 512, jnp.int32)

    def run() -> Any:
        cache = model.empty_cache(loaded.config, 1, length, loaded.dtype)
        for piece in range(length // 512):
            cache = decode.prefill(
                loaded.weights, tokens_BT, count_B, cache, loaded.config, from_empty=piece == 0
            )
        return cache

    return median_seconds(run, max(2, repeats // 2))


def startup_seconds(weights: str) -> tuple[float, float]:
    """Process start to the first token of the real command: with an empty compilation cache, and with a filled one."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"ENTROPIX_COMPILATION_CACHE": folder}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = (
            sys.executable, "-m", "entropix.main", "--weights", weights, "--prompt", "Hi", "--max-new-tokens", "1",
        )  # fmt: skip
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
    return times[0], min(times[1:])


def rows(args: Args) -> Iterator[tuple[str, float, str]]:
    """(what, value, unit) of every measurement, as it is made."""
    read = bandwidth(args.repeats)
    yield "read bandwidth", read / 1e9, "GB/s"
    start = time.perf_counter()
    loaded = loading.load(args.weights)
    jax.block_until_ready(loaded.weights)
    yield "load", time.perf_counter() - start, "s"
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.weights))
    yield "weights", size / 1e6, "MB"
    ceiling = read / size
    yield "ceiling at batch 1", ceiling, "tokens/s"

    context = args.contexts[0]
    for batch in args.batches:
        decoding = Decoding(loaded, batch, context)
        entropix, bare = (
            decoding.seconds_a_step("entropix", args.repeats),
            decoding.seconds_a_bare_step(args.repeats),
        )
        where = f"batch {batch}, context {context}"
        yield f"{where}: entropix", batch / entropix, "tokens/s"
        yield f"{where}: greedy", batch / decoding.seconds_a_step("greedy", args.repeats), "tokens/s"
        yield f"{where}: greedy without metrics", batch / bare, "tokens/s"
        yield f"{where}: share of the ceiling", 1 / entropix / ceiling, ""
        yield f"{where}: weights read", size / entropix / 1e9, "GB/s"
        alone = decoding.seconds_of_the_sampler(args.repeats)
        yield f"{where}: metrics alone", alone[0] / entropix, "of a step"
        yield f"{where}: sampler alone", alone[1] / entropix, "of a step"
    for context in args.contexts[1:]:
        seconds = Decoding(loaded, 1, context).seconds_a_step("entropix", args.repeats)
        yield f"batch 1, context {context}: entropix", 1 / seconds, "tokens/s"
    for length in args.prefills:
        yield f"prefill {length}", length / prefill_seconds(loaded, length, args.repeats), "tokens/s"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield "peak resident memory of this benchmark", peak / 1024, "MB"
    if args.startup:
        cold, warm = startup_seconds(args.weights)
        yield "first token from process start, nothing compiled yet", cold, "s"
        yield "first token from process start, compilation cached", warm, "s"


def main() -> None:
    """Prints a row as soon as it is measured, and all of them as JSON at the end."""
    args = tyro.cli(Args, description=__doc__)
    report: dict[str, Any] = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
    for what, value, unit in rows(args):
        report[what] = value
        print(f"{what:55}{value:>12.4g}  {unit}".rstrip(), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(cli.run(main))
