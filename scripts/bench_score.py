"""Scoring a text against reading it: the part of scripts/bench_decode.py that knows `entropix.scoring`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from bench_timing import Case, Row

from entropix import scoring
from entropix.checkpoint.loading import Model
from entropix.decoding import loop
from entropix.decoding.prefix_cache import PrefixCache


def score_cases(loaded: Model, length: int) -> Iterator[Case]:
    """A text of so many tokens into a cache as prompts go there, and with every metric of every position."""
    text = [1 + i * i % 200 for i in range(length)]

    def read() -> object:
        cache = PrefixCache(loaded, 1)
        cache.prefill([text])
        return cache.kv

    yield Case(f"read {length}", length, read)
    names = f"score {length}", f"read {length}"
    yield Case(names[0], length, lambda: list(scoring.read(loaded, [text])), ratio=names)


def score_memory(loaded: Model, length: int) -> Row:
    """What a pass takes beside weights and cache, as XLA plans it."""
    capacity, width = scoring.slots(length), scoring.width(length)
    cache = jax.eval_shape(partial(loop.empty_cache, loaded.config, 1, capacity, loaded.dtype))
    text_BX, count_B = jnp.ones((1, width + 1), jnp.int32), jnp.full(1, width, jnp.int32)
    program = loop.score_tokens.lower(loaded.weights, text_BX, count_B, cache, loaded.config)
    planned: Any = program.compile().memory_analysis()
    extra = planned.temp_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
    return Row(f"score {length}: memory beyond weights and cache", extra / 1e6, "MB")
