"""What every sampler owes its callers, whatever its rule. A new one in `SAMPLERS` is tested as it is."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax import Array
from stepping import STEPS, TRACES, encode, first_step

from entropix import config, filters, presets, samplers
from entropix.decoding.inputs import device_numbers
from entropix.filters import SamplingParams
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS, RuleConfig, SampleInfo, Sampler, SamplerInputs
from entropix.samplers.entropix import SamplerConfig

VOCABULARY = 300
BATCH = 64  # one size almost everywhere: a program is compiled for each
NOTHING: list[list[int]] = [[]] * BATCH  # prompts
DTYPES = SampleInfo(
    strategy_B=jnp.int32,
    temperature_B=jnp.float32,
    top_p_B=jnp.float32,
    top_k_B=jnp.int32,
    min_p_B=jnp.float32,
    kept_B=jnp.int32,
    logprob_B=jnp.float32,
    draw_logprob_B=jnp.float32,
    score_B=jnp.float32,
    injected_B=jnp.bool_,
)

# Rules that are one pass through the common chain, so that the recorded settings alone give back the distribution.
CHAINED = (
    *("entropix", "entropix-torch", "entropix-logits", "placebo"),
    *("greedy", "temperature", "top-k", "top-p", "min-p"),
    "greedy-threshold",
)

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
every_preset = pytest.mark.parametrize("preset", presets.preset_names("samplers"))


def random_context(seed: int) -> SamplerInputs:
    """Sharp and flat logits without ties; metrics around every threshold of the reference rules, so that all
    strategies occur. In numpy, where taking a row compiles nothing."""
    rng = np.random.default_rng(seed)
    logits_BV = rng.normal(0, 1, (BATCH, VOCABULARY)) * rng.uniform(0.2, 6, (BATCH, 1))
    entropy_B = rng.choice([0.02, 0.5, 2.0, 4.0, 7.0], BATCH) * rng.uniform(0.9, 1.1, BATCH)
    varentropy_B = rng.choice([0.02, 1.0, 8.0], BATCH) * rng.uniform(0.9, 1.1, BATCH)
    others = rng.uniform(0, 1, (len(Metrics._fields) - 2, BATCH)) * np.linspace(0.5, 4, BATCH)
    metrics = Metrics(*(values_B.astype(np.float32) for values_B in (entropy_B, varentropy_B, *others)))
    return SamplerInputs(logits_BV.astype(np.float32), metrics)


def random_config(rng: np.random.Generator, sampler: Sampler) -> RuleConfig:
    """Every traced number somewhere in its range."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(sampler.config):
        low, high = max(field.metadata["low"], -2.0), min(field.metadata["high"], 8.0)
        if field.type is float:
            changes[field.name] = float(rng.uniform(low, high))
        if field.name == "top_k":
            changes["top_k"] = int(rng.integers(1, 128))
    cfg = sampler.config(**changes)
    config.check(cfg)
    return cfg


def keys(seed: int) -> Array:
    return jax.random.split(jax.random.key(seed), BATCH)


def rows(tree: Any, chosen: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[chosen], tree)


def run(
    sampler: Sampler, context: SamplerInputs, cfg: RuleConfig | None = None, seed: int = 0
) -> tuple[np.ndarray, SampleInfo]:
    """(token_B, info) of one jitted step from the initial state, in numpy."""
    return run_whole(sampler, context, cfg, seed)[:2]


def run_whole(
    sampler: Sampler, context: SamplerInputs, cfg: RuleConfig | None = None, seed: int = 0
) -> tuple[np.ndarray, SampleInfo, np.ndarray]:
    """(token_B, info, the logits_BV that one draw was made from, -inf for removed tokens)."""
    return first_step(sampler, context, sampler.config() if cfg is None else cfg, jax.random.key(seed))


chain = jax.jit(filters.chain)


