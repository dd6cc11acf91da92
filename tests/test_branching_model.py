"""Branching inside a generation, on the toy: every path, record and cache is what reading the same text gives."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import numpy as np
import pytest
from branches import EVERYWHERE, MODEL, PLAIN, PROMPTS, SMALL, branched, forks, tokens, unbranched

from entropix import samplers, scoring
from entropix.checkpoint.loading import Model
from entropix.decoding import loop
from entropix.decoding.session import Session
from entropix.generation import collect, prepare, run
from entropix.metrics import Metrics
from entropix.results import FinishReason, Result

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return branched()[0]


# ----- what a path sees -------------------------------------------------------------------------------------


def test_rows_fork_and_alternatives_are_kept(results: list[Result]) -> None:
    """Otherwise the tests below would test little. After a fork of depth 2 the next is three tokens later."""
    chosen = [
        [branch["chosen"] for branch in record["branches"]].index(True)
        for result in results
        for record in result.records
        if "branches" in record
    ]
    assert set(chosen) == {0, 1, 2}
    assert [forks(result) for result in results] == [list(range(0, 39, 3))] * 3


def test_every_path_is_what_reading_it_after_the_text_gives(results: list[Result]) -> None:
    """So each path has seen the prompt, the text so far and itself, at the right positions, and nothing else."""
    paths, texts = [], []
    for result in results:
        for step in forks(result):
            before = [*result.prompt_ids, *result.token_ids[:step]]
            for branch in result.records[step]["branches"]:
                paths.append((len(before), branch))
                texts.append([*before, *branch["ids"]])
    for (start, branch), read in zip(paths, scoring.score(MODEL, texts), strict=True):
        expected = [record["logprob"] for record in read.records[start - 1 : -1]]
        np.testing.assert_allclose(branch["logprobs"], expected, atol=1e-4)
        assert branch["score"] == pytest.approx(np.mean(expected), abs=1e-4)
        assert branch["text"] == MODEL.tokenizer.decode(branch["ids"])


def test_records_of_the_kept_text_are_those_of_reading_it(results: list[Result]) -> None:
    """All metrics, also those of attention and those of tokens that were rolled forward."""
    texts = [[*result.prompt_ids, *result.token_ids] for result in results]
    for result, read in zip(results, scoring.score(MODEL, texts), strict=True):
        for record, expected in zip(result.records, read.records[len(result.prompt_ids) - 1 :], strict=False):
            assert record["id"] == expected["next_id"]
            for name in ("logprob", *Metrics._fields):
                assert record[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name


def test_the_text_is_that_of_the_best_paths(results: list[Result]) -> None:
    for result in results:
        for step in forks(result):
            branches = result.records[step]["branches"]
            scores = [branch["score"] for branch in branches]
            [best] = [branch for branch in branches if branch["chosen"]]
            assert branches.index(best) == scores.index(max(scores))
            assert result.token_ids[step : step + len(best["ids"])] == best["ids"]
            for i, logprob in enumerate(best["logprobs"]):
                assert result.records[step + i]["logprob"] == pytest.approx(logprob, abs=1e-6)


def test_what_is_tried_are_the_drawn_token_and_the_likeliest_others(results: list[Result]) -> None:
    for step in forks(results[0]):
        record = results[0].records[step]
        drawn, *others = [branch["ids"][0] for branch in record["branches"]]
        assert others == [other["id"] for other in record["alternatives"] if other["id"] != drawn][:2]
        for other in record["alternatives"]:
            if other["id"] == record["id"]:
                assert record["logprob"] == pytest.approx(other["logprob"], abs=1e-6)
                assert record["draw_logprob"] == pytest.approx(other["draw_logprob"], abs=1e-6)


def test_the_first_path_is_what_the_sampler_would_have_generated(results: list[Result]) -> None:
    """The n-th fork is where a row with a budget of n - 1 goes on alone, with the same random numbers."""
    for n in range(6):
        alone, _ = branched(branching={"budget": n})
        for row, (result, without) in enumerate(zip(results, alone, strict=True)):
            step = forks(result)[n]
            assert forks(without) == forks(result)[:n]
            assert result.token_ids[:step] == without.token_ids[:step]
            assert result.records[step]["branches"][0]["ids"] == without.token_ids[step : step + 3], row


def test_without_a_budget_it_is_the_sampler() -> None:
    assert tokens(branched(branching={"budget": 0})[0]) == tokens(unbranched())


# ----- caches -----------------------------------------------------------------------------------------------


def assert_cache_is_a_fresh_one(session: Session, results: Sequence[Result], model: Model = MODEL) -> None:
    """All layers, all that was computed: everything but the newest token."""
    session._flush()
    fresh = Session(model, len(results))
    fresh._cache.prefill([[*result.prompt_ids, *result.token_ids[:-1]] for result in results])
    assert session._cache.tokens == fresh._cache.tokens
    found, expected = session._cache.kv, fresh._cache.kv
    n_slots = max(map(len, fresh._cache.tokens))
    for ours, theirs in zip(found.k_LBKHS, expected.k_LBKHS, strict=True):
        np.testing.assert_allclose(ours[..., :n_slots], theirs[..., :n_slots], atol=1e-4)
    for ours, theirs in zip(found.v_LBKSH, expected.v_LBKSH, strict=True):
        np.testing.assert_allclose(ours[:, :, :n_slots], theirs[:, :, :n_slots], atol=1e-4)
    np.testing.assert_array_equal(found.length_B, expected.length_B)


@pytest.mark.parametrize("distance", [1, 5])
def test_the_cache_is_that_of_a_fresh_prefill(distance: int) -> None:
    """Several commits of the tail, several forks between two of them, rows that fork at different steps."""
    results, session = branched(max_new_tokens=80, branching={"distance": distance})
    assert_cache_is_a_fresh_one(session, results)


def test_the_longest_paths_go_through_the_tail() -> None:
    """Twelve tokens a fork leave a tail of 32 no room for a third."""
    results, session = branched(PROMPTS[:1], SMALL, max_new_tokens=70, branching={"paths": 2, "depth": 11})
    assert forks(results[0]) == [0, 12, 24, 36, 48, 60]
    assert_cache_is_a_fresh_one(session, results, SMALL)


def test_a_conversation_goes_on_after_forks() -> None:
    prompt, session = list(PROMPTS[0]), Session(MODEL, 1)
    for turn in range(3):
        job = prepare(MODEL, [prompt], **PLAIN, branching=EVERYWHERE)
        [result] = collect(job, run(job, session))
        assert result.token_ids == branched([prompt])[0][0].token_ids
        prompt = [*prompt, *result.token_ids, 90 + turn, 7]


# ----- batches, chunks, programs ----------------------------------------------------------------------------


def test_rows_do_not_see_their_neighbours(results: list[Result]) -> None:
    assert tokens(branched([PROMPTS[2], [77], PROMPTS[0]])[0])[::2] == tokens([results[2], results[0]])
    assert tokens(branched(PROMPTS[1:2])[0]) == tokens(results[1:2])


def calm_row() -> tuple[int, float]:
    """(a row, a threshold in bits) so that this row never forks and others do."""
    peaks = [max(record["logits_entropy"] for record in result.records) for result in unbranched()]
    row = int(np.argmin(peaks))
    return row, peaks[row] + 1e-3


CALM, THRESHOLD = calm_row()


def test_a_row_that_does_not_fork_is_not_changed_by_those_that_do() -> None:
    results, _ = branched(branching={"entropy": THRESHOLD})
    assert forks(results[CALM]) == []
    assert sum(map(len, map(forks, results))) > 3
    assert results[CALM].token_ids == unbranched()[CALM].token_ids


def test_what_a_row_would_have_rolled_forward_never_ends_it() -> None:
    """Each of its tokens in turn is a stop token: it ends there, not where its neighbours' forks foresee it."""
    for stop in dict.fromkeys(unbranched()[CALM].token_ids[:15]):
        model = dataclasses.replace(MODEL, stop_ids=(stop,))
        plain = unbranched(model=model)[CALM]
        forked = branched(model=model, branching={"entropy": THRESHOLD})[0][CALM]
        assert (forked.token_ids, forked.finish) == (plain.token_ids, plain.finish)


