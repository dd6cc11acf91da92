"""The guard against repetition, alone and around samplers; the sampler of docs/how-to/rule.md; what `list` says."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
import reference
import stepping
import test_samplers as conformance
from every_number import EveryNumber as SamplerConfig

from entropix import presets, samplers
from entropix.console import cli
from entropix.main import main
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS, Sampler, SamplerInputs, repetition, truncation
from entropix.samplers.repetition import WINDOW, guarded

CFG = SamplerConfig(temp=1.0, clarifier="")
BREAKER = [[-1] * 4]
penalty = jax.jit(repetition.repetition_penalty)
dry = jax.jit(repetition.dry_penalty)
kept = jax.jit(truncation.top_n_sigma)


def window(text: list[int]) -> np.ndarray:
    return np.array([[-1] * (WINDOW - len(text)) + text], np.int32)


def dry_of(text: list[int], cfg: SamplerConfig, breakers: Any = BREAKER, vocabulary: int = 12) -> np.ndarray:
    """The penalties after one text."""
    logits_BV = np.zeros((1, vocabulary), np.float32)
    return np.asarray(dry(logits_BV, window(text), np.array(breakers, np.int32), cfg))[0]


def slow_dry(text: list[int], cfg: SamplerConfig, vocabulary: int = 12) -> np.ndarray:
    """For each place in the text: how much of what precedes it is also the end of the text."""
    out = np.zeros(vocabulary)
    for place, token in enumerate(text):
        n = 0
        while n < place and text[place - 1 - n] == text[len(text) - 1 - n]:
            n += 1
        if n >= cfg.dry_allowed_length:
            cost = cfg.dry_multiplier * cfg.dry_base ** (min(n, repetition.LONGEST) - cfg.dry_allowed_length)
            out[token] = max(out[token], cost)
    return out


# ----- the penalties ----------------------------------------------------------------------------------------


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_recent_tokens() -> None:
    logits_BV = np.array([[2.0, 2.0, -2.0, -2.0, 0.0]], np.float32)
    lowered_BV = penalty(logits_BV, window([0, 2, 2, 4]), 1.25)
    np.testing.assert_allclose(lowered_BV, [[1.6, 2.0, -2.5, -2.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(penalty(logits_BV, window([]), 1.25), logits_BV)


def test_dry_costs_what_its_formula_says() -> None:
    """After 1 2 3 4 1 2 3, a 4 would be the fourth repeated token: 0.8 · 1.75^(3 - 2)."""
    cfg = SamplerConfig(dry_multiplier=0.8)
    expected = np.zeros(12)
    expected[4] = 0.8 * 1.75
    np.testing.assert_allclose(dry_of([1, 2, 3, 4, 1, 2, 3], cfg), expected, rtol=1e-6)
    np.testing.assert_array_equal(dry_of([3, 4, 5, 3], cfg), np.zeros(12))  # one token is too little
    np.testing.assert_array_equal(dry_of([], cfg), np.zeros(12))


@pytest.mark.parametrize("seed", range(20))
def test_dry_is_the_longest_repetition_counted_slowly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 3, rng.integers(1, 60)).tolist()
    cfg = SamplerConfig(dry_multiplier=0.5, dry_base=1.5, dry_allowed_length=float(rng.integers(1, 5)))
    np.testing.assert_allclose(dry_of(text, cfg), slow_dry(text, cfg), rtol=1e-4)


def test_no_repetition_reaches_across_a_breaker() -> None:
    cfg = SamplerConfig(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=1.0)
    text = [1, 2, 9, 3, 4, 1, 2, 9, 3]
    assert dry_of(text, cfg)[4] == pytest.approx(2.0**3)
    assert dry_of(text, cfg, [[9, -1, -1, -1]])[4] == pytest.approx(1.0)
    assert dry_of([*text, 4, 9], cfg, [[9, -1, -1, -1]]).max() == 0  # nor does it begin with one


def test_a_breaker_costs_nothing_itself() -> None:
    """After 1 2 9 1 2, a 9 would repeat; as a breaker it may, or no second line could end like the first."""
    cfg = SamplerConfig(dry_multiplier=1.0, dry_base=2.0)
    assert dry_of([1, 2, 9, 1, 2], cfg)[9] == pytest.approx(1.0)
    assert dry_of([1, 2, 9, 1, 2], cfg, [[9, -1, -1, -1]]).max() == 0


def test_a_long_repetition_costs_no_more_than_the_largest_cost() -> None:
    cfg = SamplerConfig(dry_multiplier=0.0, dry_base=100.0)
    np.testing.assert_array_equal(dry_of([1] * WINDOW, cfg), np.zeros(12))
    for multiplier in (1e-6, 100.0):
        cost_V = dry_of([1] * WINDOW, dataclasses.replace(cfg, dry_multiplier=multiplier))
        assert cost_V.tolist() == [0.0, repetition.LARGEST_COST, *[0.0] * 10]


def test_a_guarded_token_does_not_widen_top_n_sigma() -> None:
    """Of 49,152 tokens one is as unlikely as the guard makes any: the deviation hardly grows, nor does the reach."""
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(0, 2, (1, 49_152)).astype(np.float32)
    cfg = SamplerConfig(dry_multiplier=0.8)
    lowered_BV = logits_BV - np.asarray(
        dry(logits_BV, window([7] * WINDOW), np.array(BREAKER, np.int32), cfg)
    )
    plain, guarded_ = (int(kept(values_BV, cfg).sum()) for values_BV in (logits_BV, lowered_BV))
    assert lowered_BV[0, 7] < -90 and plain <= guarded_ <= 1.2 * plain


# ----- around a sampler -------------------------------------------------------------------------------------


def play(sampler: Sampler, cfg: SamplerConfig, prompts: list[list[int]], steps: int) -> Any:
    """(token_TB, info) over fixed logits, on which greedy takes token 0, then 1, and so on, if it must change."""
    batch = len(prompts)
    logits_BV = np.tile(np.linspace(3, 0.5, 10, dtype=np.float32), (batch, 1))
    context = SamplerInputs(logits_BV, conformance.random_context(0).metrics)
    context = context._replace(metrics=jax.tree.map(lambda leaf: leaf[:batch], context.metrics))
    state, step = sampler.init(cfg, prompts, stepping.encode), jax.jit(sampler.step)
    outcomes = []
    for t in range(steps):
        key_B = jax.random.split(jax.random.key(t), batch)
        token_B, state, info, _ = step(key_B, state, context, cfg)
        outcomes.append((token_B, info))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *outcomes)


def test_the_guard_remembers_prompt_and_answer_of_each_row_alone() -> None:
    """A penalty of 10 makes any token seen less likely than any that was not."""
    cfg = dataclasses.replace(CFG, repetition_penalty=10.0)
    token_TB, _ = play(guarded(SAMPLERS["greedy"]), cfg, [[], [0, 1], [*range(5, 10)]], 4)
    np.testing.assert_array_equal(token_TB.T, [[0, 1, 2, 3], [2, 3, 4, 5], [0, 1, 2, 3]])


def test_only_the_newest_tokens_count() -> None:
    cfg = dataclasses.replace(CFG, repetition_penalty=10.0)
    token_TB, _ = play(guarded(SAMPLERS["greedy"]), cfg, [[0] + [7] * (WINDOW - 1), [0] + [7] * WINDOW], 1)
    assert token_TB[0].tolist() == [1, 0]


def test_dry_breaks_a_loop() -> None:
    """Greedy over fixed logits says 0 for ever; with DRY, after three of them, something else."""
    cfg = dataclasses.replace(CFG, dry_multiplier=5.0)
    token_TB, _ = play(guarded(SAMPLERS["greedy"]), cfg, [[]], 6)
    assert token_TB[:, 0].tolist() == [0, 0, 0, 1, 0, 0]


def test_the_log_probability_of_a_guarded_draw_is_the_models_own() -> None:
    cfg = dataclasses.replace(CFG, repetition_penalty=5.0)
    token_TB, info = play(guarded(SAMPLERS["greedy"]), cfg, [[0]], 1)
    expected = math.log(reference.softmax(np.linspace(3, 0.5, 10))[1])
    assert (token_TB[0, 0], info.logprob_B[0, 0]) == (1, pytest.approx(expected, abs=1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["entropix", "mirostat", "top-n-sigma"])
def test_a_guarded_sampler_is_the_sampler_on_guarded_logits(name: str) -> None:
    """All but the log-probability, which stays the model's: whatever the rule decides, it decides by what it sees."""
    cfg = dataclasses.replace(CFG, repetition_penalty=1.7, dry_multiplier=2.0)
    context = conformance.random_context(15)
    prompts = [[*range(i, i + 20), *range(i, i + 9)] for i in range(conformance.BATCH)]
    rule, key_B = guarded(SAMPLERS[name]), conformance.keys(15)
    state = rule.init(cfg, prompts, stepping.encode)
    seen_BV = penalty(context.logits_BV, state.recent_BW, cfg.repetition_penalty)
    seen_BV = np.asarray(seen_BV - dry(context.logits_BV, state.recent_BW, state.breaker_BQ, cfg))
    assert ((seen_BV < context.logits_BV).sum(axis=1) >= 20).all()
    plain = stepping.STEPS[name](key_B, state.inner, context._replace(logits_BV=seen_BV), cfg)
    token_B, after, info, candidates = jax.jit(rule.step)(key_B, state, context, cfg)
    own_B = np.log([reference.softmax(row) for row in context.logits_BV.astype(np.float64)])
    np.testing.assert_allclose(
        info.logprob_B, own_B[range(len(prompts)), np.asarray(token_B)], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(after.recent_BW[:, -1], token_B)
    expected = (*plain[:2], plain[2]._replace(logprob_B=info.logprob_B), plain[3])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (token_B, after.inner, info, candidates),
        expected,
    )