def assert_trees_equal(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# ----- registry and presets ---------------------------------------------------------------------------------


def test_samplers_are_registered_under_their_own_names() -> None:
    assert {name: sampler.name for name, sampler in SAMPLERS.items()} == {name: name for name in SAMPLERS}
    assert {"entropix", "entropix-torch", "greedy", "temperature", "top-k", "top-p", "min-p"} <= set(SAMPLERS)
    assert samplers.get("greedy") is SAMPLERS["greedy"]


def test_an_unknown_sampler_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown sampler 'entropy'; did you mean 'entropix'. There are entropix, .*min-p"
    ):
        samplers.get("entropy")


@every_preset
def test_every_preset_names_a_registered_sampler_and_runs(preset: str) -> None:
    chosen = samplers.resolve(preset)
    token_B, info = run(chosen.rule, random_context(0), chosen.numbers)
    assert np.all((token_B >= 0) & (token_B < VOCABULARY))
    assert np.isfinite(info.draw_logprob_B).all()


@every_sampler
def test_every_sampler_has_a_preset_and_a_summary(sampler: Sampler) -> None:
    assert samplers.resolve(sampler.name).name == sampler.name
    assert sampler.summary and sampler.strategies
    assert len(set(sampler.strategies)) == len(sampler.strategies)


# ----- the contract -----------------------------------------------------------------------------------------


@every_sampler
def test_a_step_returns_what_the_contract_says(sampler: Sampler) -> None:
    token_B, info = run(sampler, random_context(1))
    assert (token_B.shape, token_B.dtype) == ((BATCH,), jnp.int32)
    for name, values_B, dtype in zip(SampleInfo._fields, info, DTYPES, strict=True):
        assert (values_B.shape, values_B.dtype) == ((BATCH,), dtype), name
    assert np.all((token_B >= 0) & (token_B < VOCABULARY))
    assert np.all((info.strategy_B >= 0) & (info.strategy_B < len(sampler.strategies)))
    assert np.all((info.kept_B >= 1) & (info.kept_B <= VOCABULARY))
    assert np.all((info.top_k_B >= 1) & (info.temperature_B > 0))
    assert np.all((info.draw_logprob_B <= 0) & (info.logprob_B <= 0))


@every_sampler
def test_the_state_keeps_its_structure_shapes_and_dtypes(sampler: Sampler) -> None:
    """A loop on the device needs this, down to weak types."""
    state = sampler.init(sampler.config(), NOTHING, encode)
    _, after, *_ = jax.eval_shape(sampler.step, keys(0), state, random_context(2), sampler.config())

    def kinds(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda: tree)
        )

    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert kinds(state) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), after)


@pytest.mark.slow
@every_sampler
def test_jit_changes_nothing(sampler: Sampler) -> None:
    """Nothing of the rule happens in Python. Rounding may differ in the last bit."""
    context, state = (
        jax.tree.map(jnp.asarray, random_context(3)),
        sampler.init(sampler.config(), NOTHING, encode),
    )
    plain = sampler.step(keys(3), state, context, sampler.config())
    jitted = STEPS[sampler.name](keys(3), state, context, sampler.config())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), plain, jitted)
    np.testing.assert_array_equal(plain[0], jitted[0])


@every_sampler
def test_fifty_random_configs_compile_once(sampler: Sampler) -> None:
    context, rng = random_context(4), np.random.default_rng(4)
    run(sampler, context)
    before = TRACES[sampler.name]
    temperatures = {
        tuple(run(sampler, context, random_config(rng, sampler), seed)[1].temperature_B) for seed in range(50)
    }
    assert TRACES[sampler.name] == before
    assert len(temperatures) == (1 if sampler.name == "greedy" else 50)  # the configs did reach the program


def test_whole_numbers_in_a_preset_are_the_same_program_as_decimal_ones(tmp_path: Path) -> None:
    """`temp = 1` in TOML is an integer; it must become the float that `temp = 1.0` is."""

    def outcome(numbers: str) -> Any:
        file = tmp_path / "numbers.toml"
        file.write_text(f'sampler = "entropix"\n{numbers}')
        return run(SAMPLERS["entropix"], random_context(4), samplers.resolve(str(file)).numbers)

    decimal, before = outcome("temp = 1.0\nmin_p = 0.0\n"), TRACES["entropix"]
    assert_trees_equal(outcome("temp = 1\nmin_p = 0\n"), decimal)
    assert TRACES["entropix"] == before


