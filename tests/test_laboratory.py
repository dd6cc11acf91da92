"""The truncations and adaptive rules, each against its published formula in plain float64 numpy."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import reference
from every_number import EveryNumber as SamplerConfig
from scipy import stats
from stepping import STEPS, first_step

from entropix import config, samplers
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS, SampleInfo, SamplerInputs, truncation
from entropix.samplers.base import MIN_TEMPERATURE

VOCABULARY, BATCH = 80, 256
RNG = np.random.default_rng(0)
CFG = SamplerConfig(temp=1.0)
LOGITS_BV = (RNG.normal(0, 1, (BATCH, VOCABULARY)) * RNG.uniform(0.1, 5, (BATCH, 1))).astype(np.float32)


def metrics_of(logits_BV: np.ndarray) -> Metrics:
    """The true ones of the logits, and 1 for attention's."""
    values = []
    for logits_V in logits_BV:
        values.append(reference.metrics(logits_V.astype(np.float64), np.zeros((1, 1, 1))))
    ones_B = np.ones(len(logits_BV))
    true = ("logits_entropy", "logits_varentropy", "top_prob", "margin")
    columns = {name: [row[name] for row in values] if name in true else ones_B for name in Metrics._fields}
    return Metrics(**{name: np.asarray(column_B, np.float32) for name, column_B in columns.items()})


METRICS = metrics_of(LOGITS_BV)


def run(
    name: str, cfg: SamplerConfig, logits_BV: Any = LOGITS_BV, seed: int = 0, metrics: Metrics = METRICS
) -> tuple[np.ndarray, SampleInfo, np.ndarray]:
    """(token_B, info, the distribution each token was drawn from) of a first step."""
    seen = SamplerInputs(logits_BV, metrics)
    token_B, info, drawn_BV = first_step(name, seen, cfg, jax.random.key(seed))
    return token_B, info, np.array([reference.softmax(row.astype(np.float64)) for row in drawn_BV])


# ----- truncations: (distribution p, sorted downwards, config) -> how many or which tokens stay --------------


def entropy(p: np.ndarray) -> float:
    """In nats."""
    return -sum(x * math.log(x) for x in p if x > 0)


def typical(p: np.ndarray, cfg: SamplerConfig) -> list[int]:
    kept, mass, H = [], 0.0, entropy(p)
    for i in sorted(range(len(p)), key=lambda i: abs(-math.log(p[i]) - H)):
        kept.append(i)
        mass += p[i]
        if mass >= cfg.typical_p:
            break
    return kept


def epsilon(p: np.ndarray, cfg: SamplerConfig) -> list[int]:
    return [i for i in range(len(p)) if p[i] > cfg.epsilon_cutoff or i == 0]


def eta(p: np.ndarray, cfg: SamplerConfig) -> list[int]:
    cutoff = min(cfg.eta_cutoff, math.sqrt(cfg.eta_cutoff) * math.exp(-entropy(p)))
    return [i for i in range(len(p)) if p[i] > cutoff or i == 0]


def top_n_sigma(p: np.ndarray, cfg: SamplerConfig) -> list[int]:
    logits = np.log(p)
    return [i for i in range(len(p)) if logits[i] >= logits[0] - cfg.top_n_sigma * logits.std()]


def p_less(p: np.ndarray, cfg: SamplerConfig) -> list[int]:
    return [i for i in range(len(p)) if p[i] >= sum(x * x for x in p)]


def top_h(p: np.ndarray, cfg: SamplerConfig) -> list[int]:
    kept = [0]
    for i in range(1, len(p)):
        if entropy(p[: i + 1] / p[: i + 1].sum()) > cfg.top_h_alpha * entropy(p):
            break
        kept.append(i)
    return kept


RULES = {
    "typical": (typical, "typical_p", (0.05, 0.2, 0.6, 0.95)),
    "epsilon": (epsilon, "epsilon_cutoff", (0.0003, 0.01, 0.2)),
    "eta": (eta, "eta_cutoff", (0.0003, 0.002, 0.1)),
    "top-n-sigma": (top_n_sigma, "top_n_sigma", (0.3, 1.0, 2.0)),
    "p-less": (p_less, "temp", (0.5, 1.0, 2.0)),
    "top-h": (top_h, "top_h_alpha", (0.1, 0.4, 0.9)),
}


def truncation_rule(name: str) -> Callable[[Any, SamplerConfig], Any]:
    """The package's own function of logits."""
    return getattr(truncation, name.replace("-", "_"))