@pytest.mark.parametrize("name", ["entropix", "mirostat", "top-p"])
def test_a_guard_that_is_off_changes_nothing(name: str) -> None:
    prompts = [[0, 1, 0, 1, 0, 1], [3]]
    plain, off = (play(rule, CFG, prompts, 5) for rule in (SAMPLERS[name], guarded(SAMPLERS[name])))
    jax.tree.map(np.testing.assert_array_equal, plain, off)


@pytest.mark.parametrize("name", ["entropix", "mirostat"])
def test_a_guarded_sampler_keeps_the_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = guarded(SAMPLERS[name])
    monkeypatch.setitem(stepping.STEPS, name, stepping.counted(sampler))
    conformance.test_a_step_returns_what_the_contract_says(sampler)
    conformance.test_the_state_keeps_its_structure_shapes_and_dtypes(sampler)
    conformance.test_a_config_of_arrays_is_as_good_as_one_of_numbers(sampler)
    conformance.test_neighbours_change_no_bit_of_a_row_even_when_they_are_nan(sampler)
    conformance.test_kept_count_and_draw_probability_are_those_of_the_candidates(sampler, 10)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(sampler.init(CFG, [[]] * 3, stepping.encode)))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_sampler_can_be_guarded(sampler: Sampler) -> None:
    """Traced, with numbers and with arrays as config; the state keeps its kinds, so that a loop may carry it."""
    conformance.test_the_state_keeps_its_structure_shapes_and_dtypes(guarded(sampler))
    conformance.test_a_config_of_arrays_is_as_good_as_one_of_numbers(guarded(sampler))


