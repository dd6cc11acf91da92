"""Sessions: what is kept from one text to the next, what is not, and what an interrupt leaves."""

import dataclasses

import jax
import pytest
import toy

from entropix import samplers
from entropix.config import GenerateConfig
from entropix.decoding import loop
from entropix.decoding.session import Session
from entropix.generation import collect, generate, prepare, run
from entropix.results import FinishReason
from entropix.samplers.entropix import SamplerConfig


def tokens(results):
    return [result.token_ids for result in results]


def test_a_conversation_reuses_its_cache_and_says_the_same(toy_model, monkeypatch):
    fed = []
    prefill = loop.prefill

    def counted(weights, tokens_BT, count_B, *rest, **options):
        fed.append(int(count_B[0]))
        return prefill(weights, tokens_BT, count_B, *rest, **options)

    monkeypatch.setattr(loop, "prefill", counted)
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


@pytest.mark.parametrize("broken", ["prefill", "commit", "decode_chunk"])
def test_a_session_recovers_from_an_interrupt_that_took_its_cache(toy_model, monkeypatch, broken):
    """Ctrl-C may come when the device already owns the cache and the session does not have the new one yet."""
    rule, cfg = samplers.get("entropix"), GenerateConfig(max_new_tokens=50)
    rows = Session(toy_model, 1)

    def answer():
        rows.start([[17, 4, 200, 31, 8]], rule, SamplerConfig(), cfg)
        token_ids = []
        while rows.running:
            token_ids += rows.advance().token_B[:, 0].tolist()
        return token_ids

    expected = answer()
    whole = getattr(loop, broken)

    def torn(*args, **kwargs):
        jax.block_until_ready(whole(*args, **kwargs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, broken, torn)
        with pytest.raises(KeyboardInterrupt):
            rows.start([[77] * 40], rule, SamplerConfig(), cfg)
            while rows.running:
                rows.advance()
    assert answer() == expected


@pytest.mark.parametrize("abandoned", [False, True])
def test_nothing_of_a_text_with_nan_is_left_in_a_session(abandoned):
    """Neither when it was seen nor when the session was stopped before it came to that. Zero times NaN is NaN."""
    broken = toy.with_a_broken_token(77)
    rows = Session(broken, 1)
    first = prepare(broken, [[1, 77, 2]], max_new_tokens=4, sampler="greedy")
    if abandoned:
        rows.start(first.prompt_ids, first.sampler, first.sampler_config, first.config)
    else:
        assert collect(first, run(first, rows))[0].finish == FinishReason.NAN
    second = prepare(broken, [[1, 3, 2]], max_new_tokens=4, sampler="greedy")
    fresh = generate(broken, [[1, 3, 2]], max_new_tokens=4, sampler="greedy")
    assert tokens(collect(second, run(second, rows))) == tokens(fresh)


def test_an_ended_row_leaves_nothing_behind_while_its_neighbour_goes_on():
    """Its last token, never read by the model, is a broken one."""
    whole = toy.model_of(tied_embeddings=False)
    last = generate(whole, [[1, 2, 3]], max_new_tokens=3, sampler="greedy")[0].token_ids[-1]
    broken = dataclasses.replace(toy.with_a_broken_token(last), stop_ids=(last,))
    rows = Session(broken, 2)
    options = {"sampler": "greedy", "max_new_tokens": 20}
    first = prepare(broken, [[1, 2, 3], [7, 8]], **options)
    assert collect(first, run(first, rows))[0].finish == FinishReason.STOP_TOKEN
    second = prepare(broken, [[1, 2, 4], [7, 9]], **options)
    assert tokens(collect(second, run(second, rows))) == tokens(
        generate(broken, [[1, 2, 4], [7, 9]], **options)
    )