CASES = [(name, value) for name, (_, _, values) in RULES.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
@pytest.mark.parametrize("temp", [1.0, 1.7])
def test_a_truncation_keeps_what_its_published_formula_keeps(name: str, value: float, temp: float) -> None:
    rule, field, _ = RULES[name]
    cfg = dataclasses.replace(CFG, **({"temp": temp} | {field: value}))
    token_B, info, p_BV = run(name, cfg)
    for row, logits_V in enumerate(LOGITS_BV.astype(np.float64)):
        full_V = reference.softmax(logits_V / np.float64(np.float32(cfg.temp)))
        order = np.argsort(-full_V, kind="stable")
        kept = order[rule(full_V[order], cfg)]
        assert set(np.flatnonzero(p_BV[row])) == set(kept), row
        np.testing.assert_allclose(p_BV[row][kept], full_V[kept] / full_V[kept].sum(), rtol=2e-5)
        assert info.kept_B[row] == len(kept)
        assert math.exp(info.draw_logprob_B[row]) == pytest.approx(p_BV[row][token_B[row]], rel=1e-4)
    np.testing.assert_allclose(info.temperature_B, cfg.temp)


@pytest.mark.parametrize("name", ["p-less", "typical", "top-n-sigma"])
def test_of_equal_tokens_all_stay(name: str) -> None:
    """p = Σ p² exactly, all surprises are the entropy, and σ is 0."""
    cfg = dataclasses.replace(CFG, typical_p=0.3)
    assert set(run(name, cfg, np.full_like(LOGITS_BV, 3.0))[1].kept_B) == {VOCABULARY}


def test_equally_typical_tokens_stay_together_however_likely_they_are() -> None:
    """Surprises of 1, 3, 2 and 5 bits, with an entropy of 2: the first two are as far from it, one on each side."""
    p_V = np.array([1 / 2, 1 / 8, 1 / 4, *[1 / 32] * 4, *[1e-30] * (VOCABULARY - 7)])
    logits_BV = np.tile(np.log(p_V).astype(np.float32), (BATCH, 1))
    for mass, kept in ((0.2, {2}), (0.3, {0, 1, 2}), (0.8, {0, 1, 2}), (0.9, {*range(7)})):
        _, _, p_BV = run("typical", dataclasses.replace(CFG, typical_p=mass), logits_BV)
        assert set(np.flatnonzero(p_BV[0])) == kept


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.7])
def test_top_h_counts_equal_tokens_one_by_one(alpha: float) -> None:
    """Of V equal tokens the entropy is log V, and log k <= α log V for k up to V^α; the first ones stay. Where five
    stand out, they come first."""
    _, info, p_BV = run("top-h", dataclasses.replace(CFG, top_h_alpha=alpha), np.zeros_like(LOGITS_BV))
    expected = math.floor(VOCABULARY**alpha)
    assert set(info.kept_B) == {expected}
    assert set(np.flatnonzero(p_BV[0])) == set(range(expected))
    logits_BV = np.tile(np.where(np.arange(VOCABULARY) % 16 == 3, 1.0, 0.0).astype(np.float32), (BATCH, 1))
    _, _, p_BV = run("top-h", dataclasses.replace(CFG, top_h_alpha=alpha), logits_BV)
    full_V = reference.softmax(logits_BV[0].astype(np.float64))
    order = np.argsort(-full_V, kind="stable")
    kept = top_h(full_V[order], dataclasses.replace(CFG, top_h_alpha=alpha))
    assert set(np.flatnonzero(p_BV[0])) == set(order[kept])


# ----- temperatures -----------------------------------------------------------------------------------------


def assert_temperature(name: str, cfg: SamplerConfig, expected: Callable[[float], float]) -> None:
    """`expected` maps the entropy in nats to the temperature; also over entropies that no logits here have."""
    entropy_B = np.concatenate([[0.0, math.log2(VOCABULARY)], np.linspace(0.01, 6, BATCH - 2)])
    metrics = METRICS._replace(logits_entropy=entropy_B.astype(np.float32))
    _, info, p_BV = run(name, cfg, metrics=metrics)
    for row, bits in enumerate(entropy_B):
        temperature = max(expected(bits * math.log(2)), MIN_TEMPERATURE)
        assert info.temperature_B[row] == pytest.approx(temperature, rel=1e-4)
        assert info.kept_B[row] == VOCABULARY
        expected_V = reference.softmax(
            LOGITS_BV[row].astype(np.float64) / np.float64(info.temperature_B[row])
        )
        np.testing.assert_allclose(p_BV[row], expected_V, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("spread", "exponent"), [(0.5, 1.0), (0.9, 2.5), (3.0, 0.3)])
def test_dynamic_temperature_runs_from_min_to_max_with_the_entropy(spread: float, exponent: float) -> None:
    cfg = dataclasses.replace(CFG, temp=1.2, dynatemp_range=spread, dynatemp_exponent=exponent)
    low, high = max(1.2 - spread, MIN_TEMPERATURE), 1.2 + spread
    assert_temperature(
        "dynamic-temperature", cfg, lambda H: low + (high - low) * (H / math.log(VOCABULARY)) ** exponent
    )


