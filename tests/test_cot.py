"""Parallel paths: what each of them is, what they share, and which one is chosen."""

import itertools
from typing import Any

import numpy as np
import pytest
import toy

from entropix import generation
from entropix.checkpoint.loading import Model
from entropix.cot import parallel
from entropix.cot.parallel import CotResult
from entropix.cot.plan import Plan
from entropix.decoding import loop
from entropix.decoding.session import Session
from entropix.generation import generate, prepare
from entropix.results import FinishReason

pytestmark = pytest.mark.slow

PROMPT = [17, 4, 200, 31, 8]
LONG = [17, 4, 200, 31, 20]  # whose answer is not too short
OPTIONS: dict[str, Any] = {"sampler": "top-p", "max_new_tokens": 24, "seed": 5}
STOPS = tuple(range(0, 256, 9))  # about one token in nine, so that rows end at different times


@pytest.fixture(scope="module")
def model() -> Model:
    """One layer, which compiles faster."""
    return toy.model_of(stop_ids=STOPS, n_layers=1)


@pytest.fixture(scope="module")
def from_start(model: Model) -> CotResult:
    return parallel.decode(model, PROMPT, paths=6, extract="text", **OPTIONS)


@pytest.fixture(scope="module")
def from_positions(model: Model) -> CotResult:
    return parallel.decode(model, LONG, paths=4, at="explore", entropy=0.0, extract="text", **OPTIONS)


def next_logits(model: Model, text: list[int]) -> np.ndarray:
    return np.asarray(toy.read(model.weights, np.array([text]), model.config)[0][0, -1])


def alone(model: Model, text: list[int], n_forced: int, **changes: Any) -> list[int]:
    """What a text is continued with when nothing else is computed."""
    options = {**OPTIONS, **changes, "max_new_tokens": OPTIONS["max_new_tokens"] - n_forced}
    [result] = generate(model, [text], **options)
    return result.token_ids


# ----- where paths part -------------------------------------------------------------------------------------


def test_paths_begin_with_the_most_likely_tokens_that_do_not_stop(
    model: Model, from_start: CotResult
) -> None:
    likeliest = [t for t in np.argsort(-next_logits(model, PROMPT)).tolist() if t not in STOPS]
    assert [path.result.token_ids[0] for path in from_start.paths] == likeliest[:6]
    for path in from_start.paths:
        assert (path.parent, path.position, path.given) == (None, 0, 1)
        first = path.result.records[0]
        assert (first["injected"], first["draw_logprob"], first["id"]) == (
            True,
            0.0,
            path.result.token_ids[0],
        )


def test_a_path_is_what_its_first_token_is_continued_with_alone(model: Model, from_start: CotResult) -> None:
    assert len({path.result.finish for path in from_start.paths}) > 1  # rows left the batch on the way
    for path in from_start.paths:
        first, *rest = path.result.token_ids
        assert rest == alone(model, [*PROMPT, first], 1)
        assert [record["id"] for record in path.result.records] == path.result.token_ids
        shown = path.result.token_ids[: -1 if path.result.finish == FinishReason.STOP_TOKEN else None]
        assert path.result.text == model.tokenizer.decode(shown)
        assert path.result.prompt_ids == PROMPT


def test_the_number_of_paths_changes_no_path(model: Model, from_start: CotResult) -> None:
    fewer = parallel.decode(model, PROMPT, paths=2, extract="text", **OPTIONS)
    assert [p.result.token_ids for p in fewer.paths] == [p.result.token_ids for p in from_start.paths[:2]]


def test_explore_forks_at_the_first_uncertain_positions_of_the_first_pass(
    model: Model, from_positions: CotResult
) -> None:
    """Above 0 bits every position is uncertain."""
    first, *others = from_positions.paths
    assert first.result.token_ids == alone(model, LONG, 0)
    assert (first.parent, first.position, first.given) == (None, 0, 0)
    assert [(path.parent, path.position, path.given) for path in others] == [(0, 0, 1), (0, 1, 2), (0, 2, 3)]
    for path in others:
        shared, token = first.result.token_ids[: path.position], path.result.token_ids[path.position]
        assert path.result.token_ids[: path.position] == shared
        order = np.argsort(-next_logits(model, [*LONG, *shared])).tolist()
        taken = first.result.token_ids[path.position]
        assert token == next(t for t in order if t != taken and t not in STOPS)
        begun = path.result.token_ids[: path.given]
        assert path.result.token_ids[path.given :] == alone(model, [*LONG, *begun], path.given)