def test_a_sampler_has_one_guarded_version() -> None:
    """Another object would be another compilation."""
    assert guarded(SAMPLERS["greedy"]) is guarded(SAMPLERS["greedy"])
    assert samplers.resolve("greedy").sampler is SAMPLERS["greedy"]
    for change in ({"repetition_penalty": 1.2}, {"dry_multiplier": 0.8}):
        assert samplers.resolve("greedy", change).sampler is guarded(SAMPLERS["greedy"])


@pytest.mark.slow
def test_what_ends_a_text_or_marks_a_turn_is_not_lowered_unless_that_is_asked_for() -> None:
    """Of two tokens that stood in the prompt, one ends turns: the other goes where it does not."""
    logits_V = np.full(9, -9.0, np.float32)
    logits_V[[3, 5, 7]] = 2.0, 1.9, 1.5
    for special, number, expected in (((3,), 0.0, 3), ((3,), 1.0, 7), ((), 0.0, 7)):
        cfg = SAMPLERS["greedy"].config(repetition_penalty=2.0, repetition_special=number)
        rule = guarded(SAMPLERS["greedy"], special)
        state = rule.init(cfg, [[3, 5]], lambda text: [1])
        metrics = Metrics(*(np.zeros(1, np.float32) for _ in Metrics._fields))
        token_B, *_ = rule.step(
            conformance.keys(0)[:1], state, SamplerInputs(jnp.asarray(logits_V)[None], metrics), cfg
        )
        assert token_B.tolist() == [expected]


# ----- what a reader is told --------------------------------------------------------------------------------


def test_the_example_of_the_page_about_rules_is_a_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my_rule.py"
    file.write_text(pages.files("docs/how-to/rule.md")["my_rule.py"], encoding="utf-8")
    sampler = samplers.resolve(f"{file}:RULE").rule
    monkeypatch.setitem(stepping.STEPS, sampler.name, stepping.counted(sampler))
    conformance.test_a_step_returns_what_the_contract_says(sampler)
    conformance.test_all_randomness_comes_from_the_rows_key(sampler)
    conformance.test_kept_count_and_draw_probability_are_those_of_the_candidates(sampler, 10)
    context = conformance.random_context(3)
    *_, filtered_BV = conformance.run_whole(sampler, context)
    p_BV = np.array([reference.softmax(row) for row in context.logits_BV.astype(np.float64)])
    np.testing.assert_array_equal(np.isfinite(filtered_BV), p_BV >= 1 / p_BV.shape[1])


def test_list_describes_every_sampler() -> None:
    assert samplers.summaries() == {name: sampler.summary for name, sampler in SAMPLERS.items()}
    assert next(iter(samplers.summaries())) == "entropix"


def test_sampler_help_describes_every_preset_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: main(["--sampler", "help"]))
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    *lines, blank, more = out.splitlines()
    described = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert list(described) == presets.preset_names("samplers")
    assert described["typical"] == SAMPLERS["typical"].summary
    assert (blank, more) == ("", "Formulas, numbers and sources: docs/samplers.md")


def test_presets_of_one_rule_are_told_apart_by_their_own_first_comment(tmp_path: Path) -> None:
    assert len({samplers.about(name) for name in presets.preset_names("samplers")}) == len(
        presets.preset_names("samplers")
    )
    chosen = samplers.about("entropix-smollm2-135m-instruct")
    assert chosen == "entropix with numbers chosen for smollm2-135m-instruct by its answers"
    file = tmp_path / "mine.toml"
    file.write_text('# warmer\nsampler = "min-p"\n')
    assert samplers.about(str(file)) == "warmer"


def test_arrays_of_the_guard_do_not_mix_dtypes() -> None:
    assert repetition.init(CFG, [[1]], stepping.encode, SAMPLERS["greedy"]).recent_BW.dtype == jnp.int32
