"""Generation as a whole on the toy model: positions, keys, stops, limits, and everything that must change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from entropix.decoding import loop, prefix_cache, session
from entropix.generation import collect, generate, prepare, run, stream
from entropix.results import FinishReason
from entropix.samplers.entropix import SamplerConfig, Strategy

PROMPTS = [[5], [17, 4, 200, 31, 8], list(range(40, 90)), [9] * 130]


def tokens(results):
    return [result.token_ids for result in results]


def metric(result, name):
    return np.array([record[name] for record in result.records])


# ----- positions and visibility ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 33, 34, 65, 130])
def test_greedy_tokens_are_the_argmax_of_one_pass_over_the_whole_text(toy_model, length):
    """A skipped position, an attended padding slot or a lost token would move the later logits."""
    prompt = toy.random_tokens(toy_model.config, length, seed=length).tolist()
    [result] = generate(toy_model, [prompt], sampler="greedy", max_new_tokens=40)
    text = np.array([prompt + result.token_ids])
    logits_BTV, *_, metrics = toy.read(toy_model.weights, text[:, :-1], toy_model.config, capacity=8)
    np.testing.assert_array_equal(np.argmax(logits_BTV[0, length - 1 :], axis=-1), result.token_ids)
    for name in ("logits_entropy", "attn_entropy", "attn_varentropy", "agreement", "interaction_strength"):
        expected = getattr(metrics, name)[0, length - 1 :]
        np.testing.assert_allclose(metric(result, name), expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_text_that_outgrows_the_cache_is_continued_exactly(toy_model, monkeypatch):
    [large] = generate(toy_model, [[3, 1, 4]], max_new_tokens=75, seed=5)
    monkeypatch.setattr(prefix_cache, "MIN_CAPACITY", 64)
    [small] = generate(toy_model, [[3, 1, 4]], max_new_tokens=75, seed=5)
    assert len(small.token_ids) == 75
    assert small.token_ids == large.token_ids
    for name in ("logits_entropy", "attn_entropy", "interaction_strength", "previous_token_attention"):
        np.testing.assert_allclose(metric(small, name), metric(large, name), rtol=1e-4, atol=1e-5)


# ----- what must change nothing ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["entropix", "top-p"])
def test_a_row_generates_the_same_alone_and_in_a_ragged_batch(toy_model, sampler):
    together = generate(toy_model, PROMPTS, sampler=sampler, max_new_tokens=40, seed=3)
    for prompt, in_batch in zip(PROMPTS, together, strict=True):
        [alone] = generate(toy_model, [prompt], sampler=sampler, max_new_tokens=40, seed=3)
        assert alone.token_ids == in_batch.token_ids
        for name in ("logits_entropy", "logits_varentropy", "attn_entropy", "attn_varentropy", "agreement"):
            np.testing.assert_allclose(metric(alone, name), metric(in_batch, name), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_order_in_the_batch_changes_no_row(toy_model):
    forwards = generate(toy_model, PROMPTS, max_new_tokens=20, seed=3)
    backwards = generate(toy_model, PROMPTS[::-1], max_new_tokens=20, seed=3)
    assert tokens(forwards) == tokens(backwards[::-1])


@pytest.mark.parametrize("chunk_length", [1, 5, 32, 1000])
def test_chunk_length_changes_neither_tokens_nor_a_bit_of_the_records(toy_model, chunk_length):
    reference = generate(toy_model, PROMPTS, max_new_tokens=70, seed=8, chunk_length=16)
    other = generate(toy_model, PROMPTS, max_new_tokens=70, seed=8, chunk_length=chunk_length)
    assert [result.records for result in reference] == [result.records for result in other]


def test_streaming_gives_the_same_as_generating_at_once(toy_model):
    whole = generate(toy_model, PROMPTS, max_new_tokens=30, seed=1)
    events = list(stream(toy_model, PROMPTS, max_new_tokens=30, seed=1, chunk_length=1))
    for row, result in enumerate(whole):
        mine = [event for event in events if event.row == row]
        assert "".join(event.text for event in mine) == result.text
        assert [event.record for event in mine] == result.records
        assert [event.finish for event in mine[:-1]] == [FinishReason.RUNNING] * (len(mine) - 1)
        assert mine[-1].finish == result.finish == FinishReason.LENGTH


@pytest.mark.slow
def test_the_longest_of_a_batch_does_not_extend_the_others():
    stopping = toy.model_of(stop_ids=range(0, 259, 12))
    results = [
        result for seed in range(3) for result in generate(stopping, PROMPTS, max_new_tokens=60, seed=seed)
    ]
    lengths = [len(result.token_ids) for result in results]
    assert len(set(lengths)) > 3
    for result in results:
        assert not any(token % 12 == 0 for token in result.token_ids[:-1])
        stopped = result.token_ids[-1] % 12 == 0
        assert result.finish == (FinishReason.STOP_TOKEN if stopped else FinishReason.LENGTH)
        assert stopped or len(result.token_ids) == 60


# ----- keys ------------------------------------------------------------------------------------------------------


def test_a_seed_replays_and_another_seed_does_not(toy_model):
    first, again, other = (generate(toy_model, PROMPTS, max_new_tokens=20, seed=seed) for seed in (7, 7, 8))
    assert tokens(first) == tokens(again)
    assert tokens(first) != tokens(other)


def test_a_repeated_prompt_gets_independent_draws(toy_model):
    results = generate(toy_model, [[5, 6]] * 4, sampler="temperature", max_new_tokens=20)
    assert len({tuple(result.token_ids) for result in results}) == 4


@pytest.mark.slow
def test_every_step_and_row_draws_with_its_own_key():
    """With all weights zero every token has probability 1/259; a reused key would repeat a token for ever.

    12 rows of 200 draws, four at a time: the chi-square statistic has 258 degrees of freedom, mean 258 and
    deviation 22.7; 400 is 6 off. Neighbouring draws coincide with probability 1/259: 9.2 expected
    among 2,388 pairs, deviation 3.0; 28 is 6 off.
    """
    blank = toy.model_of()
    blank = dataclasses.replace(blank, weights=jax.tree.map(jnp.zeros_like, blank.weights))
    options = {"sampler": "temperature", "max_new_tokens": 200}
    batches = [generate(blank, [[i] for i in range(4)], seed=seed, **options) for seed in range(3)]
    drawn = np.array([row for batch in batches for row in tokens(batch)])
    counts = np.bincount(drawn.ravel(), minlength=259)
    expected = drawn.size / 259
    assert np.sum((counts - expected) ** 2 / expected) < 400
    assert np.sum(drawn[:, 1:] == drawn[:, :-1]) < 28
    assert np.sum(drawn[1:] == drawn[:-1]) < 28


# ----- limits and ends -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_context_ends_a_row_with_its_own_reason():
    long, short = [3] * 61, [3]
    results = generate(toy.model_of(context_length=64), [long, short], max_new_tokens=10)
    assert [len(result.token_ids) for result in results] == [3, 10]
    assert [result.finish for result in results] == [FinishReason.CONTEXT, FinishReason.LENGTH]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "no prompt"),
        ([[]], "empty"),
        (["x", ""], "empty"),
        ([[1], [2] * 512], "prompt 2 has 512 tokens, but the model's context holds 512"),
        ([[1, 259]], "prompt 1 has token ids outside 0 to 258"),
        ([[-1]], "outside"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_before_any_work(toy_model, monkeypatch, prompts, words):
    monkeypatch.setattr(loop, "prefill", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=words):
        generate(toy_model, prompts)


@pytest.mark.slow
def test_a_row_whose_logits_are_not_finite_ends_at_once_and_alone():
    broken = toy.with_a_broken_token(77)
    options = {"max_new_tokens": 12, "sampler": "top-k"}
    bad, good = generate(broken, [[1, 77, 2], [1, 2]], **options)
    assert (bad.token_ids, bad.text, bad.finish) == ([], "", FinishReason.NAN)
    [alone] = generate(broken, [[1, 2]], **options)
    assert good.token_ids[:3] == alone.token_ids[:3]
    assert len(good.token_ids) > 0


def test_padding_in_a_ragged_batch_cannot_be_a_broken_token():
    broken = toy.with_a_broken_token(0)
    for prompt, result in zip(
        PROMPTS, generate(broken, PROMPTS, max_new_tokens=3, sampler="top-k"), strict=True
    ):
        assert np.isfinite(metric(result, "logits_entropy")).all(), prompt
        assert len(result.token_ids) > 0


def test_stop_strings_end_the_text_just_before_them(toy_model):
    [free] = generate(toy_model, [[65]], max_new_tokens=60, seed=1)
    for stop in (free.text[5:7], free.text[20:23]):
        [stopped] = generate(toy_model, [[65]], max_new_tokens=60, seed=1, stop=[stop, "never appears"])
        assert stopped.finish == FinishReason.STOP_STRING
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]


@pytest.mark.slow
@pytest.mark.parametrize("speculate", [0, 4])
@pytest.mark.parametrize(("start", "wasted"), [(0, 3), (2, 3), (17, 4), (60, 15)])
def test_little_is_computed_past_a_stop_string(toy_model, start, wasted, speculate):
    """At most 3 passes or a quarter of the text, however long a chunk may be."""
    options = {"seed": 1, "max_new_tokens": 100, "ignore_stop_tokens": True, "chunk_length": 1000}
    options["speculate"] = speculate
    [free] = generate(toy_model, [[65]], **options)
    stop = free.text[start : start + 3]
    rows = session.Session(toy_model, 1)
    job = prepare(toy_model, [[65]], stop=stop, **options)
    [stopped] = collect(job, run(job, rows))
    assert stopped.finish == FinishReason.STOP_STRING
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert rows.costs.n_passes - len(stopped.token_ids) <= wasted


# ----- what the records say --------------------------------------------------------------------------------------


def test_each_row_of_a_batch_has_its_own_strategy(toy_model):
    """Thresholds around the toy's own entropies, so that several strategies occur in one batch."""
    cfg = SamplerConfig(
        low_ent_thresh=2.0, low_vent_thresh=1.5, med_ent_thresh=2.5, high_ent_thresh=3.0, high_vent_thresh=3.0
    )
    results = generate(toy_model, PROMPTS, sampler_config=cfg, max_new_tokens=100)
    seen = {record["strategy"] for result in results for record in result.records}
    assert len(seen) >= 3
    steps = zip(*(result.records for result in results), strict=True)
    assert any(len({record["strategy"] for record in step}) > 1 for step in steps)
    for result in results:
        for record in result.records:
            assert record["strategy"] == by_hand(record, cfg).name.lower() or record["injected"]


def by_hand(record, cfg) -> Strategy:
    entropy, varentropy = record["logits_entropy"], record["logits_varentropy"]
    if entropy < cfg.low_ent_thresh and varentropy < cfg.low_vent_thresh:
        return Strategy.FLOW
    if entropy > cfg.high_ent_thresh and varentropy < cfg.low_vent_thresh:
        return Strategy.CLARIFY
    if entropy < cfg.high_ent_thresh and varentropy > cfg.high_vent_thresh:
        return Strategy.EXPLORE
    if entropy > cfg.med_ent_thresh and varentropy > cfg.high_vent_thresh:
        return Strategy.RESAMPLE
    return Strategy.ADAPTIVE


def test_a_long_clarifier_is_emitted_token_by_token_and_never_twice_in_a_row(toy_model):
    always = SamplerConfig(
        clarifier="wait", low_ent_thresh=0.0, low_vent_thresh=1e6, high_ent_thresh=0.0, high_vent_thresh=1e6
    )
    [result] = generate(toy_model, [[5, 6]], sampler_config=always, max_new_tokens=15)
    assert [record["injected"] for record in result.records] == [True, True, True, True, False] * 3
    assert bytes(result.token_ids[:4]) == b"wait" == bytes(result.token_ids[5:9])