def broken(token: int) -> Model:
    """The model whose logits are NaN wherever it sees this token."""
    embed_VD = MODEL.weights.embed_VD.at[token].set(np.nan)
    return dataclasses.replace(MODEL, weights=MODEL.weights.replace(embed_VD=embed_VD))


def test_a_nan_that_lies_ahead_of_a_row_stays_ahead() -> None:
    for token in dict.fromkeys(unbranched()[CALM].token_ids[:15]):
        plain = unbranched(model=broken(token))[CALM]
        forked = branched(model=broken(token), branching={"entropy": THRESHOLD})[0][CALM]
        assert (forked.token_ids, forked.finish) == (plain.token_ids, plain.finish)


def test_a_path_with_nan_is_out_and_the_others_are_as_without_it(results: list[Result]) -> None:
    """An alternative that leads to NaN: it has no score; tokens and scores of the others are what they were."""
    sound = results[0].records[0]["branches"]
    token = sound[1]["ids"][0]
    assert token not in {*sound[0]["ids"], *sound[2]["ids"], *PROMPTS[0]}
    [result, *_], _ = branched(model=broken(token), branching={"budget": 1})
    drawn, other, third = result.records[0]["branches"]
    assert other["score"] is None and not other["chosen"]
    for path, before in ((drawn, sound[0]), (third, sound[2])):
        assert path["ids"] == before["ids"]
        assert path["score"] == pytest.approx(before["score"], abs=1e-5)
    best = max((drawn, third), key=lambda path: path["score"])
    assert best["chosen"] and result.token_ids[:3] == best["ids"]