def test_whole_numbers_in_python_are_the_same_program_as_decimal_ones() -> None:
    whole, decimal = (device_numbers(SamplerConfig(temp=number)) for number in (1, 1.0))
    assert jax.tree.map(lambda leaf: leaf.dtype, whole) == jax.tree.map(lambda leaf: leaf.dtype, decimal)
    assert (whole.temp.dtype, whole.top_k.dtype) == (jnp.float32, jnp.int32)


@every_sampler
def test_a_config_of_arrays_is_as_good_as_one_of_numbers(sampler: Sampler) -> None:
    """It is traced, in a session where arrays of different dtypes do not mix."""
    arrays = device_numbers(sampler.config())
    token_B, _, info, _ = jax.eval_shape(
        sampler.step, keys(0), sampler.init(sampler.config(), NOTHING, encode), random_context(5), arrays
    )
    assert token_B.dtype == jnp.int32
    assert [values_B.dtype for values_B in info] == list(DTYPES)


@every_sampler
def test_a_row_alone_is_the_row_in_a_batch(sampler: Sampler) -> None:
    """The same token by the same decisions. XLA may sum a single row in another order than a row of many, so
    that log-probabilities may differ in the last bits."""
    context, key_B = random_context(6), keys(6)
    token_B, info = run(sampler, context, seed=6)
    for row in range(0, BATCH, 4):
        one = slice(row, row + 1)
        alone = STEPS[sampler.name](
            key_B[one],
            sampler.init(sampler.config(), NOTHING[:1], encode),
            rows(context, one),
            sampler.config(),
        )
        assert int(alone[0][0]) == token_B[row]
        for name, value_B, expected_B in zip(SampleInfo._fields, alone[2], rows(info, one), strict=True):
            if expected_B.dtype == np.float32:
                np.testing.assert_allclose(value_B, expected_B, rtol=2e-6, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(value_B, expected_B, err_msg=name)


@every_sampler
def test_neighbours_change_no_bit_of_a_row_even_when_they_are_nan(sampler: Sampler) -> None:
    context = random_context(7)
    others = np.arange(BATCH) % 3 != 1
    sick = jax.tree.map(
        lambda leaf: np.where(others.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, np.nan), context
    )
    assert_trees_equal(rows(run(sampler, sick), others), rows(run(sampler, context), others))


@every_sampler
def test_all_randomness_comes_from_the_rows_key(sampler: Sampler) -> None:
    """The same key repeats the step; over flat rows, to which mirostat and greedy-threshold would be greedy if they
    were asked to, another key gives other tokens, except to `greedy`."""
    context = random_context(8)._replace(logits_BV=np.zeros((BATCH, VOCABULARY), np.float32))
    bold = {"mirostat_tau": 50.0, "greedy_threshold": 0.0}
    cfg = sampler.config(**{name: value for name, value in bold.items() if hasattr(sampler.config, name)})
    first, again, other = (run(sampler, context, cfg, seed) for seed in (0, 0, 1))
    assert_trees_equal(first, again)
    assert np.array_equal(first[0], other[0]) == (sampler.name == "greedy")


# ----- the account is true ----------------------------------------------------------------------------------


@every_sampler
def test_the_log_probability_is_the_models_own(sampler: Sampler) -> None:
    context = random_context(9)
    token_B, info = run(sampler, context)
    for logits_V, token, logprob in zip(context.logits_BV, token_B, info.logprob_B, strict=True):
        expected = np.log(reference.softmax(logits_V.astype(np.float64)))[token]
        assert logprob == pytest.approx(expected, rel=1e-5, abs=2e-6)


@every_sampler
@pytest.mark.parametrize("seed", [10, 11])
def test_kept_count_and_draw_probability_are_those_of_the_candidates(sampler: Sampler, seed: int) -> None:
    context = random_context(seed)
    token_B, info, filtered_BV = run_whole(
        sampler, context, random_config(np.random.default_rng(seed), sampler), seed
    )
    drawn = np.flatnonzero(~info.injected_B)
    assert len(drawn) > BATCH / 3
    for row in drawn:
        assert np.isfinite(filtered_BV[row]).sum() == info.kept_B[row]
        logprob_V = np.log(reference.softmax(filtered_BV[row].astype(np.float64)).clip(1e-300))
        assert logprob_V[token_B[row]] == pytest.approx(info.draw_logprob_B[row], abs=1e-4)


@pytest.mark.parametrize("name", CHAINED)
@pytest.mark.parametrize("seed", [10, 11])
def test_recorded_settings_give_back_the_candidates(name: str, seed: int) -> None:
    """On the whole vocabulary, through the public chain and through plain sorted lists: no filter is recorded
    and not applied, or applied and not recorded."""
    context = random_context(seed)
    token_B, info, filtered_BV = run_whole(
        SAMPLERS[name], context, random_config(np.random.default_rng(seed), SAMPLERS[name]), seed
    )
    recorded = SamplingParams(info.temperature_B, info.top_p_B, info.top_k_B, info.min_p_B)
    np.testing.assert_allclose(filtered_BV, chain(context.logits_BV, recorded), rtol=1e-6)
    for row in np.flatnonzero(~info.injected_B):
        expected_V = reference.filtered(context.logits_BV[row], *(values_B[row] for values_B in recorded))
        assert np.count_nonzero(expected_V) == info.kept_B[row]
        assert np.log(expected_V[token_B[row]]) == pytest.approx(info.draw_logprob_B[row], abs=1e-3)


@every_sampler
def test_no_draw_leaves_the_support_of_its_candidates(sampler: Sampler) -> None:
    """20 draws from each of 64 rows."""
    context, drawn = random_context(12), 0
    for seed in range(20):
        token_B, info, filtered_BV = run_whole(sampler, context, seed=seed)
        chosen_B = ~info.injected_B
        assert np.isfinite(filtered_BV[chosen_B, token_B[chosen_B]]).all()
        drawn += chosen_B.sum()
    assert drawn > 20 * BATCH / 2


# ----- the baselines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("temperature", {"temperature": 1.3}),
        ("top-k", {"temperature": 1.3, "top_k": 9}),
        ("top-p", {"temperature": 1.3, "top_p": 0.7}),
        ("min-p", {"temperature": 1.3, "min_p": 0.2}),
    ],
)
def test_a_baseline_uses_its_own_filters_and_no_other(name: str, chosen: dict[str, Any]) -> None:
    own = {"temperature": "temp"}
    cfg = SAMPLERS[name].config(**{own.get(field, field): value for field, value in chosen.items()})
    context = random_context(13)
    token_B, info = run(SAMPLERS[name], context, cfg)
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": VOCABULARY, "min_p": 0.0} | chosen
    for row in range(BATCH):
        expected_V = reference.filtered(context.logits_BV[row], **chosen)
        assert info.draw_logprob_B[row] == pytest.approx(np.log(expected_V[token_B[row]]), abs=1e-4)
        assert {field: getattr(info, f"{field}_B")[row] for field in neutral} == pytest.approx(neutral)
    assert np.isnan(info.score_B).all() and not info.injected_B.any()


def test_greedy_is_argmax_and_the_first_of_equals() -> None:
    context = random_context(14)
    token_B, info = run(SAMPLERS["greedy"], context)
    np.testing.assert_array_equal(token_B, np.argmax(context.logits_BV, axis=-1))
    assert set(info.draw_logprob_B) == {0.0} and set(info.kept_B) == {1}
    flat = context._replace(logits_BV=np.zeros((BATCH, VOCABULARY), np.float32))
    assert set(run(SAMPLERS["greedy"], flat)[0]) == {0}
