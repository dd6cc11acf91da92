"""Taking tokens back: against a plain loop that has no cache, and with everything that could notice."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from entropix import samplers
from entropix.config import BacktrackConfig, GenerateConfig
from entropix.decoding import backtracking, loop
from entropix.decoding.inputs import batch_inputs, device_numbers
from entropix.decoding.request import GenerationRequest, PromptRow
from entropix.decoding.session import Session
from entropix.generation import collect, generate, prepare, run
from entropix.results import FinishReason
from entropix.samplers.base import SamplerInputs

pytestmark = pytest.mark.slow

MODEL = toy.model_of()
PROMPTS = [[1, 2, 3, 4, 5], [200, 7], [9] * 40]
LENGTH = 40
WHOLE = 80  # tokens that a text is padded to; what comes later changes nothing
LOST = {"tokens": 3, "budget": 6}


def backtracked(prompts: list[list[int]], sampler: str = "placebo", **options: Any) -> list[Any]:
    options = {"max_new_tokens": LENGTH, "seed": 3, "backtracking": LOST, **options}
    return generate(MODEL, prompts, sampler=sampler, **options)


def without_a_cache(
    prompt: list[int], sampler_name: str, wish: dict[str, Any], **numbers: Any
) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """(tokens, what was taken back to which step): the rule in a plain loop that reads the whole text at every step."""
    found = samplers.resolve(sampler_name, numbers)
    cfg = found.numbers
    sampler = found.on([*MODEL.stop_ids, *MODEL.tokenizer.special_tokens.values()])
    draw, fold = (
        jax.jit(sampler.step),
        jax.jit(lambda key, step: jax.random.fold_in(jax.random.fold_in(key, step), 0)),
    )
    row = PromptRow(prompt, seed=3)
    key = batch_inputs(GenerationRequest(MODEL, (row,), sampler, cfg, GenerateConfig())).key_B[0]
    text: list[int] = []
    injected: list[bool] = []
    states = [sampler.init(cfg, [prompt], MODEL.tokenizer.encode)]
    taken: list[tuple[int, list[int]]] = []
    frontier, place, forbidden = 0, -1, list[int]()
    while len(text) < LENGTH:
        step = len(text)
        whole = [*prompt, *text]
        padded_BT = np.array([whole + [0] * (WHOLE - len(whole))], np.int32)
        logits_BTV, _, _, metrics_BT = toy.read(MODEL.weights, padded_BT, MODEL.config)
        here = len(whole) - 1
        logits_BV = np.array(logits_BTV[:, here])
        if step == place:
            logits_BV[:, forbidden] = -np.inf
        context = SamplerInputs(
            jnp.asarray(logits_BV), jax.tree.map(lambda leaf, here=here: leaf[:, here], metrics_BT)
        )
        token_B, state, info, _ = draw(fold(key, step)[None], states[-1], context, device_numbers(cfg))
        asks = sampler.strategies[int(info.strategy_B[0])] in wish.get("strategies", ("resample",))
        back = wish["tokens"]
        plain = len(injected) - max((i + 1 for i, was in enumerate(injected) if was), default=0)
        full = place == step - back and len(forbidden) == backtracking.MAX_FORBIDDEN
        if asks and plain >= back and len(taken) < wish["budget"] and step >= frontier and not full:
            forbidden = [*(forbidden if place == step - back else []), text[-back]]
            frontier, place = step, step - back
            taken.append((place, text[-back:]))
            text, states, injected = text[:-back], states[:-back], injected[:-back]
        else:
            text.append(int(token_B[0]))
            states.append(state)
            injected.append(bool(info.injected_B[0]))
    return text, taken


def taken_back(result: Any) -> list[tuple[int, list[int]]]:
    return [(i, ids) for i, record in enumerate(result.records) for ids in record.get("taken_back", [])]


@pytest.mark.parametrize(
    ("sampler", "numbers", "wish"),
    [
        ("placebo", {}, {"tokens": 1, "budget": 20}),
        ("placebo", {}, {"tokens": 3, "budget": 6}),
        ("placebo", {"repetition_penalty": 1.3, "dry_multiplier": 1.0}, {"tokens": 2, "budget": 9}),
        ("entropix", {"med_ent_thresh": 2.0, "high_ent_thresh": 5.5, "high_vent_thresh": 0.5}, LOST),
        ("mirostat", {}, {"tokens": 2, "budget": 9, "strategies": ("mirostat",)}),
    ],
)
def test_backtracking_is_what_a_loop_without_a_cache_does(
    sampler: str, numbers: dict[str, float], wish: dict[str, Any]
) -> None:
    """Tokens, and what was taken back: positions, sampler states and forbidden tokens are those of a text that never
    had the tokens which were taken back."""
    results = backtracked(PROMPTS, sampler, backtracking=wish, sampler_config=numbers)
    retreats = 0
    for prompt, result in zip(PROMPTS, results, strict=True):
        tokens, taken = without_a_cache(prompt, sampler, wish, **numbers)
        assert result.token_ids == tokens
        assert taken_back(result) == [entry for entry in taken if entry in taken_back(result)]
        retreats += len(taken)
    assert retreats >= 3


def test_all_that_was_taken_back_to_a_step_is_in_the_record_of_its_token() -> None:
    [result] = backtracked(PROMPTS[:1])
    _, taken = without_a_cache(PROMPTS[0], "placebo", LOST)
    final = dict(taken_back(result))
    assert final and taken_back(result) == [entry for entry in taken if entry[0] in final]
    for step, ids in taken_back(result):
        assert len(ids) == LOST["tokens"] and result.token_ids[step] != ids[0]


def test_tokens_tried_at_one_step_are_all_different_and_bounded() -> None:
    """The placebo's strategy depends on the step alone: it turns back at the same one until nothing is left to try."""
    [result] = backtracked(PROMPTS[:1], backtracking={"tokens": 3, "budget": 100})
    by_step: dict[int, list[int]] = {}
    for step, ids in taken_back(result):
        by_step.setdefault(step, []).append(ids[0])
    assert len(result.token_ids) == LENGTH
    assert max(map(len, by_step.values())) == backtracking.MAX_FORBIDDEN
    for step, tried in by_step.items():
        assert len({*tried, result.token_ids[step]}) == len(tried) + 1