@pytest.mark.parametrize("chunk_length", [1, 7])
def test_chunk_length_does_not_change_tokens(results: list[Result], chunk_length: int) -> None:
    assert tokens(branched(chunk_length=chunk_length)[0]) == tokens(results)


def test_other_numbers_compile_nothing_new(results: list[Result]) -> None:
    before = loop.decode_chunk._cache_size()
    seen = set()
    for numbers in (
        {"entropy": 6.0},
        {"margin": 0.2, "entropy": 0.0},
        {"budget": 3},
        {"distance": 7},
        {"growth": 3.0},
        {"penalty": 5.0},
    ):
        again, _ = branched(branching=numbers, seed=len(seen), max_new_tokens=20 + len(seen))
        seen.add(str(tokens(again)))
    assert loop.decode_chunk._cache_size() == before
    assert len(seen) == 6


@pytest.mark.parametrize("off", [{"paths": 1, "depth": 5}, {"paths": 7, "depth": 0}])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_one_path_or_none_rolled_forward_is_the_sampler_itself(name: str, off: dict[str, int]) -> None:
    """What generates is a pure function of a session's run: the same program with the same numbers."""

    def begun(**options: Any) -> Any:
        job = prepare(SMALL, PROMPTS[:1], sampler=name, seed=3, **options)
        session = Session(SMALL, 1)
        session.start(job)
        run = session._run
        assert run is not None
        return run._replace(
            inputs=run.inputs._replace(key_B=jax.random.key_data(run.inputs.key_B)), tokens=vars(run.tokens)
        )

    plain, again = begun(), begun(branching=off)
    assert again.program == plain.program
    chex.assert_trees_all_equal(again._replace(program=0), plain._replace(program=0))


@pytest.mark.parametrize("off", [{"paths": 1, "depth": 5}, {"paths": 7, "depth": 0}])
def test_thresholds_without_branching_change_no_token_and_no_program(off: dict[str, int]) -> None:
    plain = unbranched()
    before = loop.decode_chunk._cache_size()
    assert tokens(branched(branching=off)[0]) == tokens(plain)
    assert loop.decode_chunk._cache_size() == before


# ----- ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_the_limit_ends_rows_and_paths(limit: int) -> None:
    results, _ = branched(max_new_tokens=limit)
    for result in results:
        assert (len(result.token_ids), result.finish) == (limit, FinishReason.LENGTH)
        for step in forks(result):
            assert step < limit - 1, "the last token has nothing after it"
            lengths = {len(branch["ids"]) for branch in result.records[step]["branches"]}
            assert lengths == {min(3, limit - step)}


def test_a_stop_token_ends_a_path_and_if_it_is_kept_its_row(results: list[Result]) -> None:
    ended_inside, ended_paths = 0, 0
    for stop in dict.fromkeys(results[0].token_ids):
        stopped, _ = branched(model=dataclasses.replace(MODEL, stop_ids=(stop,)))
        for result in stopped:
            assert (result.token_ids[-1] == stop) == (result.finish == FinishReason.STOP_TOKEN)
            assert stop not in result.token_ids[:-1]
            ended_inside += result.finish == FinishReason.STOP_TOKEN and len(result.token_ids) % 3 == 2
            for step in forks(result):
                for branch in result.records[step]["branches"]:
                    assert stop not in branch["ids"][:-1]
                    assert len(branch["ids"]) == 3 or branch["ids"][-1] == stop or step > 37
                    ended_paths += len(branch["ids"]) < 3 and not branch["chosen"]
    assert min(ended_inside, ended_paths) > 2, "nothing was tested"


