"""Generation as a whole on the toy model: positions, keys, stops, limits, and everything that must change nothing."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from entropix import decode, samplers, session
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decode import Finish
from entropix.generation import collect, generate, prepare, run, stream
from entropix.samplers.entropix import Strategy
from entropix.session import Session

PROMPTS = [[5], [17, 4, 200, 31, 8], list(range(40, 90)), [9] * 130]


def with_a_broken_token(token):
    """A model whose logits are NaN wherever it sees this token."""
    model = toy.model_of(tied_embeddings=False)
    embed_VD = model.weights.embed_VD.at[token].set(jnp.nan)
    return dataclasses.replace(model, weights=model.weights.replace(embed_VD=embed_VD))


def tokens(results):
    return [result.token_ids for result in results]


def metric(result, name):
    return np.array([record[name] for record in result.records])


# ----- positions and visibility ----------------------------------------------------------------------------------


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


def test_text_that_outgrows_the_cache_is_continued_exactly(toy_model, monkeypatch):
    [large] = generate(toy_model, [[3, 1, 4]], max_new_tokens=75, seed=5)
    monkeypatch.setattr(session, "MIN_CAPACITY", 64)
    [small] = generate(toy_model, [[3, 1, 4]], max_new_tokens=75, seed=5)
    assert len(small.token_ids) == 75
    assert small.token_ids == large.token_ids
    for name in ("logits_entropy", "attn_entropy", "interaction_strength", "previous_token_attention"):
        np.testing.assert_allclose(metric(small, name), metric(large, name), rtol=1e-4, atol=1e-5)


# ----- what must change nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["entropix", "top-p"])
def test_a_row_generates_the_same_alone_and_in_a_ragged_batch(toy_model, sampler):
    together = generate(toy_model, PROMPTS, sampler=sampler, max_new_tokens=40, seed=3)
    for prompt, in_batch in zip(PROMPTS, together, strict=True):
        [alone] = generate(toy_model, [prompt], sampler=sampler, max_new_tokens=40, seed=3)
        assert alone.token_ids == in_batch.token_ids
        for name in ("logits_entropy", "logits_varentropy", "attn_entropy", "attn_varentropy", "agreement"):
            np.testing.assert_allclose(metric(alone, name), metric(in_batch, name), rtol=1e-4, atol=1e-5)


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
        assert [event.finish for event in mine[:-1]] == [Finish.RUNNING] * (len(mine) - 1)
        assert mine[-1].finish == result.finish == Finish.LENGTH


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
        assert result.finish == (Finish.STOP_TOKEN if stopped else Finish.LENGTH)
        assert stopped or len(result.token_ids) == 60


# ----- keys ------------------------------------------------------------------------------------------------------


def test_a_seed_replays_and_another_seed_does_not(toy_model):
    first, again, other = (generate(toy_model, PROMPTS, max_new_tokens=20, seed=seed) for seed in (7, 7, 8))
    assert tokens(first) == tokens(again)
    assert tokens(first) != tokens(other)


def test_a_repeated_prompt_gets_independent_draws(toy_model):
    results = generate(toy_model, [[5, 6]] * 4, sampler="temperature", max_new_tokens=20)
    assert len({tuple(result.token_ids) for result in results}) == 4


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


def test_a_full_context_ends_a_row_with_its_own_reason():
    long, short = [3] * 61, [3]
    results = generate(toy.model_of(context_length=64), [long, short], max_new_tokens=10)
    assert [len(result.token_ids) for result in results] == [3, 10]
    assert [result.finish for result in results] == [Finish.CONTEXT, Finish.LENGTH]


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
    monkeypatch.setattr(decode, "prefill", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=words):
        generate(toy_model, prompts)


def test_a_row_whose_logits_are_not_finite_ends_at_once_and_alone():
    broken = with_a_broken_token(77)
    options = {"max_new_tokens": 12, "sampler": "top-k"}
    bad, good = generate(broken, [[1, 77, 2], [1, 2]], **options)
    assert (bad.token_ids, bad.text, bad.finish) == ([], "", Finish.NAN)
    [alone] = generate(broken, [[1, 2]], **options)
    assert good.token_ids[:3] == alone.token_ids[:3]
    assert len(good.token_ids) > 0


def test_padding_in_a_ragged_batch_cannot_be_a_broken_token():
    broken = with_a_broken_token(0)
    for prompt, result in zip(
        PROMPTS, generate(broken, PROMPTS, max_new_tokens=3, sampler="top-k"), strict=True
    ):
        assert np.isfinite(metric(result, "logits_entropy")).all(), prompt
        assert len(result.token_ids) > 0


@pytest.mark.parametrize("abandoned", [False, True])
def test_nothing_of_a_text_with_nan_is_left_in_a_session(abandoned):
    """Neither when it was seen nor when the session was stopped before it came to that. Zero times NaN is NaN."""
    broken = with_a_broken_token(77)
    rows = Session(broken, 1)
    first = prepare(broken, [[1, 77, 2]], max_new_tokens=4, sampler="greedy")
    if abandoned:
        rows.start(first.prompt_ids, first.sampler, first.sampler_config, first.config)
    else:
        assert collect(first, run(first, rows))[0].finish == Finish.NAN
    second = prepare(broken, [[1, 3, 2]], max_new_tokens=4, sampler="greedy")
    fresh = generate(broken, [[1, 3, 2]], max_new_tokens=4, sampler="greedy")
    assert tokens(collect(second, run(second, rows))) == tokens(fresh)


def test_an_ended_row_leaves_nothing_behind_while_its_neighbour_goes_on():
    """Its last token, never read by the model, is a broken one."""
    whole = toy.model_of(tied_embeddings=False)
    last = generate(whole, [[1, 2, 3]], max_new_tokens=3, sampler="greedy")[0].token_ids[-1]
    broken = dataclasses.replace(with_a_broken_token(last), stop_ids=(last,))
    rows = Session(broken, 2)
    options = {"sampler": "greedy", "max_new_tokens": 20}
    first = prepare(broken, [[1, 2, 3], [7, 8]], **options)
    assert collect(first, run(first, rows))[0].finish == Finish.STOP_TOKEN
    second = prepare(broken, [[1, 2, 4], [7, 9]], **options)
    assert tokens(collect(second, run(second, rows))) == tokens(
        generate(broken, [[1, 2, 4], [7, 9]], **options)
    )


def test_stop_strings_end_the_text_just_before_them(toy_model):
    [free] = generate(toy_model, [[65]], max_new_tokens=60, seed=1)
    for stop in (free.text[5:7], free.text[20:23]):
        [stopped] = generate(toy_model, [[65]], max_new_tokens=60, seed=1, stop=[stop, "never appears"])
        assert stopped.finish == Finish.STOP_STRING
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]


# ----- sessions --------------------------------------------------------------------------------------------------


def test_a_conversation_reuses_its_cache_and_says_the_same(toy_model, monkeypatch):
    fed = []
    prefill = decode.prefill

    def counted(weights, tokens_BT, count_B, *rest, **options):
        fed.append(int(count_B[0]))
        return prefill(weights, tokens_BT, count_B, *rest, **options)

    monkeypatch.setattr(decode, "prefill", counted)
    rows = Session(toy_model, 1)
    history: list[int] = toy.random_tokens(toy_model.config, 50).tolist()
    for turn in range(4):
        job = prepare(toy_model, [history], max_new_tokens=45, seed=turn)
        fed.clear()
        [result] = collect(job, run(job, rows))
        if turn:
            assert sum(fed) == 8  # the last token of the answer before, and seven of the eight new ones
        [fresh] = generate(toy_model, [history], max_new_tokens=45, seed=turn)
        assert result.token_ids == fresh.token_ids
        history = [*history, *result.token_ids, *range(turn, turn + 8)]


def test_a_session_rewinds_to_where_two_prompts_part(toy_model):
    rows = Session(toy_model, 1)
    base = toy.random_tokens(toy_model.config, 60).tolist()
    for cut in (60, 20, 3, 45):
        prompt = [*base[:cut], 7, 8, 9]
        job = prepare(toy_model, [prompt], max_new_tokens=10)
        assert tokens(collect(job, run(job, rows))) == tokens(
            generate(toy_model, [prompt], max_new_tokens=10)
        )


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


@pytest.mark.parametrize("broken", ["prefill", "commit", "decode_chunk"])
def test_a_session_recovers_from_an_interrupt_that_took_its_cache(toy_model, monkeypatch, broken):
    """Ctrl-C may come when the device already owns the cache and the session does not have the new one yet."""
    rule, cfg = samplers.get("entropix"), GenerateConfig(max_new_tokens=50)
    rows = Session(toy_model, 1)

    def answer():
        rows.start([PROMPTS[1]], rule, SamplerConfig(), cfg)
        token_ids = []
        while rows.running:
            token_ids += rows.advance().token_B[:, 0].tolist()
        return token_ids

    expected = answer()
    whole = getattr(decode, broken)

    def torn(*args, **kwargs):
        jax.block_until_ready(whole(*args, **kwargs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decode, broken, torn)
        with pytest.raises(KeyboardInterrupt):
            rows.start([[77] * 40], rule, SamplerConfig(), cfg)
            while rows.running:
                rows.advance()
    assert answer() == expected


# ----- the compiled program --------------------------------------------------------------------------------------


def test_fifty_configs_seeds_and_lengths_compile_nothing_new(toy_model):
    generate(toy_model, [[1, 2, 3]], max_new_tokens=5)
    before = decode.decode_chunk._cache_size(), decode.prefill._cache_size()
    rng = np.random.default_rng(0)
    fields = [field for field in dataclasses.fields(SamplerConfig) if isinstance(field.default, float)]
    for seed in range(50):
        cfg = SamplerConfig(
            **{
                field.name: float(rng.uniform(0.5, 1.5) * field.default)
                for field in fields
                if field.name != "top_p"
            },
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
    assert (decode.decode_chunk._cache_size(), decode.prefill._cache_size()) == before


def test_growing_past_a_bucket_compiles_once_and_never_again(toy_model, monkeypatch):
    monkeypatch.setattr(session, "MIN_CAPACITY", 64)
    generate(toy_model, [[1, 2, 3]], max_new_tokens=5, sampler="greedy")
    small = decode.decode_chunk._cache_size()
    generate(toy_model, [[1, 2, 3]], max_new_tokens=40, sampler="greedy")
    assert decode.decode_chunk._cache_size() == small + 1
    for seed in range(3):
        generate(toy_model, [[seed] * (10 * seed + 1)], max_new_tokens=40, seed=seed, sampler="greedy")
    assert decode.decode_chunk._cache_size() == small + 1


def lowered_chunk(model, prompts):
    """The loop as `Session` runs it, and the cache it reads."""
    rule = samplers.get("entropix")
    rows = Session(model, len(prompts))
    rows.start(prompts, rule, SamplerConfig(), GenerateConfig())
    run, cfg = rows._run, session.device_config(SamplerConfig())
    lowered = decode.decode_chunk.lower(
        model.weights, run.request, rows._cache, run.state, run.n_steps, cfg, model.config, rule
    )
    return lowered, rows._cache


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


def test_the_compiled_loop_never_calls_the_host(toy_model):
    text = lowered_chunk(toy_model, [[1], [2, 3]])[0].as_text()
    assert "while" in text
    assert not [word for word in ("callback", "infeed", "outfeed", "host_compute") if word in text.lower()]