def test_a_budget_is_never_exceeded_and_none_is_no_backtracking() -> None:
    plain = generate(MODEL, PROMPTS, sampler="placebo", max_new_tokens=LENGTH, seed=3)
    for off in ({"tokens": 3, "budget": 0}, {"tokens": 0}):
        assert [r.token_ids for r in backtracked(PROMPTS, backtracking=off)] == [r.token_ids for r in plain]
    for budget in (1, 2):
        for result in backtracked(PROMPTS, backtracking={"tokens": 2, "budget": budget}):
            assert 0 < len(taken_back(result)) <= budget


@pytest.mark.parametrize("chunk_length", [1, 7, 64])
def test_neither_chunks_nor_neighbours_change_what_is_taken_back(chunk_length: int) -> None:
    together = backtracked(PROMPTS)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        [alone] = backtracked([prompt], chunk_length=chunk_length)
        assert alone.token_ids == expected.token_ids
        assert taken_back(alone) == taken_back(expected)


def test_drafts_change_nothing_of_it() -> None:
    plain, drafted = backtracked([[1, 2, 1, 2, 1, 2]]), backtracked([[1, 2, 1, 2, 1, 2]], speculate=3)
    assert [r.token_ids for r in drafted] == [r.token_ids for r in plain]
    assert [taken_back(r) for r in drafted] == [taken_back(r) for r in plain]


