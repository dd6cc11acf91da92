"""What holds of every sampler at the ends of its knobs, on awkward logits, and over many draws of one distribution."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import reference
import test_laboratory as laboratory
from every_number import EveryNumber as SamplerConfig
from scipy import stats
from test_laboratory import BATCH, CFG, LOGITS_BV, METRICS, VOCABULARY, run

from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
ENTROPIX = ("entropix", "entropix-torch", "entropix-logits")

# ----- limits -----------------------------------------------------------------------------------------------

COLD = {"temp": 0.001}
FLOW = {"low_ent_thresh": 1e9, "low_vent_thresh": 1e9}
EXPLORE = {"low_vent_thresh": 0.0, "high_vent_thresh": 0.0, "high_ent_thresh": 1e9} | {
    "lehv_interaction_strength_offset": 1.0,
    "lehv_interaction_strength_coef": 0.0,
}
UNFILTERED = {"top_p": 1.0, "min_p": 0.0, "top_k": VOCABULARY}
NO_PLACEBO = {f"placebo_{name}": 0.0 for name in SAMPLERS["placebo"].strategies}

GREEDY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(ENTROPIX, FLOW),
    "placebo": NO_PLACEBO | {"placebo_flow": 1.0},
    "greedy": {},
    "temperature": COLD,
    "top-k": {"top_k": 1},
    "top-p": {"top_p": 0.0},
    "min-p": {"min_p": 1.0},
    "typical": COLD,
    "epsilon": {"epsilon_cutoff": 1.0},
    "eta": COLD,
    "top-n-sigma": {"top_n_sigma": 0.0},
    "p-less": COLD,
    "top-h": {"top_h_alpha": 0.0},
    "dynamic-temperature": COLD | {"dynatemp_range": 0.0},
    "edt": {"edt_theta": 100.0, "edt_base": 0.001},
    "mirostat": {"mirostat_tau": 0.0},
    "xtc": COLD,
    "greedy-threshold": {"greedy_threshold": 1.0},
}
EVERYTHING: dict[str, dict[str, Any]] = {
    **dict.fromkeys(ENTROPIX, EXPLORE | UNFILTERED),
    "placebo": NO_PLACEBO | {"placebo_explore": 1.0} | EXPLORE | UNFILTERED,
    "temperature": {},
    "top-k": {"top_k": VOCABULARY},
    "top-p": {"top_p": 1.0},
    "min-p": {"min_p": 0.0},
    "typical": {"typical_p": 1.0},
    "epsilon": {"epsilon_cutoff": 0.0},
    "eta": {"eta_cutoff": 0.0},
    "top-n-sigma": {"top_n_sigma": 1000.0},
    "top-h": {"top_h_alpha": 1.0},
    "dynamic-temperature": {"dynatemp_range": 0.0},
    "edt": {"edt_theta": 0.0},
    "mirostat": {"mirostat_tau": 50.0},
    "xtc": {"xtc_probability": 0.0},
    "greedy-threshold": {"greedy_threshold": 0.0},
}
ONE_SIDED = {
    "greedy",
    "p-less",
}  # the first has no knob, the second none but the temperature: neither draws from all
SORTED = {
    "top-k",
    "placebo",
    *ENTROPIX,
}  # draw from candidates in order of logits: the same keys, other tokens


def test_every_sampler_has_its_limits() -> None:
    assert set(GREEDY) == set(SAMPLERS) == set(EVERYTHING) | ONE_SIDED


@every_sampler
def test_a_limit_reproduces_greedy(name: str) -> None:
    token_B, info, _ = run(name, dataclasses.replace(CFG, **GREEDY[name]))
    clear_B = METRICS.margin > 0.05  # a cold enough temperature is only nearly greedy
    assert clear_B.sum() > BATCH / 3
    np.testing.assert_array_equal(token_B[clear_B], LOGITS_BV.argmax(axis=1)[clear_B])
    np.testing.assert_allclose(info.draw_logprob_B[clear_B], 0, atol=1e-3)


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_limit_reproduces_the_full_distribution(name: str) -> None:
    """And with the same keys the same tokens as plain temperature, where both draw with the row's own key."""
    token_B, info, p_BV = run(name, dataclasses.replace(CFG, **EVERYTHING[name]))
    assert set(info.kept_B) == {VOCABULARY}
    np.testing.assert_allclose(p_BV, [reference.softmax(row) for row in LOGITS_BV.astype(float)], rtol=1e-4)
    if name not in SORTED:
        np.testing.assert_array_equal(token_B, run("temperature", CFG)[0])


