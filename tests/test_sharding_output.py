"""What comes out on a mesh: what a single device gives, whatever the mesh divides or cannot divide."""

import re
from typing import Any

import apart
import jax
import jax.numpy as jnp
import mesh_answers
import meshes
import numpy as np
import pytest
import toy
from mesh_answers import EVERYTHING, LENGTH, MESHES, PROMPTS, Answers

from entropix.decoding import loop, session
from entropix.decoding.session import Session
from entropix.decoding.state import ChunkEnd
from entropix.generation import generate, prepare
from entropix.tpu import hlo

pytestmark = pytest.mark.slow

UNTIL = ChunkEnd(jnp.asarray(32, jnp.int32), jnp.asarray(32, jnp.int32))

# ----- every mesh -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers() -> Answers:
    """In a process of its own, whose sums do not depend on the processor."""
    return apart.compute(mesh_answers.compute)


def test_the_rows_have_all_strategies(answers: Answers) -> None:
    """Otherwise the next test would test little."""
    strategies = [
        {record["strategy"] for result in results[:3] for record in result.records}
        for results in answers.alone["entropix"]
    ]
    assert strategies == [{"flow"}, {"clarify", "explore", "resample", "adaptive"}]


@pytest.mark.parametrize(("shape", "n_rows", "sampler"), MESHES)
def test_tokens_and_records_on_a_mesh_are_those_of_one_device(
    shape: str, n_rows: int, sampler: str, answers: Answers
) -> None:
    """Drawn ones and greedy ones, which are the first of a record's alternatives, of prompts of several lengths. Other
    numbers compile no step and no commit anew."""
    results, compiled = answers.there[shape, n_rows, sampler]
    for there, here in zip(results, answers.alone[sampler], strict=True):
        meshes.assert_same(there, here[:n_rows])
    assert compiled == [[1, 1], [0, 0]]


# 3 key/value heads, 6 heads, 30 feed-forward parts and 259 tokens on four devices, and 3 rows on two.
def test_what_cannot_be_divided_stays_whole() -> None:
    model = toy.model_of(n_heads=6, n_kv_heads=3, ffn_dim=30)
    there = meshes.on_mesh(model, "data=2,model=4")
    assert {leaf.is_fully_replicated for leaf in jax.tree.leaves(there.weights)} == {True}
    options = {"sampler": "greedy", "max_new_tokens": 20, **EVERYTHING}
    meshes.assert_same(generate(there, PROMPTS[:3], **options), generate(model, PROMPTS[:3], **options))


# ----- where keys and values lie, and what is sent ----------------------------------------------------------

# A row's logits are 4096 numbers, a device's keys of one layer 2 rows x 1 head x 8 x 256 slots, as many.
WIDE = toy.model_of(n_heads=8, n_kv_heads=4, vocab_size=4096, n_layers=2)


@pytest.fixture(scope="module")
def wide() -> Session:
    """Before its first chunk."""
    rows = Session(meshes.on_mesh(WIDE, "data=2,model=4"), 4)
    rows.start(prepare(rows._model, PROMPTS[:4], max_new_tokens=LENGTH))
    return rows


def compiled_chunk(rows: Session) -> Any:
    """The program of their next chunk."""
    assert rows._run is not None
    model, run = rows._model, rows._run
    lower = session._on_mesh(
        lambda self: loop.decode_chunk.lower(
            model.weights, run.inputs, rows._cache.kv, run.state, UNTIL, run.numbers, run.program
        )
    )  # fmt: skip
    return lower(rows).compile()


def test_a_step_sends_neither_logits_nor_keys(wide: Session) -> None:
    """What comes to a device is less than one row's logits, and less than it holds of the keys of one layer."""
    arrays = meshes.made(compiled_chunk(wide))
    sent = meshes.collectives(arrays)
    held = np.prod(meshes.shard_shape(wide._cache.kv.k_LBKHS[0]))
    assert held == WIDE.config.vocab_size == 4096
    assert 0 < max(one.size for one in sent) < 4096
    assert [one for one in arrays if 4096 in one.shape and one.operation != "iota"] == []


# Heads and vocabulary that are divided take two sums a layer, one for the embedding and eight exchanges for metrics and
# sampler, two of which gather the largest logits. Rows that are divided need nothing of each other.
@pytest.mark.parametrize(("shape", "n"), [("data=2", 0), ("data=2,model=4", 13), ("model=4", 13)])
def test_rows_that_are_divided_exchange_only_whether_one_goes_on(shape: str, n: int) -> None:
    """A number a step, and nothing else along `data`: what the host reads is made whole after the last step."""
    rows = Session(meshes.on_mesh(WIDE, shape), 4)
    rows.start(prepare(rows._model, PROMPTS[:4], max_new_tokens=LENGTH))
    program = hlo.parse(compiled_chunk(rows).as_text())
    step = hlo.step(program)
    [loop] = [
        one for one in program.computations[program.entry].values() if f"body=%{step}" in one.attributes
    ]
    [condition] = re.findall(r"condition=%([\w.-]+)", loop.attributes)
    assert sum(one.times for one in hlo.collectives(program, step)) == n
    asked = [(one.arrays, one.times) for one in hlo.collectives(program, condition)]
    assert asked == ([("s32[]", 1)] if "data" in shape else [])


def test_keys_and_values_stay_where_they_are(wide: Session) -> None:
    """By rows and heads, from the prefill on, through chunks and commits: 4 rows of 4 heads on 2 x 4 devices. What the
    host reads is whole everywhere."""
    while wide.running:
        assert wide._run is not None
        cache, state = wide._cache.kv, wide._run.state
        for (k, v, length_B), slots in ((cache[:3], cache.capacity), (state.recent, state.recent.size)):
            assert {meshes.shard_shape(k_BKHS) for k_BKHS in k} == {(2, 1, 8, slots)}
            assert {meshes.shard_shape(v_BKSH) for v_BKSH in v} == {(2, 1, slots, 8)}
            assert length_B.is_fully_replicated
        assert {leaf.is_fully_replicated for leaf in jax.tree.leaves(state.rows)} == {True}
        wide.advance()
    assert wide._cache.kv.length_B.tolist() > [32] * 4