def test_the_cache_is_that_of_the_text_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more tokens taken back than the tail holds, so that some come out of the cache."""
    job = prepare(
        MODEL,
        PROMPTS,
        sampler="placebo",
        max_new_tokens=80,
        seed=3,
        backtracking={"tokens": 16, "budget": 60},
    )
    cuts = []
    truncate = loop.truncate
    monkeypatch.setattr(loop, "truncate", lambda *args: cuts.append(1) or truncate(*args))
    session, fresh = Session(MODEL, len(PROMPTS)), Session(MODEL, len(PROMPTS))
    results = collect(job, run(job, session))
    assert cuts
    whole = [[*prompt, *result.token_ids, 0] for prompt, result in zip(PROMPTS, results, strict=True)]
    for one in (session, fresh):
        one.start(dataclasses.replace(job.with_each(ids=whole), config=GenerateConfig(max_new_tokens=1)))
    assert session._cache.tokens == fresh._cache.tokens
    for ours, theirs in zip(
        jax.tree.leaves(session._cache.kv), jax.tree.leaves(fresh._cache.kv), strict=True
    ):
        np.testing.assert_allclose(ours[..., : ours.shape[-1]], theirs, atol=2e-5)


def test_a_session_recovers_from_an_interrupt_while_tokens_are_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device already owns the cache, and the host's account of a row is that of before or after."""
    options: dict[str, Any] = {"sampler": "placebo", "max_new_tokens": 80, "seed": 3}
    job = prepare(MODEL, PROMPTS, **options, backtracking={"tokens": 16, "budget": 60})
    session = Session(MODEL, len(PROMPTS))

    def torn(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "truncate", torn)
        with pytest.raises(KeyboardInterrupt):
            collect(job, run(job, session))
    assert not session.running
    again = prepare(MODEL, PROMPTS, **options)
    found = collect(again, run(again, session))
    expected = generate(MODEL, PROMPTS, **options)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]


def test_nothing_that_was_shown_is_taken_back() -> None:
    """The pieces that a stream yields are the answer; tokens that may still go are held back."""
    job = prepare(MODEL, PROMPTS, sampler="placebo", max_new_tokens=LENGTH, seed=3, backtracking=LOST)
    pieces = [""] * len(PROMPTS)
    counts = [0] * len(PROMPTS)
    for event in run(job):
        pieces[event.row] += event.text
        counts[event.row] += event.record is not None
        assert event.finish != FinishReason.BACKTRACKING
    results = backtracked(PROMPTS)
    assert pieces == [result.text for result in results]
    assert counts == [len(result.token_ids) for result in results]


def test_what_was_inserted_is_never_taken_back() -> None:
    """No logit could forbid it: the same state and key would insert it again."""
    [result] = backtracked(
        PROMPTS[:1],
        sampler_config={"placebo_clarify": 0.3},
        backtracking={"tokens": 2, "budget": 9, "strategies": ("explore",)},
    )
    inserted = [i for i, record in enumerate(result.records) if record["injected"]]
    assert inserted and taken_back(result)
    for step, ids in taken_back(result):
        assert result.token_ids[step] != ids[0]


def test_forks_that_were_taken_back_leave_no_trace_in_what_follows() -> None:
    """With a distance of 1 and more entropy than the threshold, every token of the answer is a fork, also those that
    come where tokens were taken back."""
    branching = {"paths": 2, "depth": 1, "entropy": 1e-3, "keep": "token", "among": "all"}
    [result] = backtracked(PROMPTS[:1], branching=branching, backtracking={"tokens": 5, "budget": 3})
    assert taken_back(result)
    forked = ["branches" in record or record["injected"] for record in result.records]
    assert all(forked[:-1])


@pytest.mark.parametrize("numbers", [{}, {"dry_multiplier": 1.0}])
def test_branching_and_backtracking_go_together(numbers: dict[str, float]) -> None:
    """Also with a sampler whose state is more than a number a row; all numbers are those of the text that is left."""
    branching = {"paths": 2, "depth": 2, "entropy": 5.0}
    session, wish = Session(MODEL, len(PROMPTS)), {"tokens": 3, "budget": 4}
    job = prepare(
        MODEL, PROMPTS, sampler="placebo", max_new_tokens=LENGTH, seed=3, sampler_config=numbers,
        branching=branching, backtracking=wish,
    )  # fmt: skip
    results = collect(job, run(job, session))
    assert any(taken_back(result) for result in results)
    assert any("branches" in record for result in results for record in result.records)
    for prompt, result in zip(PROMPTS, results, strict=True):
        whole = [*prompt, *result.token_ids]
        _, _, _, metrics = toy.read(
            MODEL.weights, np.array([whole + [0] * (WHOLE - len(whole))], np.int32), MODEL.config
        )
        here = slice(len(prompt) - 1, len(whole) - 1)
        for name in ("logits_entropy", "attn_varentropy", "head_agreement"):
            found = [record[name] for record in result.records]
            np.testing.assert_allclose(found, getattr(metrics, name)[0, here], rtol=1e-3, atol=1e-4)
    again = backtracked(
        PROMPTS, sampler_config=numbers, branching=branching, backtracking=wish, chunk_length=5
    )
    assert [result.token_ids for result in again] == [result.token_ids for result in results]


