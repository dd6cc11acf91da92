"""A seed for each row: the same tokens as that prompt alone with that seed, in every company."""

import dataclasses
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import entropix
from entropix import generation, replay, trace
from entropix.checkpoint.loading import Model
from entropix.decoding import loop, sample_step
from entropix.generation import generate
from entropix.results import Result

PROMPT, OTHER = [17, 4, 200, 31, 8], [9] * 40


def tokens(results: list[Result]) -> list[list[int]]:
    return [result.token_ids for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["entropix", "temperature", "mirostat"])
def test_a_row_has_the_tokens_of_its_prompt_alone_with_its_seed(toy_model: Model, sampler: str) -> None:
    rows = [(PROMPT, 0), (OTHER, 5), (PROMPT, 2**32 - 1), (OTHER, 0), (PROMPT, 5)]
    prompts, seeds = ([row[i] for row in rows] for i in (0, 1))
    together = generate(toy_model, prompts, seeds=seeds, sampler=sampler, max_new_tokens=20)
    alone = [
        generate(toy_model, prompt, seed=seed, sampler=sampler, max_new_tokens=20)[0] for prompt, seed in rows
    ]
    assert tokens(together) == tokens(alone)
    assert len(set(map(tuple, tokens(alone)))) == len(rows)


@pytest.mark.slow
def test_repeats_are_counted_for_each_seed_and_prompt(toy_model: Model) -> None:
    """The second row of a pair is the second sample of that pair, wherever the others stand."""
    options = {"sampler": "temperature", "max_new_tokens": 20}
    mixed = generate(toy_model, [PROMPT] * 5, seeds=[1, 2, 1, 2, 1], **options)
    ones, twos = (generate(toy_model, [PROMPT] * n, seed=seed, **options) for n, seed in ((3, 1), (2, 2)))
    assert tokens(mixed) == tokens([ones[0], twos[0], ones[1], twos[1], ones[2]])
    assert len(set(map(tuple, tokens(mixed)))) == 5


@pytest.mark.slow
def test_prompts_with_the_same_digest_are_no_repeats(toy_model: Model) -> None:
    """Two prompts whose CRC-32 are equal: what one draws does not depend on the other."""
    one, other = [18, 151, 128, 128, 197, 116, 68, 137], [196, 140, 53, 20, 4, 48, 18, 154]
    assert len({zlib.crc32(np.asarray(prompt, np.int32).tobytes()) for prompt in (one, other)}) == 1
    options = {"sampler": "temperature", "max_new_tokens": 20, "seed": 3}
    together = generate(toy_model, [one, other], **options)
    assert tokens(together) == tokens(
        [generate(toy_model, [prompt], **options)[0] for prompt in (one, other)]
    )


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**31, 2**32 - 1])
def test_the_key_of_a_row_is_folded_from_seed_prompt_and_repeat(seed: int) -> None:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 4_000_000_000), 3)
    numbers = (jnp.asarray([number], jnp.uint32) for number in (seed, 4_000_000_000, 3))
    np.testing.assert_array_equal(
        jax.random.key_data(sample_step.row_keys(*numbers))[0], jax.random.key_data(key)
    )


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1], "generation: seeds has 1 numbers for 2 prompts; give one for each prompt"),
        ([1, 2, 3], "seeds has 3 numbers for 2 prompts"),
        ([1, -1], "generation: seeds must be between 0 and 4294967295, got -1"),
        ([1, 2**32], "generation: seeds must be between 0 and 4294967295, got 4294967296"),
        ([1, 2.0], r"generation: seeds must be a list of integers, got \(1, 2.0\)"),
        (3, "generation: seeds must be a list of integers, got 3"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(toy_model: Model, seeds: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(toy_model, [PROMPT, OTHER], seeds=seeds)


@pytest.mark.slow
def test_a_trace_with_seeds_is_read_and_repeats(toy_folder: str, tmp_path: Path) -> None:
    model = entropix.load(toy_folder)
    job = generation.prepare(model, [PROMPT, PROMPT, OTHER], seeds=range(3), max_new_tokens=12)
    trace.write(tmp_path / "trace.jsonl", job, generation.collect(job, generation.run(job)))
    recorded = trace.read(tmp_path / "trace.jsonl")
    assert recorded.header["generation"]["seeds"] == [0, 1, 2]
    assert replay.first_difference(model, recorded) is None
    recorded.header["generation"]["seeds"][1] = 3
    difference = replay.first_difference(model, recorded)
    assert difference is not None and difference.row == 1


def test_a_trace_from_before_there_were_seeds_has_none(toy_folder: str, tmp_path: Path) -> None:
    job = generation.prepare(entropix.load(toy_folder), [PROMPT], max_new_tokens=3, seed=4)
    trace.write(tmp_path / "trace.jsonl", job, generation.collect(job, generation.run(job)))
    recorded = trace.read(tmp_path / "trace.jsonl")
    del recorded.header["generation"]["seeds"]
    assert (recorded.options["seed"], recorded.options["seeds"]) == (4, ())


def test_more_seeds_compile_nothing_new(toy_model: Model) -> None:
    generate(toy_model, [PROMPT] * 3, max_new_tokens=3, sampler="greedy")
    before = loop.decode_chunk._cache_size()
    generate(toy_model, [PROMPT] * 3, max_new_tokens=3, sampler="greedy", seeds=[4, 5, 6])
    assert loop.decode_chunk._cache_size() == before


@pytest.mark.slow
def test_with_a_blank_model_rows_of_different_seeds_are_independent() -> None:
    """Uniform over 259 tokens: 3 rows of 300 draws coincide pairwise in 900/259 = 3.5 places, deviation 1.9; 15 is 6
    off."""
    blank = toy.model_of()
    blank = dataclasses.replace(blank, weights=jax.tree.map(jnp.zeros_like, blank.weights))
    rows = generate(blank, [PROMPT] * 3, seeds=[0, 1, 2], sampler="temperature", max_new_tokens=300)
    a, b, c = np.array(tokens(rows))
    assert np.sum(a == b) + np.sum(b == c) + np.sum(a == c) < 15
