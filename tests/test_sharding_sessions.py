"""Every way of going on, on a mesh: what a single device gives."""

import dataclasses

import jax.numpy as jnp
import meshes
import pytest
import toy

from entropix import scoring
from entropix.decoding import prefix_cache
from entropix.decoding.batching import ContinuousBatch
from entropix.decoding.session import Session
from entropix.generation import collect, generate, prepare, run
from entropix.results import FinishReason, Result

pytestmark = pytest.mark.slow

# Two key/value heads, of which four devices have two copies each; all else is divided.
MODEL = toy.model_of(n_heads=8, n_kv_heads=2, vocab_size=264, tied_embeddings=False)
PROMPTS = [[1, 2, 3, 4, 5], [200, 7], [9] * 40, [8]]
LENGTH = 40  # tokens: more than a tail
HERE = meshes.on_mesh(MODEL, "data=2,model=4")
WARM = {
    "sampler": "temperature",
    "sampler_config": {"temp": 0.7},
    "seed": 5,
    "max_new_tokens": LENGTH,
}
COLD = WARM | {"sampler_config": {"temp": 0.05}}


@pytest.fixture(scope="module")
def warm() -> list[Result]:
    """On a single device."""
    return generate(MODEL, PROMPTS, **WARM)


def test_a_growing_cache_changes_nothing(warm: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "MIN_CAPACITY", 64)
    rows = Session(HERE, 4)
    job = prepare(HERE, PROMPTS, **WARM)
    results = collect(job, run(job, rows))
    assert rows._cache.kv.capacity == 128
    assert meshes.tokens(results) == meshes.tokens(warm)


def test_speculation_on_a_mesh_changes_nothing() -> None:
    """Nearly greedy, since the toy repeats itself then; the drafts save passes."""
    rows = Session(HERE, 4)
    job = prepare(HERE, PROMPTS, **COLD, speculate=3)
    results = collect(job, run(job, rows))
    assert meshes.tokens(results) == meshes.tokens(generate(MODEL, PROMPTS, **COLD))
    assert rows.costs.row_passes_B.sum() < 4 * LENGTH - 10


def test_branching_and_backtracking_on_a_mesh_are_those_of_one_device() -> None:
    options = WARM | {
        "branching": {"paths": 3, "depth": 2, "entropy": 7.0, "distance": 4},
        "backtracking": {"tokens": 2, "strategies": ["temperature"], "budget": 3},
        "max_new_tokens": 20,
    }
    there, here = (generate(model, PROMPTS[:3], **options) for model in (HERE, MODEL))
    meshes.assert_same(there, here)
    for name in ("branches", "taken_back"):
        assert any(name in record for result in here for record in result.records)


def test_a_shrinking_batch_on_a_mesh_changes_nothing(warm: list[Result]) -> None:
    """Two of four rows end early and leave."""
    rows = Session(HERE, 4, shrinks=True)
    job = prepare(HERE, PROMPTS, **WARM, chunk_length=5)
    results = [Result(ids) for ids in job.prompt_ids]
    rows.start(job)
    found: list[list[int]] = [[] for _ in results]
    while rows.running:
        chunk = rows.advance()
        for row in range(4):
            found[row] += chunk.token_B[chunk.live_B[:, row], row].tolist()
        if len(found[0]) == 5:
            rows.end([0, 3])
    assert [len(ids) for ids in found] == [5, LENGTH, LENGTH, 5]
    assert found == [result.token_ids[: len(ids)] for result, ids in zip(warm, found, strict=False)]


def test_rows_that_are_refilled_on_a_mesh_change_nothing() -> None:
    """Ten prompts in four rows, of which two groups of devices have two each; one begins as another did."""
    prompts = [*PROMPTS[:4], *[[i, 2 * i] for i in range(1, 6)], [*PROMPTS[1], 7]]
    options = {**WARM, "stop": tuple("aeiou"), "max_new_tokens": 20, "chunk_length": 3}
    there = prepare(HERE, prompts, **options)
    found = collect(there, ContinuousBatch(there, 4).run())
    assert meshes.tokens(found) == meshes.tokens(generate(MODEL, prompts, **options))
    assert len({len(result.token_ids) for result in found}) > 1


def test_scores_on_a_mesh_are_those_of_one_device() -> None:
    for there, here in zip(scoring.score(HERE, PROMPTS), scoring.score(MODEL, PROMPTS), strict=True):
        meshes.assert_close(there.records, here.records)


def test_a_broken_row_on_a_mesh_stays_alone() -> None:
    """Its logits are NaN at the token that it begins with, on all devices that share it; its neighbours go on."""
    broken = dataclasses.replace(
        MODEL, weights=MODEL.weights.replace(embed_VD=MODEL.weights.embed_VD.at[78].set(jnp.nan))
    )
    prompts = [PROMPTS[0], [77, 78, 79], PROMPTS[1], [78]]
    there, here = (
        generate(model, prompts, **WARM) for model in (meshes.on_mesh(broken, "data=2,model=4"), broken)
    )
    assert [result.finish for result in there] == [result.finish for result in here]
    assert [result.finish == FinishReason.NAN for result in there] == [False, True, False, True]
    assert meshes.tokens(there) == meshes.tokens(here)