@pytest.mark.parametrize(("temp", "theta"), [(1.0, 1.0), (0.6, 0.1), (1.5, 4.0)])
def test_edt_cools_as_published(temp: float, theta: float) -> None:
    cfg = dataclasses.replace(CFG, temp=temp, edt_theta=theta)
    assert_temperature("edt", cfg, lambda H: temp * 0.8 ** (theta / H) if H > 0 else 0.0)


# ----- greedy-threshold -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.8])
def test_greedy_threshold_is_greedy_exactly_where_the_model_is_unsure(threshold: float) -> None:
    _, info, p_BV = run("greedy-threshold", dataclasses.replace(CFG, greedy_threshold=threshold))
    for row, logits_V in enumerate(LOGITS_BV.astype(np.float64)):
        full_V = reference.softmax(logits_V)
        greedy = full_V.max() < threshold
        assert (
            SAMPLERS["greedy-threshold"].strategies[info.strategy_B[row]] == ("sample", "greedy")[int(greedy)]
        )
        expected_V = np.eye(VOCABULARY)[full_V.argmax()] if greedy else full_V
        np.testing.assert_allclose(p_BV[row], expected_V, rtol=1e-4)
    assert 0 < info.strategy_B.sum() < BATCH


# ----- xtc --------------------------------------------------------------------------------------------------


def without_top_choices(p: np.ndarray, threshold: float) -> np.ndarray:
    """From the likeliest down, all that reach the threshold go, but the last of them."""
    above = [i for i in np.argsort(-p, kind="stable") if p[i] >= threshold]
    out = p.copy()
    out[above[:-1]] = 0
    return out / out.sum()


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.4])
def test_xtc_removes_all_top_choices_but_the_last(threshold: float) -> None:
    cfg = dataclasses.replace(CFG, xtc_threshold=threshold, xtc_probability=1.0)
    _, info, p_BV = run("xtc", cfg)
    for row, logits_V in enumerate(LOGITS_BV.astype(np.float64)):
        full_V = reference.softmax(logits_V)
        np.testing.assert_allclose(p_BV[row], without_top_choices(full_V, threshold), rtol=1e-4)
        assert info.strategy_B[row] == ((full_V >= threshold).sum() > 1)


def test_xtc_draws_from_the_mixture_of_both_distributions() -> None:
    """20 x 256 draws of one row; a chi-square test that a right sampler fails once in 1000 seeds."""
    p_V = np.array([0.4, 0.25, 0.15, 0.08, 0.07, 0.05])
    logits_BV = np.full((BATCH, VOCABULARY), -1e4, np.float32)
    logits_BV[:, :6] = np.log(p_V)
    cfg = dataclasses.replace(CFG, xtc_threshold=0.1, xtc_probability=0.3)
    runs = [run("xtc", cfg, logits_BV, seed) for seed in range(20)]
    counts = np.bincount(np.concatenate([token_B for token_B, _, _ in runs]), minlength=6)
    expected = 0.7 * p_V + 0.3 * without_top_choices(p_V, 0.1)
    assert stats.chisquare(counts, expected * counts.sum()).pvalue > 1e-3
    coins = sum(int(info.strategy_B.sum()) for _, info, _ in runs)
    assert stats.binomtest(coins, 20 * BATCH, 0.3).pvalue > 1e-3


# ----- mirostat ---------------------------------------------------------------------------------------------


def test_mirostat_follows_the_published_recursion() -> None:
    """20 steps of 256 rows: mu, support and probabilities, from the tokens that were drawn."""
    cfg = dataclasses.replace(CFG, mirostat_tau=2.0, mirostat_eta=0.2, temp=1.3)
    state = SAMPLERS["mirostat"].init(cfg, [[]] * BATCH, list)
    mu_B = np.full(BATCH, 2 * 2.0)
    surprise_BV = np.array([-np.log2(reference.softmax(row / 1.3)) for row in LOGITS_BV.astype(np.float64)])
    for t in range(20):
        np.testing.assert_allclose(state.mu_B, mu_B, rtol=1e-4, atol=1e-4)
        mu_B = np.asarray(state.mu_B, np.float64)  # rounding does not pile up
        key_B = jax.random.split(jax.random.key(t), BATCH)
        token_B, state, info, candidates = STEPS["mirostat"](
            key_B, state, SamplerInputs(LOGITS_BV, METRICS), cfg
        )
        kept_BV = surprise_BV <= mu_B[:, None]
        kept_BV[range(BATCH), surprise_BV.argmin(axis=1)] = True
        np.testing.assert_array_equal(np.isfinite(candidates.logits_BC), kept_BV)
        p_BV = np.where(kept_BV, 2**-surprise_BV, 0)
        p_BV /= p_BV.sum(axis=1, keepdims=True)
        drawn_B = np.asarray(token_B)
        np.testing.assert_allclose(np.exp(info.draw_logprob_B), p_BV[range(BATCH), drawn_B], rtol=1e-4)
        mu_B = mu_B - 0.2 * (surprise_BV[range(BATCH), drawn_B] - 2.0)