def test_explore_follows_the_strategy_where_the_sampler_has_one(model: Model) -> None:
    """With thresholds that make every step one or the other."""
    options = {**OPTIONS, "sampler": "entropix", "max_new_tokens": 6}
    always = {"high_ent_thresh": 20.0, "high_vent_thresh": 1e-6, "low_vent_thresh": 1e-7}
    some = parallel.decode(model, LONG, paths=3, at="explore", sampler_config=always, **options)
    assert [path.position for path in some.paths] == [0, 0, 1]
    assert {record["strategy"] for record in some.paths[0].result.records} == {"explore"}
    never = {"high_vent_thresh": 1e6}
    none = parallel.decode(model, PROMPT, paths=3, at="explore", sampler_config=never, entropy=0.0, **options)
    assert len(none.paths) == 1
    [base] = generate(model, [PROMPT], sampler_config=never, **options)
    assert none.paths[0].result.token_ids == base.token_ids


def test_samples_are_those_of_their_seeds_and_the_first_is_that_of_generate(model: Model) -> None:
    found = parallel.best_of(model, PROMPT, 6, extract="text", **OPTIONS)
    assert found.paths[0].seed == OPTIONS["seed"]
    assert len({path.seed for path in found.paths}) == len({*map(str, found.paths)}) == 6
    for path in found.paths:
        assert path.result.token_ids == alone(model, PROMPT, 0, seed=path.seed)
        assert (path.parent, path.position, path.given) == (None, 0, 0)


# ----- cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", [parallel.START, parallel.EXPLORE, parallel.NONE])
def test_the_prompt_is_read_once(model: Model, monkeypatch: pytest.MonkeyPatch, fork: str) -> None:
    fed = []
    prefill = loop.prefill

    def counted(weights: Any, tokens_BT: Any, count_B: Any, *rest: Any, **options: Any) -> Any:
        fed.append(count_B.tolist())
        return prefill(weights, tokens_BT, count_B, *rest, **options)

    monkeypatch.setattr(loop, "prefill", counted)
    parallel.run(prepare(model, PROMPT, **OPTIONS), Plan(4, fork, entropy=0.0))
    assert fed == [[len(PROMPT) - 1]]


def test_tokens_and_passes_are_counted(from_start: CotResult, from_positions: CotResult) -> None:
    for path in from_start.paths:
        assert path.forward_passes == path.computed_tokens - 1  # the first token is shared work, counted once
    assert from_start.forward_passes == 1 + max(path.forward_passes for path in from_start.paths)
    assert from_start.computed_tokens == sum(len(path.result.token_ids) for path in from_start.paths)
    assert from_start.kept_tokens == len(from_start.paths[from_start.chosen].result.token_ids)
    first, *others = from_positions.paths
    assert first.forward_passes == first.computed_tokens == len(first.result.token_ids)
    for path in others:
        assert path.computed_tokens == len(path.result.token_ids) - path.position == path.forward_passes + 1
    passes = first.forward_passes + max(path.forward_passes for path in others)
    assert from_positions.forward_passes == passes


def test_no_path_has_more_tokens_than_allowed(from_start: CotResult, from_positions: CotResult) -> None:
    for path in (*from_start.paths, *from_positions.paths):
        assert len(path.result.token_ids) <= OPTIONS["max_new_tokens"]
        at_limit = len(path.result.token_ids) == OPTIONS["max_new_tokens"]
        assert at_limit or path.result.finish == FinishReason.STOP_TOKEN


# ----- rows that leave ----------------------------------------------------------------------------------------