def test_a_drawn_stop_token_may_be_outdone() -> None:
    """A row that would end goes on where another token leads to a better path."""
    for stop in range(20):
        model = dataclasses.replace(MODEL, stop_ids=(unbranched()[0].token_ids[stop],))
        for result in branched(model=model)[0]:
            for step in forks(result):
                drawn = result.records[step]["branches"][0]
                if drawn["ids"][-1] in model.stop_ids and len(drawn["ids"]) == 1 and not drawn["chosen"]:
                    assert len(result.token_ids) > step + 1
                    return
    raise AssertionError("no stop token was outdone")


# ----- options ----------------------------------------------------------------------------------------------


def test_the_first_token_of_a_path_alone_is_kept_if_asked() -> None:
    results, session = branched(PROMPTS[:1], max_new_tokens=12, branching={"keep": "token"})
    [result] = results
    assert forks(result) == list(range(11))
    for step in forks(result):
        [best] = [branch for branch in result.records[step]["branches"] if branch["chosen"]]
        assert len(best["ids"]) == min(3, 12 - step)
        assert result.token_ids[step] == best["ids"][0]
    assert any(not record["branches"][0]["chosen"] for record in result.records[:-1])
    assert_cache_is_a_fresh_one(session, results)
    texts = [[*result.prompt_ids, *result.token_ids]]
    [read] = scoring.score(MODEL, texts)
    logprobs = [record["logprob"] for record in read.records[len(result.prompt_ids) - 1 : -1]]
    np.testing.assert_allclose([record["logprob"] for record in result.records], logprobs, atol=1e-4)


def test_budget_and_distance_hold_in_every_row() -> None:
    for result in branched(branching={"budget": 4, "distance": 7})[0]:
        assert forks(result) == [0, 7, 14, 21]


def test_a_growing_fork_has_fewer_paths_where_the_model_is_surer() -> None:
    numbers = set()
    for result in branched(branching={"growth": 7.0})[0]:
        for step in forks(result):
            record = result.records[step]
            n_paths = len(record["branches"])
            assert n_paths == min(3, 2 + math.floor(record["logits_entropy"] / 7))
            numbers.add(n_paths)
    assert numbers == {2, 3}


def test_passes_count_what_was_rolled_forward() -> None:
    """Rows that never fork together: one pass for every step, two more wherever any row forks."""
    results, session = branched(branching={"entropy": THRESHOLD}, chunk_length=1)
    assert session.costs.row_passes_B[CALM] == 40
    for row, result in enumerate(results):
        inside = sum(len(result.records[s]["branches"][0]["ids"]) - 1 for s in forks(result))
        assert session.costs.row_passes_B[row] == 40 - inside + 2 * len(forks(result))


def test_rows_wait_for_each_other_until_they_have_lost_as_much_as_others_will() -> None:
    request = prepare(MODEL, PROMPTS, **PLAIN, branching=EVERYWHERE | {"entropy": THRESHOLD})
    session = Session(MODEL, len(PROMPTS))
    session.start(request)
    waited, running, n_waited = np.zeros(3, int), np.ones(3, bool), 0
    while session.running:
        step = session.advance(1)
        assert step.paths is not None
        forked = step.paths.forked_B[0]
        waits = running & ~step.live_B.any(axis=0)
        others = running & ~forked & ~waits
        if forked.any():
            assert not waits.any() and waited.sum() >= EVERYWHERE["depth"] * others.sum()
        elif waits.any():
            assert waited.sum() < EVERYWHERE["depth"] * others.sum()
        waited = np.where(waits, waited + 1, 0)
        n_waited += waits.sum()
        running &= ~(step.live_B & (step.finish_B != FinishReason.RUNNING)).any(axis=0)
    assert n_waited > 10


def test_a_chunk_ends_where_its_records_are_full_though_rows_that_waited_have_room() -> None:
    """Rows that keep one token of each fork, and fork apart, wait so often that none has 32 tokens after 32 passes."""
    often = {"keep": "token", "entropy": THRESHOLD - 0.2}
    short, _ = branched(branching=often, chunk_length=4)
    long, session = branched(branching=often, chunk_length=100)
    assert tokens(long) == tokens(short)
    assert session.costs.n_row_steps // len(PROMPTS) > 50  # for 40 tokens


def test_a_step_with_a_fork_is_one_pass_and_one_for_each_rolled_token(results: list[Result]) -> None:
    """13 forks of three tokens each, in all rows at once, and one token."""
    again, session = branched()
    assert tokens(again) == tokens(results)
    assert session.costs.n_passes == 13 * (1 + 2) + 1
    assert session.costs.row_passes_B.tolist() == [40] * 3
