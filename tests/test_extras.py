"""What records hold when asked: alternatives and entropies of heads, computed only then."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from entropix import samplers
from entropix.config import GenerateConfig
from entropix.decoding import inputs, loop, sample_step
from entropix.decoding.request import GenerationRequest, prompt_rows
from entropix.decoding.state import Alternatives, ChunkEnd, DecodeState, Program, RecordOptions, StepRecord
from entropix.generation import generate
from entropix.metrics import Metrics
from entropix.model.kv_cache import empty_cache, empty_recent
from entropix.samplers.base import Candidates, SampleInfo


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shift = logits - logits.max(axis=-1, keepdims=True)
    return shift - np.log(np.exp(shift).sum(axis=-1, keepdims=True))


@pytest.mark.slow
def test_alternatives_are_those_of_float64_before_and_after_filtering(toy_model):
    """Top-k of 3 at temperature 0.7: of five alternatives three can be drawn."""
    prompt = [5, 17, 4, 200, 31, 8]
    options = {"sampler": "top-k", "sampler_config": {"temp": 0.7, "top_k": 3}, "max_new_tokens": 20}
    [result] = generate(toy_model, [prompt], alternatives=5, seed=2, **options)
    text = np.array([prompt + result.token_ids])
    logits_BTV, *_ = toy.read(toy_model.weights, text[:, :-1], toy_model.config)
    logits_TV = np.asarray(logits_BTV, np.float64)[0, len(prompt) - 1 :]
    for logits_V, record in zip(logits_TV, result.records, strict=True):
        best = np.argsort(-logits_V, kind="stable")[:5]
        assert [other["id"] for other in record["alternatives"]] == best.tolist()
        logprobs = [other["logprob"] for other in record["alternatives"]]
        np.testing.assert_allclose(logprobs, log_softmax(logits_V)[best], atol=1e-4)
        after = [other["draw_logprob"] for other in record["alternatives"]]
        np.testing.assert_allclose(after[:3], log_softmax(logits_V[best[:3]] / 0.7), atol=1e-4)
        assert after[3:] == [None, None]


def alternatives(logits_BV: jax.Array, candidates: Candidates, n: int) -> Alternatives:
    """What a program that wants so many of them records."""
    program = Program(toy.config(), samplers.get("greedy"), record=RecordOptions(n))
    record = StepRecord(*(jnp.zeros(len(logits_BV)),) * 5)
    found = sample_step.with_alternatives(record, logits_BV, candidates, program).alternatives
    assert found is not None
    return found


def test_candidates_may_be_few_and_in_any_order():
    """Logits are exact in float32, so that log-probabilities differ from float64's by rounding alone."""
    rng = np.random.default_rng(0)
    logits_BV = rng.permuted(np.tile(np.arange(40) / 4, (3, 1)), axis=1).astype(np.float32)
    token_BC = np.stack([rng.choice(40, 8, replace=False) for _ in range(3)]).astype(np.int32)
    logits_BC = np.take_along_axis(logits_BV, token_BC, axis=1) * 2
    found = alternatives(jnp.asarray(logits_BV), Candidates(logits_BC, token_BC), 12)
    before_BV = log_softmax(logits_BV.astype(np.float64))
    after_BV = np.full((3, 40), -np.inf)
    np.put_along_axis(after_BV, token_BC, log_softmax(logits_BC.astype(np.float64)), axis=1)
    best_BA = np.argsort(-logits_BV, axis=1)[:, :12]
    assert 0 < np.isfinite(np.take_along_axis(after_BV, best_BA, axis=1)).sum() < best_BA.size
    np.testing.assert_array_equal(found.token_BA, best_BA)
    np.testing.assert_allclose(found.logprob_BA, np.take_along_axis(before_BV, best_BA, axis=1), atol=1e-5)
    np.testing.assert_allclose(
        found.draw_logprob_BA, np.take_along_axis(after_BV, best_BA, axis=1), atol=1e-5
    )


def test_a_vocabulary_smaller_than_the_alternatives_is_told_whole():
    logits_BV = jnp.asarray([[0.0, 2.0, 1.0]])
    found = alternatives(logits_BV, samplers.base.full_vocabulary(logits_BV), 20)
    assert found.token_BA.tolist() == [[1, 2, 0]]


def traced(model, extras: RecordOptions) -> tuple[StepRecord, str]:
    """(records, jaxpr) of a chunk; nothing is compiled."""
    cfg, numbers = model.config, samplers.resolve("top-p").numbers
    rows = prompt_rows([[1, 2], [3]], GenerateConfig())
    request = GenerationRequest(model, rows, samplers.get("top-p"), numbers, GenerateConfig())
    recent = empty_recent(cfg, 2, 8, jnp.float32)
    arguments = (
        model.weights,
        inputs.batch_inputs(request),
        empty_cache(cfg, 2, 16, jnp.float32),
        DecodeState(inputs.first_rows(request), recent, jnp.zeros((2, 0), jnp.int32)),
        ChunkEnd(jnp.asarray(4, jnp.int32), jnp.asarray(2, jnp.int32)),
        inputs.device_numbers(numbers),
    )

    def chunk(*arguments):
        return loop.decode_chunk(*arguments, request.program._replace(record=extras))

    return jax.eval_shape(chunk, *arguments)[1], str(jax.make_jaxpr(chunk)(*arguments))


def test_what_is_not_asked_for_is_not_in_the_program(toy_model):
    """Neither an output nor, in a sampler that sorts nothing, a sort for the likeliest tokens."""
    usual, program = traced(toy_model, RecordOptions())
    asked, larger = traced(toy_model, RecordOptions(alternatives=2, head_entropies=True))
    assert len(jax.tree.leaves(usual)) == 3 + len(Metrics._fields) + len(SampleInfo._fields)
    assert len(jax.tree.leaves(asked)) == len(jax.tree.leaves(usual)) + 3 + 1
    assert (asked.head_entropy_BLN.shape, asked.alternatives.token_BA.shape) == (
        (8, 1, 2, 2, 4),
        (8, 1, 2, 2),
    )
    assert "top_k" not in program
    assert "top_k" in larger


@pytest.mark.slow
def test_asking_changes_neither_tokens_nor_other_numbers(toy_model):
    options = {"max_new_tokens": 20, "seed": 3}
    [plain] = generate(toy_model, [[3, 1, 4]], **options)
    [asked] = generate(toy_model, [[3, 1, 4]], alternatives=2, head_entropies=True, **options)
    assert asked.token_ids == plain.token_ids
    for before, after in zip(plain.records, asked.records, strict=True):
        assert list(after) == [*before, "alternatives", "head_entropies"]
        for name in Metrics._fields:
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-5), name


def test_numbers_of_alternatives_that_are_not_offered_are_refused(toy_model):
    with pytest.raises(ValueError, match="alternatives must be between 0 and 20, got 21"):
        generate(toy_model, [[1]], alternatives=21)
    assert dataclasses.asdict(GenerateConfig())["alternatives"] == 0