# ----- awkward logits ---------------------------------------------------------------------------------------


def awkward(n_tokens: int) -> np.ndarray:
    """Rows with ties, signed zeros, certainty, impossible tokens, long tails, large offsets, one far below all others,
    and numbers whose squares float32 does not hold."""
    rng, token = np.random.default_rng(3), np.arange(n_tokens)
    noise = rng.normal(0, 3, n_tokens)
    zipf = -np.log(1.0 + token)
    rows = [
        *(rng.normal(0, scale, n_tokens) for scale in (0.1, 1.0, 10.0, 100.0)),
        np.full(n_tokens, 3.0),
        np.where(token == n_tokens // 2, 1e4, 0.0),
        np.where(token == n_tokens - 1, 20.0, 0.0),
        np.where(token < 2, 1e3, 0.0),
        rng.integers(0, 4, n_tokens).astype(float),
        np.where(rng.random(n_tokens) < 0.5, noise, -np.inf),
        np.where(token == n_tokens - 1, 2.0, -np.inf),
        np.where((token == 0) | (token == n_tokens - 1), 2.0, -np.inf),
        zipf,
        zipf[::-1],
        np.where(token == 0, noise - 100.0, noise),
        noise + 1e3,
        noise - 3e3,
        np.where(token % 2 == 0, -0.0, 0.0),
        np.where(token == 0, 1e30, -1e30),
        np.where(token % 2 == 0, 1e30, 3.0),
        np.where(token == n_tokens - 1, 3e38, 0.0),
    ]
    return np.array([row if np.isfinite(row).any() else noise for row in rows], np.float32)


def sorted_kept(name: str, p_V: np.ndarray, cfg: SamplerConfig) -> set[int]:
    order = np.argsort(-p_V, kind="stable")
    return {int(i) for i in order[laboratory.RULES[name][0](p_V[order], cfg)]}


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", [2, 49_152])
@pytest.mark.parametrize("name", ["epsilon", "eta", "top-n-sigma", "p-less", "top-h", "typical"])
def test_a_truncation_is_its_formula_on_awkward_logits(name: str, n_tokens: int) -> None:
    """Kept are at least the tokens that a float64 computation keeps with a knob 0.01 % stricter, and at most those that
    it keeps with one as much looser: rounding may decide about the tokens between, nothing else."""
    _, field, values = laboratory.RULES[name]
    logits_BV = awkward(n_tokens)
    for value in values if name != "p-less" else (1.0,):
        rule = jax.jit(laboratory.truncation_rule(name))
        kept_BV = np.asarray(rule(logits_BV, dataclasses.replace(CFG, **{field: value})))
        for row, logits_V in enumerate(logits_BV.astype(np.float64)):
            kept_V = kept_BV[row] & (logits_V > -np.inf)
            few_V, many_V = bounds(name, logits_V, value)
            assert kept_V.any() and not (few_V & ~kept_V).any() and not (kept_V & ~many_V).any(), (value, row)


def bounds(name: str, logits_V: np.ndarray, value: float) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens stay surely, and which perhaps, by a margin for float32 around the knob's value."""
    margin = 1e-4
    p_V = reference.softmax(logits_V)
    H = reference.entropy(p_V) * math.log(2)
    best_V = np.arange(len(p_V)) == logits_V.argmax()
    cutoff = {
        "epsilon": value,
        "eta": min(value, math.sqrt(value) * math.exp(-H)),
        "p-less": (p_V**2).sum(),
    }
    if name in cutoff:
        return p_V > cutoff[name] * (1 + margin), (p_V > cutoff[name] * (1 - margin)) | best_V
    if name == "top-n-sigma":
        below_V = logits_V - logits_V.max()
        reach = value * logits_V[np.isfinite(logits_V)].std()
        return below_V >= -reach * (1 - margin) + margin, below_V >= -reach * (1 + margin) - margin
    if name == "top-h":
        order = np.argsort(-p_V, kind="stable")
        p = p_V[order]
        mass = p.cumsum()
        prefix_H = -(p * np.log(np.where(p > 0, p, 1))).cumsum() / mass + np.log(mass)
        few_V, many_V = best_V.copy(), best_V.copy()
        few_V[order[: np.argmax(np.append(prefix_H, np.inf) > value * H * (1 - margin) - 1e-5)]] = True
        many_V[order[: np.argmax(np.append(prefix_H, np.inf) > value * H * (1 + margin) + 1e-5)]] = True
        return few_V, many_V & (p_V > 0)
    with np.errstate(divide="ignore"):
        distance_V = np.abs(np.log(p_V) + H)
    order = np.argsort(distance_V, kind="stable")
    mass = p_V[order].cumsum()
    last = [min(np.searchsorted(mass, value + slack), len(order) - 1) for slack in (-1e-5, 1e-5)]
    slack = 1e-4 * (1 + H + distance_V[order[0]])
    return distance_V <= distance_V[order[last[0]]] - slack, distance_V <= distance_V[order[last[1]]] + slack


@every_sampler
@pytest.mark.parametrize("temp", [0.001, 1.0, 100.0])
def test_awkward_logits_and_temperatures_leave_a_possible_token_and_true_numbers(
    name: str, temp: float
) -> None:
    rows_BV = np.resize(awkward(VOCABULARY), (BATCH, VOCABULARY))
    cfg = dataclasses.replace(CFG, temp=temp, clarifier="")
    H_B = np.array(
        [reference.entropy(reference.softmax(row)) for row in rows_BV.astype(np.float64)], np.float32
    )
    token_B, info, p_BV = run(name, cfg, rows_BV, metrics=METRICS._replace(logits_entropy=H_B))
    assert np.isfinite(rows_BV[range(BATCH), token_B]).all()
    assert (info.kept_B >= 1).all()
    drawn_p_B = p_BV[range(BATCH), token_B]
    assert (drawn_p_B > 0).all()
    np.testing.assert_allclose(np.exp(info.draw_logprob_B), drawn_p_B, rtol=0.01)
    for values_B in (info.temperature_B, info.logprob_B, info.draw_logprob_B):
        assert np.isfinite(values_B).all()


# ----- draws ------------------------------------------------------------------------------------------------

SEEDS = 16
LOGITS_V = LOGITS_BV[np.argmin(np.abs(METRICS.logits_entropy - 3.5))].astype(np.float64)
H_BITS = reference.metrics(LOGITS_V, np.zeros((1, 1, 1)))["logits_entropy"]
KNOBS: dict[str, Any] = {"temp": 0.9, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "clarifier": ""} | {
    "typical_p": 0.6,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.05,
    "xtc_threshold": 0.05,
    "greedy_threshold": 0.0,
}


def truncated(name: str) -> Callable[[SamplerConfig], np.ndarray]:
    def expected(cfg: SamplerConfig) -> np.ndarray:
        p_V = reference.softmax(LOGITS_V / cfg.temp)
        kept = [*sorted_kept(name, p_V, cfg)]
        return np.where(np.isin(np.arange(VOCABULARY), kept), p_V, 0) / p_V[kept].sum()

    return expected


def xtc(cfg: SamplerConfig) -> np.ndarray:
    p_V = reference.softmax(LOGITS_V / cfg.temp)
    return (p_V + laboratory.without_top_choices(p_V, cfg.xtc_threshold)) / 2


def mirostat(cfg: SamplerConfig) -> np.ndarray:
    """Of the first step, when mu is twice tau."""
    p_V = reference.softmax(LOGITS_V / cfg.temp)
    kept_V = np.where(-np.log2(p_V) <= 2 * cfg.mirostat_tau, p_V, 0)
    return kept_V / kept_V.sum()


def explore(attention: float) -> Callable[[SamplerConfig], np.ndarray]:
    """The strategy's row of the table, with every metric of attention at this value."""

    def expected(cfg: SamplerConfig) -> np.ndarray:
        temperature = min(1.5, cfg.temp * (1.2 + 0.3 * attention))
        top_k = max(5, int(cfg.top_k * (1 + 0.5 * (1 - attention))))
        return reference.filtered(LOGITS_V, temperature, cfg.top_p, top_k, cfg.min_p)

    return expected


def placebo(cfg: SamplerConfig) -> np.ndarray:
    """Every strategy, with every metric at 0, as often as its weight says."""
    after = (cfg.top_p, cfg.top_k, cfg.min_p)
    one_draw_V = reference.filtered(LOGITS_V, cfg.temp, *after)
    order = np.argsort(LOGITS_V)
    best_V = np.zeros(VOCABULARY)
    best_V[order] = np.diff(one_draw_V[order].cumsum() ** 5, prepend=0)  # the likeliest of five draws
    strategies = {
        "flow": np.eye(VOCABULARY)[LOGITS_V.argmax()],
        "clarify": reference.filtered(LOGITS_V, cfg.temp * 1.3, *after),
        "explore": explore(0.0)(cfg),
        "resample": reference.filtered(LOGITS_V, max(2.0, cfg.temp * 2.0), *after),
        "adaptive": best_V,
    }
    weight = {name: getattr(cfg, f"placebo_{name}") for name in strategies}
    return sum(weight[name] * p_V for name, p_V in strategies.items()) / sum(weight.values())


def filtered(*names: str) -> Callable[[SamplerConfig], np.ndarray]:
    return lambda cfg: reference.filtered(LOGITS_V, cfg.temp, **{name: getattr(cfg, name) for name in names})


def heated(rule: Callable[[SamplerConfig, float], float]) -> Callable[[SamplerConfig], np.ndarray]:
    """The whole distribution at a temperature that depends on the entropy in nats."""
    return lambda cfg: reference.softmax(LOGITS_V / rule(cfg, H_BITS * math.log(2)))


ANALYTIC: dict[str, Callable[[SamplerConfig], np.ndarray]] = {
    "entropix": explore(1.0),
    "entropix-torch": explore(1.0),
    "entropix-logits": explore(0.0),
    "placebo": placebo,
    "greedy": lambda cfg: np.eye(VOCABULARY)[LOGITS_V.argmax()],
    "temperature": filtered(),
    "top-k": filtered("top_k"),
    "top-p": filtered("top_p"),
    "min-p": filtered("min_p"),
    **{name: truncated(name) for name in laboratory.RULES},
    "dynamic-temperature": heated(lambda cfg, H: cfg.temp - 0.5 + H / math.log(VOCABULARY)),
    "edt": heated(lambda cfg, H: cfg.temp * 0.8 ** (1 / H)),
    "mirostat": mirostat,
    "xtc": xtc,
    "greedy-threshold": filtered(),
}


@every_sampler
def test_draws_follow_the_analytic_distribution(name: str) -> None:
    """4,096 draws from one distribution of 3.5 bits; a chi-square test that a right sampler fails once in 1,000 seeds.

    Tokens expected fewer than five times count together. The varentropy is set so that entropix explores; its other
    strategies have their own test.
    """
    cfg = dataclasses.replace(CFG, **KNOBS)
    logits_BV = np.tile(LOGITS_V.astype(np.float32), (BATCH, 1))
    ones_B = np.ones(BATCH, np.float32)
    metrics = Metrics(*(ones_B for _ in Metrics._fields))
    metrics = metrics._replace(logits_entropy=np.float32(H_BITS) * ones_B, logits_varentropy=7 * ones_B)
    token_N = np.concatenate([run(name, cfg, logits_BV, seed, metrics)[0] for seed in range(SEEDS)])
    count_V = np.bincount(token_N, minlength=VOCABULARY)
    expected_V = ANALYTIC[name](cfg) * len(token_N)
    assert expected_V.sum() == pytest.approx(len(token_N))
    assert not count_V[expected_V == 0].any()
    often_V = expected_V >= 5
    count = np.append(count_V[often_V], count_V[~often_V].sum())
    expected = np.append(expected_V[often_V], expected_V[~often_V].sum())
    present = expected > 0
    if present.sum() > 1:
        assert stats.chisquare(count[present], expected[present]).pvalue > 1e-3
    assert present.sum() > 1 or name == "greedy"