def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch of every chunk from now on."""
    seen: list[int] = []
    chunk = loop.decode_chunk

    def watched(weights: Any, request: Any, *rest: Any, **options: Any) -> Any:
        seen.append(len(request.key_B))
        return chunk(weights, request, *rest, **options)

    monkeypatch.setattr(loop, "decode_chunk", watched)
    return seen


@pytest.mark.parametrize("speculate", [0, 2])
def test_a_shrinking_batch_says_what_a_whole_one_says(
    model: Model, monkeypatch: pytest.MonkeyPatch, speculate: int
) -> None:
    """Rows of the same numbers, each until its own end, twice in one session."""
    prompts = [[*PROMPT, i] for i in range(40, 46)]
    options = {**OPTIONS, "max_new_tokens": 40, "chunk_length": 3, "speculate": speculate}
    seen = widths(monkeypatch)
    shrinking, whole = Session(model, 6, shrinks=True), Session(model, 6)
    for seed in (1, 2):
        request = prepare(model, prompts, **{**options, "seed": seed})
        seen.clear()
        results = generation.collect(request, generation.run(request, shrinking))
        assert seen == sorted(seen, reverse=True) and set(seen) <= {6, 4, 2, 1} and {6, 1} <= set(seen)
        passes = shrinking.costs.row_passes_B.tolist()
        expected = generation.collect(request, generation.run(request, whole))
        assert passes == whole.costs.row_passes_B.tolist()
        for one, other in zip(results, expected, strict=True):
            assert (one.token_ids, one.text, one.finish) == (other.token_ids, other.text, other.finish)
            for name in ("logits_entropy", "attn_entropy", "self_certainty"):
                values = [[record[name] for record in result.records] for result in (one, other)]
                np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


def test_ended_rows_keep_their_numbers_and_their_ends(model: Model) -> None:
    prompts = [[*PROMPT, i] for i in range(40, 46)]
    request = prepare(model, prompts, **{**OPTIONS, "max_new_tokens": 40, "chunk_length": 3, "seed": 1})
    session = Session(model, 6, shrinks=True)
    session.start(request)
    before = np.full(6, FinishReason.RUNNING)
    while session.running:
        chunk = session.advance()
        assert chunk.live_B.shape == chunk.finish_B.shape == chunk.metrics.margin.shape[:2]
        assert chunk.live_B.shape[1] == 6
        ended = before != FinishReason.RUNNING
        assert not chunk.live_B[:, ended].any()
        np.testing.assert_array_equal(chunk.finish_B[-1, ended], before[ended])
        before = chunk.finish_B[-1]
    assert (before != FinishReason.RUNNING).all()


# ----- choosing -----------------------------------------------------------------------------------------------


def test_the_chosen_path_is_the_selectors_winner_and_all_scores_are_told(from_start: CotResult) -> None:
    margins = [path.scores["answer-margin"] for path in from_start.paths]
    assert from_start.chosen == int(np.argmax([-1 if m is None else m for m in margins]))
    assert from_start.text == from_start.winner.result.text
    for path in from_start.paths:
        records = path.result.records
        assert path.answer == (" ".join(path.result.text.split()) or None)
        assert path.scores["mean-logprob"] == pytest.approx(np.mean([r["logprob"] for r in records]))
        assert path.scores["self-certainty"] == pytest.approx(np.mean([r["self_certainty"] for r in records]))


def test_the_answer_margin_is_that_of_the_answers_tokens(model: Model) -> None:
    """The answer is the third character, wherever its bytes are."""
    found = parallel.decode(model, PROMPT, paths=6, extract=r"regex:(?s)^..(\S)", **OPTIONS)
    for path in found.paths:
        if path.answer is None:
            continue
        before = len(path.result.text[:2].encode())
        held = b"".join(bytes(r["bytes"]) for r in path.result.records)
        if "\ufffd" in path.result.text[:3]:
            continue
        n = len(path.answer.encode())
        assert held[before : before + n].decode() == path.answer
        margins = [r["margin"] for r in path.result.records[before : before + n]]  # a token a byte
        assert path.scores["answer-margin"] == pytest.approx(np.mean(margins))


def test_an_answer_that_the_limit_cut_off_does_not_count(model: Model) -> None:
    """It might have gone on: "2" may be the beginning of "26". The same in the middle of the text counts."""
    options = {**OPTIONS, "max_new_tokens": 12}
    found = parallel.decode(model, PROMPT, paths=6, extract=r"regex:(?s)\S(?=\s*$)", **options)
    limited = [path for path in found.paths if path.result.finish == FinishReason.LENGTH]
    assert limited and all(path.answer is None for path in limited)
    assert all(path.answer for path in found.paths if path not in limited and path.result.text.strip())
    earlier = parallel.decode(model, PROMPT, paths=6, extract=r"regex:(?s)^\s*(\S)", **options)
    assert all(path.answer for path in earlier.paths if len(path.result.text.strip()) > 1)


def test_confidence_is_minus_the_mean_logprob_of_the_20_likeliest(
    model: Model, from_start: CotResult
) -> None:
    path = from_start.paths[2]
    text = np.array([[*PROMPT, *path.result.token_ids[:-1]]])
    logits_TV = np.asarray(toy.read(model.weights, text, model.config)[0][0, len(PROMPT) - 1 :], np.float64)
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
    expected = -np.sort(logprobs_TV, axis=-1)[:, -20:].mean(axis=-1)
    assert path.scores["tail-confidence"] == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("n", [0, 3])
def test_records_have_the_alternatives_that_were_asked_for(model: Model, n: int) -> None:
    for fork in (parallel.START, parallel.EXPLORE):
        found = parallel.run(
            prepare(model, PROMPT, **OPTIONS, alternatives=n), Plan(3, fork, extract="text", entropy=0.0)
        )
        counts = {len(r.get("alternatives", [])) for path in found.paths for r in path.result.records}
        assert counts == {n}


def test_ending_a_decided_vote_early_changes_no_winner(model: Model) -> None:
    cold = {"temp": 0.2}
    n_early = 0
    for seed in range(3):
        options = {**OPTIONS, "seed": seed, "sampler_config": cold, "chunk_length": 2}
        early, full = (
            parallel.self_consistency(model, LONG, 6, extract=r"regex:(?s)^(.)", stop_early=stop, **options)
            for stop in (True, False)
        )
        assert not full.decided_early and all(p.result.finish != FinishReason.INTERRUPTED for p in full.paths)
        assert (early.chosen, early.winner.answer, early.text) == (
            full.chosen,
            full.winner.answer,
            full.text,
        )
        n_early += early.decided_early
        for some, every in zip(early.paths, full.paths, strict=True):
            n = len(some.result.token_ids)
            assert some.result.token_ids == every.result.token_ids[:n]
            cut = some.result.finish == FinishReason.INTERRUPTED
            assert cut == (n < len(every.result.token_ids)) and not (cut and some.answer)
        assert early.computed_tokens <= full.computed_tokens
        assert early.decided_early == any(p.result.finish == FinishReason.INTERRUPTED for p in early.paths)
    assert n_early > 0


# ----- ends -----------------------------------------------------------------------------------------------------


def test_a_stop_string_in_a_given_token_ends_its_path_alone(model: Model, from_start: CotResult) -> None:
    ascii_path = next(p for p in from_start.paths if p.result.token_ids[0] < 128)
    stop = chr(ascii_path.result.token_ids[0])
    found = parallel.decode(model, PROMPT, paths=6, extract="text", stop=stop, **OPTIONS)
    ended = found.paths[from_start.paths.index(ascii_path)].result
    assert (ended.text, ended.finish, len(ended.token_ids)) == ("", FinishReason.STOP_STRING, 1)
    for path, before in zip(found.paths, from_start.paths, strict=True):
        assert stop not in path.result.text
        assert path.result.token_ids == before.result.token_ids[: len(path.result.token_ids)]


@pytest.mark.parametrize("fork", [parallel.START, parallel.EXPLORE, parallel.NONE])
def test_an_interrupt_leaves_what_there_is(model: Model, fork: str) -> None:
    request = prepare(model, PROMPT, **OPTIONS, chunk_length=2)
    plan = Plan(3, fork, extract="text", entropy=0.0)
    for n in (0, 1, 4):
        found = parallel.run(request, plan, watch=lambda events, n=n: itertools.islice(events, n))
        assert found.interrupted
        assert any(path.result.finish == FinishReason.INTERRUPTED for path in found.paths)
        assert all(
            path.answer is None for path in found.paths if path.result.finish == FinishReason.INTERRUPTED
        )


def test_logits_that_are_not_finite_leave_one_path_that_says_so() -> None:
    broken = toy.with_a_broken_token(77)
    for fork in (parallel.START, parallel.EXPLORE):
        found = parallel.run(prepare(broken, [1, 77], **OPTIONS), Plan(3, fork, extract="text"))
        assert [path.result.finish for path in found.paths] == [FinishReason.NAN]
        assert not found.interrupted


# ----- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": 0}, "between 1 and 1024, got 0"),
        ({"paths": 100_000}, "between 1 and 1024, got 100000"),
        ({"fork": "end"}, "start, explore or none, got 'end'"),
        ({"select": "best"}, "no selector 'best'"),
        ({"extract": "regex:("}, "no regular expression"),
        ({"entropy": -1.0}, "at least 0 bits"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**{"paths": 3, **change})


def test_several_prompts_or_a_single_token_are_errors(model: Model) -> None:
    with pytest.raises(ValueError, match="one prompt, got 2"):
        parallel.run(prepare(model, [[1, 2], [3]], **OPTIONS), Plan(3))
    with pytest.raises(ValueError, match="max_new_tokens must be at least 2"):
        parallel.decode(model, PROMPT, **{**OPTIONS, "max_new_tokens": 1})
    with pytest.raises(ValueError, match="best_of draws independent ones"):
        parallel.decode(model, PROMPT, at="none", **OPTIONS)


# ----- the default model --------------------------------------------------------------------------------------


def test_ten_paths_of_a_small_question_take_the_passes_of_one_batch(toy_model: Model) -> None:
    options = {"raw": True, "stop": "\n", "sampler": "greedy", "max_new_tokens": 20}
    found = parallel.decode(toy_model, "What is 8 + 5?", paths=10, **options)
    lengths = [len(path.result.token_ids) for path in found.paths]
    assert len({path.result.token_ids[0] for path in found.paths}) == 10
    assert max(lengths) <= found.forward_passes <= 1 + max(lengths)
    # What a chunk computes after a stop string counts too.
    assert found.computed_tokens >= sum(lengths) >= 3 * found.forward_passes
