"""The compiled programs: compiled once, without a copy of the cache, without the host."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix import samplers
from entropix.config import GenerateConfig
from entropix.decoding import loop, prefix_cache
from entropix.decoding.request import GenerationRequest, prompt_rows
from entropix.decoding.session import Session
from entropix.decoding.state import ChunkEnd
from entropix.generation import generate
from entropix.samplers.entropix import SamplerConfig

UNTIL = ChunkEnd(jnp.asarray(32, jnp.int32), jnp.asarray(32, jnp.int32))


@pytest.mark.slow
def test_fifty_configs_seeds_and_lengths_compile_nothing_new(toy_model):
    for penalty in (1.0, 1.1):  # the guard stands before the sampler: a second program, and the last
        for prompt in ([1, 2, 3], [1] * 15):  # a prefill for a few tokens, one for more
            generate(
                toy_model,
                [prompt],
                max_new_tokens=5,
                sampler_config=SamplerConfig(repetition_penalty=penalty),
            )
    before = loop.decode_chunk._cache_size(), loop.prefill._cache_size()
    rng = np.random.default_rng(0)
    fields = [field for field in dataclasses.fields(SamplerConfig) if isinstance(field.default, float)]
    for seed in range(50):
        numbers = {
            field.name: float(
                np.clip(rng.uniform(0.5, 1.5) * field.default, field.metadata["low"], field.metadata["high"])
            )
            for field in fields
        }
        if seed % 2:
            numbers["repetition_penalty"] = 1.0
        cfg = SamplerConfig(
            **numbers,
            top_k=int(rng.integers(1, 100)),
            clarifier=str(rng.choice([" ...", "hmm?", "wait"])),
        )
        prompt = rng.integers(0, 259, int(rng.integers(2, 16))).tolist()
        generate(
            toy_model,
            [prompt],
            sampler_config=cfg,
            seed=seed,
            max_new_tokens=int(rng.integers(1, 9)),
            stop=["~"],
            chunk_length=int(rng.integers(1, 9)),
        )
    assert (loop.decode_chunk._cache_size(), loop.prefill._cache_size()) == before


@pytest.mark.slow
def test_before_the_first_token_five_programs_are_compiled(toy_model, caplog):
    """None to bring numbers to the device: each would take some ten milliseconds of every start."""
    jax.clear_caches()
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax._src.dispatch"):
        generate(toy_model, [[1, 2, 3], [4]], max_new_tokens=5)
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert sorted(compiled) == ["decode_chunk", "empty_cache", "empty_recent", "prefill", "row_keys"]


@pytest.mark.slow
def test_growing_past_a_bucket_compiles_once_and_never_again(toy_model, monkeypatch):
    monkeypatch.setattr(prefix_cache, "MIN_CAPACITY", 64)
    generate(toy_model, [[1, 2, 3]], max_new_tokens=5, sampler="greedy")
    small = loop.decode_chunk._cache_size()
    generate(toy_model, [[1, 2, 3]], max_new_tokens=70, sampler="greedy")
    assert loop.decode_chunk._cache_size() == small + 1
    for seed in range(3):
        generate(toy_model, [[seed] * (10 * seed + 1)], max_new_tokens=70, seed=seed, sampler="greedy")
    assert loop.decode_chunk._cache_size() == small + 1


def lowered_chunk(model, prompts, shared=False):
    """The loop as `Session` runs it, and the cache it reads; in which all rows may share the first one's."""
    cfg = GenerateConfig()
    request = GenerationRequest(
        model, prompt_rows(prompts, cfg), samplers.get("entropix"), SamplerConfig(), cfg
    )
    rows = Session(model, len(prompts))
    if shared:
        rows.share(prompts[0][:-1])
    rows.start(request)
    run = rows._run
    assert run is not None
    lowered = loop.decode_chunk.lower(
        model.weights, run.inputs, rows._cache.kv, run.state, UNTIL, run.numbers, run.program
    )
    return lowered, rows._cache.kv


def made_of_size(program, n_elements):
    """Operations of a compiled program that make an array of so many elements, other than by naming one."""
    free = {"parameter", "get-tuple-element", "bitcast", "while", "tuple"}
    made = re.findall(r"= (\(.*?\)|\S+) ([\w-]+)\(", program.as_text())
    return [
        operation
        for results, operation in made
        for dims in re.findall(r"\w\[([\d,]+)\]", results)
        if math.prod(map(int, dims.split(","))) == n_elements and operation not in free
    ]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_no_step_copies_or_rewrites_a_cache_array(toy_model, batch):
    """A copy costs as much as reading all that the cache holds, once more, for every token."""
    lowered, cache = lowered_chunk(toy_model, [[1, 2]] * batch)
    size = cache.k_LBKHS[0].size
    assert made_of_size(lowered.compile(), size) == []
    kept_and_changed = (
        jax.jit(lambda cache: jax.tree.map(lambda x: x.at[0].set(0), cache)).lower(cache).compile()
    )
    assert made_of_size(kept_and_changed, size), "this test would not see a copy"


@pytest.mark.slow
def test_no_step_copies_what_rows_share_for_each_of_them(toy_model):
    lowered, cache = lowered_chunk(toy_model, [[1, 2]] * 3, shared=True)
    size, program = cache.prefix.k_LKHS[0].size, lowered.compile()
    assert (made_of_size(program, size), made_of_size(program, 3 * size)) == ([], [])
    spread = jax.jit(lambda k_KHS: jnp.repeat(k_KHS[None], 3, axis=0)).lower(cache.prefix.k_LKHS[0]).compile()
    assert made_of_size(spread, 3 * size), "this test would not see a copy"


def test_the_compiled_loop_never_calls_the_host(toy_model):
    text = lowered_chunk(toy_model, [[1], [2, 3]])[0].as_text()
    assert "while" in text
    assert not [word for word in ("callback", "infeed", "outfeed", "host_compute") if word in text.lower()]