def test_all_that_was_computed_is_counted() -> None:
    """Tokens of the answer, those taken back, and those rolled forward on paths that were not kept."""
    session = Session(MODEL, 2)
    job = prepare(MODEL, PROMPTS[:2], sampler="placebo", max_new_tokens=LENGTH, seed=3, backtracking=LOST)
    for result, computed in zip(collect(job, run(job, session)), session.costs.computed_B, strict=True):
        assert computed == len(result.token_ids) + LOST["tokens"] * len(taken_back(result))
    job = prepare(
        MODEL, PROMPTS[:2], sampler="placebo", max_new_tokens=LENGTH, seed=3,
        branching={"paths": 2, "depth": 2, "entropy": 5.0},
    )  # fmt: skip
    for result, computed in zip(collect(job, run(job, session)), session.costs.computed_B, strict=True):
        tried = [
            path for record in result.records for path in record.get("branches", ()) if not path["chosen"]
        ]
        assert (
            computed
            == len(result.token_ids) + sum(len(path["ids"]) - 1 for path in tried)
            > len(result.token_ids)
        )


def test_a_stop_string_in_tokens_that_were_taken_back_stops_nothing() -> None:
    [result] = backtracked(PROMPTS[:1])
    step, ids = taken_back(result)[0]
    lost = MODEL.tokenizer.decode(ids[:1])
    before = MODEL.tokenizer.decode(result.token_ids[:step])
    if lost in before or not lost.isprintable():
        lost = MODEL.tokenizer.decode(ids)
    [stopped] = backtracked(PROMPTS[:1], stop=(lost,))
    assert len(stopped.text) >= len(before)


def test_other_numbers_are_the_same_program() -> None:
    from entropix.decoding import loop

    backtracked(PROMPTS)
    compiled = loop.decode_chunk._cache_size()
    backtracked(PROMPTS, backtracking={"tokens": 5, "budget": 2, "strategies": ("flow", "adaptive")})
    assert loop.decode_chunk._cache_size() == compiled


@pytest.mark.parametrize(
    ("sampler", "wish", "message"),
    [
        ("greedy", {"tokens": 2}, "greedy never does resample; it has greedy"),
        ("placebo", {"tokens": 2, "strategies": ()}, "never does what asks for it"),
        ("placebo", {"tokens": 17}, "between 0 and 16, got 17"),
        ("placebo", {"token": 2}, "did you mean 'tokens'"),
    ],
)
def test_backtracking_that_cannot_be_is_refused(sampler: str, wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(MODEL, PROMPTS, sampler=sampler, backtracking=wish)


def test_the_state_forgets_what_was_tried_elsewhere() -> None:
    state = jax.tree.map(np.array, backtracking.none_yet(2))
    backtracking.write_turn(state, 1, 10, 4, 77)
    backtracking.write_turn(state, 1, 10, 4, 78)
    assert state.forbidden_BF[1, :3].tolist() == [77, 78, -1]
    backtracking.write_turn(state, 1, 12, 4, 79)
    assert state.forbidden_BF[1, :3].tolist() == [79, -1, -1]
    assert state.count_B.tolist() == [0, 3] and state.plain_B.tolist() == [0, -12]
    assert state.frontier_B.tolist() == [0, 12] and state.place_B.tolist() == [-1, 8]
    assert state.forbidden_BF[0, 0] == -1
    assert BacktrackConfig() == GenerateConfig().backtracking and not BacktrackConfig().is_on