@pytest.mark.parametrize("tau", [3.0, 4.0])
def test_mirostats_surprise_converges_to_tau(tau: float) -> None:
    """On a fixed distribution of 5 bits, p of rank r in proportion to 1/r.

    The mean error over some steps is (first mu - last mu) / (eta · steps), and mu moves by less than 4 bits: whatever
    the draws, a row is within 0.1 bits over 400 steps. Over 32 rows the mean is nearer.
    """
    logits_BV = np.tile(-np.log(np.arange(1, VOCABULARY + 1)).astype(np.float32), (32, 1))
    metrics = Metrics(*(values_B[:32] for values_B in METRICS))
    cfg = dataclasses.replace(CFG, mirostat_tau=tau, mirostat_eta=0.1)
    sampler = SAMPLERS["mirostat"]

    def step(state: Any, t: Any) -> Any:
        key_B = jax.random.split(jax.random.fold_in(jax.random.key(7), t), 32)
        _, state, info, _ = sampler.step(key_B, state, SamplerInputs(logits_BV, metrics), cfg)
        return state, -info.logprob_B / math.log(2)

    state = sampler.init(cfg, [[]] * 32, list)
    _, surprise_TB = jax.jit(lambda state: jax.lax.scan(step, state, np.arange(500)))(state)
    assert np.asarray(surprise_TB)[100:].mean() == pytest.approx(tau, abs=0.03)


# ----- what entropix is compared with -----------------------------------------------------------------------


def test_entropix_logits_is_entropix_blind_to_attention() -> None:
    """Any metrics of attention give what zeros give `entropix`; entropy and varentropy still count."""
    zeros_B = np.zeros(BATCH, np.float32)
    attention = ("attn_entropy", "attn_varentropy", "agreement", "interaction_strength")
    blind = METRICS._replace(**dict.fromkeys(attention, zeros_B))
    cfg = dataclasses.replace(CFG, clarifier="")
    expected = run("entropix", cfg, metrics=blind)
    for seed in range(2):
        noise = {
            name: np.random.default_rng(seed).uniform(0, 3, BATCH).astype(np.float32) for name in attention
        }
        actual = run("entropix-logits", cfg, metrics=METRICS._replace(**noise))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert len(set(expected[1].strategy_B)) >= 3


def test_the_placebo_draws_its_strategies_as_often_as_it_was_told() -> None:
    """16 x 256 choices; a chi-square test that a right sampler fails once in 1000 seeds. The weights are relative."""
    weights = {"flow": 0.1, "clarify": 0.2, "explore": 0.3, "resample": 0.05, "adaptive": 0.15}
    cfg = dataclasses.replace(
        CFG, clarifier="", **{f"placebo_{name}": weight for name, weight in weights.items()}
    )
    chosen = np.concatenate([run("placebo", cfg, seed=seed)[1].strategy_B for seed in range(16)])
    expected = np.array([weights[name] for name in SAMPLERS["placebo"].strategies]) / 0.8 * len(chosen)
    assert stats.chisquare(np.bincount(chosen, minlength=5), expected).pvalue > 1e-3


def test_the_placebo_is_blind_to_the_metrics() -> None:
    cfg = samplers.resolve("placebo").numbers
    other = Metrics(*(np.full(BATCH, 7.0, np.float32) for _ in Metrics._fields))
    jax.tree.map(np.testing.assert_array_equal, run("placebo", cfg), run("placebo", cfg, metrics=other))


def test_a_placebo_does_what_entropix_does_in_that_strategy() -> None:
    """With every metric 0, which is `flow` for entropix."""
    nothing = Metrics(*(np.zeros(BATCH, np.float32) for _ in Metrics._fields))
    flow = {f"placebo_{name}": float(name == "flow") for name in SAMPLERS["placebo"].strategies}
    cfg = dataclasses.replace(CFG, **flow)
    jax.tree.map(np.testing.assert_array_equal, run("placebo", cfg), run("entropix", cfg, metrics=nothing))


def test_a_placebo_without_any_frequency_is_refused() -> None:
    none = {f"placebo_{name}": 0.0 for name in SAMPLERS["placebo"].strategies}
    with pytest.raises(
        ValueError, match=r"one of placebo_flow, .*placebo_adaptive must be above 0, got 0 for all"
    ):
        config.check(SAMPLERS["placebo"].config(**none))
