"""Every metric in closed form, against plain loops, and isolated from what it must not depend on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax import Array

from entropix import metrics, numerics
from entropix.metrics import AttentionScores, Metrics

measure = jax.jit(metrics.measure)


def of_logits(logits_BV: object) -> Metrics:
    """Metrics of one step of these rows, `[B]` each, with attention that sees a single key.

    The batch is filled up with rows of zeros and the vocabulary with removed tokens: one program serves all.
    """
    batch, vocabulary = np.shape(logits_BV)
    padded_BTV = np.zeros((512, 1, 1024), np.float32)
    padded_BTV[:batch, 0] = -np.inf
    padded_BTV[:batch, 0, :vocabulary] = logits_BV
    single = AttentionScores(
        scores_LBNTS=np.ones((1, 512, 1, 1, 1), np.float32),
        visible_BTS=np.ones((512, 1, 1), bool),
        position_BS=np.zeros((512, 1), np.int32),
    )
    return jax.tree.map(lambda metric_BT: np.asarray(metric_BT)[:batch, 0], measure(padded_BTV, single))


def of_scores(scores_LNS: object) -> dict[str, float]:
    """Metrics of one row whose only query sees these keys, at positions 0, 1, 2, …, before empty slots."""
    n_layers, n_heads, n = np.shape(scores_LNS)
    capacity = max(64, n)
    scores_LBNTS = np.full((n_layers, 1, n_heads, 1, capacity), 3.0, np.float32)
    scores_LBNTS[:, 0, :, 0, :n] = scores_LNS
    slot_S = np.arange(capacity, dtype=np.int32)
    attention = AttentionScores(scores_LBNTS, visible_BTS=slot_S[None, None] < n, position_BS=slot_S[None])
    measured = measure(np.zeros((1, 1, 2), np.float32), attention)
    return {name: float(metric_BT[0, 0]) for name, metric_BT in measured._asdict().items()}


def logs(probabilities: object) -> np.ndarray:
    """Natural logarithms, up to a constant that depends on the row: what scores and logits are."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, np.float64)) + 0.7


def close(value: float, abs: float = 2e-6) -> object:
    return pytest.approx(value, rel=2e-5, abs=abs)


# ----- of the logits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 8, 1000])
def test_uniform_over_k_tokens_has_log2_k_bits_and_no_varentropy(k: int) -> None:
    logits_BV = np.full((1, 1024), -np.inf)
    logits_BV[0, :k] = 3.0
    measured = of_logits(logits_BV)
    assert float(measured.logits_entropy[0]) == close(math.log2(k))
    assert float(measured.logits_varentropy[0]) == close(0.0, abs=1e-9)
    assert float(measured.top_prob[0]) == close(1 / k)
    assert float(measured.margin[0]) == close(1.0 if k == 1 else 0.0)


def test_certainty_has_no_entropy_even_when_probabilities_underflow() -> None:
    """exp(-200) is 0 in float32: 0·log 0 counts as 0, not as NaN."""
    measured = of_logits([[0.0, -200.0, -1e30, -np.inf]])
    assert float(measured.logits_entropy[0]) == 0.0
    assert float(measured.logits_varentropy[0]) == 0.0
    assert float(measured.top_prob[0]) == float(measured.margin[0]) == 1.0


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9168, 0.99, 1e-3])
def test_two_tokens_have_the_known_entropy_and_varentropy(p: float) -> None:
    measured = of_logits([logs([p, 1 - p])])
    assert float(measured.logits_entropy[0]) == close(-p * math.log2(p) - (1 - p) * math.log2(1 - p))
    assert float(measured.logits_varentropy[0]) == close(p * (1 - p) * math.log2(p / (1 - p)) ** 2)
    assert float(measured.top_prob[0]) == close(max(p, 1 - p))
    assert float(measured.margin[0]) == close(abs(2 * p - 1))


def test_varentropy_of_two_tokens_is_at_most_0_914_square_bits() -> None:
    """At the root p = 0.9168 of (2p - 1)·ln(p/(1 - p)) = 2."""
    p = np.linspace(0.5, 1, 513)[:-1]
    varentropy_B = of_logits(logs(np.stack([p, 1 - p], axis=1))).logits_varentropy
    assert float(varentropy_B.max()) == pytest.approx(0.9142, abs=2e-5)
    assert float(p[int(varentropy_B.argmax())]) == pytest.approx(0.9168, abs=1e-3)


def test_a_three_token_case_by_hand() -> None:
    """p = 1/2, 1/4, 1/4: surprises of 1, 2 and 2 bits, so H = 1.5 and the variance is 1/4."""
    measured = of_logits([logs([0.5, 0.25, 0.25])])
    assert float(measured.logits_entropy[0]) == close(1.5)
    assert float(measured.logits_varentropy[0]) == close(0.25)
    assert float(measured.margin[0]) == close(0.25)


def test_adding_a_constant_to_the_logits_changes_nothing() -> None:
    logits_BV = np.random.default_rng(0).integers(-40, 40, (4, 50)) / 8
    plain = of_logits(logits_BV)
    for constant in (-1024.0, 0.5, 512.0):  # sums that float32 holds exactly
        for name in ("logits_entropy", "logits_varentropy", "top_prob", "margin"):
            np.testing.assert_array_equal(
                getattr(of_logits(logits_BV + constant), name), getattr(plain, name)
            )


def test_entropy_rises_with_log_temperature_by_varentropy_times_ln_2() -> None:
    """dH/d ln T = Ve·ln 2 for H in bits: ties the two definitions and their units together."""
    logits_BV = np.random.default_rng(1).normal(0, 3, (6, 40))
    step = 0.02
    hotter, colder = (of_logits(logits_BV / math.exp(sign * step)).logits_entropy for sign in (1, -1))
    slope_B = (np.asarray(hotter) - np.asarray(colder)) / (2 * step)
    np.testing.assert_allclose(slope_B, of_logits(logits_BV).logits_varentropy * math.log(2), rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("constant", [0.0, -7.3, 1e4])
def test_equal_logits_have_no_self_certainty_at_all(constant: float) -> None:
    for vocabulary in (2, 3, 1000, 49152):
        logits_BTV = jnp.full((1, 1, vocabulary), constant)
        parts = numerics.softmax_parts(logits_BTV)
        assert metrics.self_certainty(logits_BTV, parts)[0, 0] == 0.0


@pytest.mark.parametrize("height", [0.0, 1.0, 5.0, 40.0, 200.0])
def test_self_certainty_of_one_raised_logit_is_known(height: float) -> None:
    """Of V logits one is h and the others 0: ln((V - 1 + e^h)/V) - h/V, also where e^-h underflows."""
    logits_BTV = jnp.zeros((1, 1, 1024)).at[0, 0, 17].set(height)
    expected = height + math.log((1023 * math.exp(-height) + 1) / 1024) - height / 1024
    measured = metrics.self_certainty(logits_BTV, numerics.softmax_parts(logits_BTV))[0, 0]
    assert float(measured) == close(expected, abs=1e-6)


def test_self_certainty_by_hand() -> None:
    """p = 1/2, 1/4, 1/8, 1/8: -mean ln(4p) = -(ln 2 + 0 - ln 2 - ln 2)/4 = ln 2 / 4."""
    logits_BTV = jnp.asarray(logs([[[0.5, 0.25, 0.125, 0.125]]]), jnp.float32)
    measured = metrics.self_certainty(logits_BTV, numerics.softmax_parts(logits_BTV))[0, 0]
    assert float(measured) == close(math.log(2) / 4)


def test_what_is_no_token_does_not_count_in_self_certainty_and_a_huge_negative_logit_does() -> None:
    two = [1.0, 2.0]
    padded = of_logits([two]).self_certainty[0]  # the helper adds 1022 logits of -inf
    alone_BTV = jnp.asarray([[two]])
    assert padded == metrics.self_certainty(alone_BTV, numerics.softmax_parts(alone_BTV))[0, 0]
    logits_BTV = jnp.zeros((1, 1, 8)).at[0, 0, 3].set(-1e30)
    measured = metrics.self_certainty(logits_BTV, numerics.softmax_parts(logits_BTV))[0, 0]
    assert float(measured) == pytest.approx(1e30 / 8)


# ----- of the attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_heads_that_look_everywhere_equally(n: int) -> None:
    measured = of_scores(np.full((2, 3, n), -1.5))
    assert measured["attn_entropy"] == close(math.log2(n))
    assert measured["attn_varentropy"] == close(0.0, abs=1e-9)
    assert measured["agreement"] == close(0.0, abs=1e-7)
    assert measured["interaction_strength"] == close(1.5)
    assert measured["attn_entropy_normalized"] == close(1.0 if n > 1 else 0.0)
    assert measured["head_agreement"] == close(1.0)
    assert measured["previous_token_attention"] == close(1 / n if n > 1 else 0.0)


def test_a_single_visible_key_is_no_uncertainty() -> None:
    """At the first position everything attends to itself; normalised entropy must not divide by log2 1."""
    measured = of_scores([[[4.0], [-2.0]]])
    assert measured["interaction_strength"] == close(3.0)
    assert measured["head_agreement"] == 1.0
    zero = {
        "attn_entropy",
        "attn_varentropy",
        "agreement",
        "attn_entropy_normalized",
        "previous_token_attention",
    }
    assert {name: measured[name] for name in zero} == dict.fromkeys(zero, 0.0)


def test_varentropy_is_the_variance_across_heads_averaged_over_layers() -> None:
    """Layer 0: heads of 0, 1 and 2 bits, so a population variance of 2/3; layer 1: equal heads, 0. Over an
    axis of size one, or over layers and heads together, it would be another number."""
    one, two, four = [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4
    measured = of_scores(logs([[one, two, four], [four, four, four]]).clip(-200))
    assert measured["attn_entropy"] == close((0 + 1 + 2 + 3 * 2) / 6)
    assert measured["attn_varentropy"] == close((2 / 3 + 0) / 2)
    assert measured["attn_entropy_normalized"] == close(1.5 / 2)


def test_agreement_is_the_mean_deviation_from_the_mean_head() -> None:
    """Two heads on different keys of four: both are 0.5 away from their mean on two keys, 0 on the others."""
    opposed = logs([[[1, 0, 0, 0], [0, 1, 0, 0]]]).clip(-200)
    assert of_scores(opposed)["agreement"] == close((2 * 2 * 0.5) / (2 * 4))
    assert of_scores(np.concatenate([opposed, np.zeros((1, 2, 4))]))["agreement"] == close(0.25 / 2)
    assert of_scores(np.repeat(opposed[:, :1], 2, axis=1))["agreement"] == close(0.0)


def test_head_agreement_is_one_for_equal_heads_and_zero_for_disjoint_ones() -> None:
    disjoint = np.where(np.eye(4), 200.0, 0.0)[None]
    assert of_scores(disjoint)["head_agreement"] == close(0.0, abs=1e-6)
    assert of_scores(np.repeat(disjoint[:, :1], 4, axis=1))["head_agreement"] == close(1.0)
    half = np.concatenate([disjoint, np.zeros((1, 4, 4))])
    assert of_scores(half)["head_agreement"] == close(0.5)


def test_equal_heads_agree_entirely_over_thousands_of_keys() -> None:
    """A difference of two large sums: a running float32 sum would lose four digits of it."""
    assert of_scores(np.zeros((1, 8, 8007)))["head_agreement"] == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("n", [6, 11, 14, 17])
def test_normalized_attention_entropy_is_never_above_one(n: int) -> None:
    assert of_scores(np.zeros((2, 3, n)))["attn_entropy_normalized"] <= 1


def test_equally_likely_tokens_have_a_margin_of_plain_zero() -> None:
    margin = of_logits([[0.0, 0.0, -1.0]]).margin[0]
    assert margin == 0 and not np.signbit(margin)


def test_head_agreement_by_hand() -> None:
    """Heads (1, 0) and (1/2, 1/2): the mean (3/4, 1/4) has 0.81128 bits, the heads 0.5 on average."""
    measured = of_scores(logs([[[1, 0], [0.5, 0.5]]]).clip(-200))
    assert measured["head_agreement"] == close(1 - (0.811278 - 0.5) / 1)


def test_a_single_head_always_agrees_with_itself() -> None:
    measured = of_scores(np.random.default_rng(2).normal(size=(3, 1, 7)))
    assert measured["attn_varentropy"] == measured["agreement"] == 0.0
    assert measured["head_agreement"] == close(1.0)


def test_interaction_strength_is_the_mean_absolute_score_of_all_layers() -> None:
    """Zero is a score like any other, not a sign of an empty slot."""
    scores_LNS = np.array([[[1.0, -2.0, 0.0], [0.0, 0.0, 3.0]], [[-6.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    assert of_scores(scores_LNS)["interaction_strength"] == close(12 / 12)
    assert of_scores(np.zeros((1, 2, 4)))["attn_entropy"] == close(2.0)


def test_previous_token_attention_looks_at_the_key_before_the_querys_own() -> None:
    assert of_scores(logs([[[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]]))[
        "previous_token_attention"
    ] == close(0.25)


# ----- of both: against plain loops -------------------------------------------------------------------------


def random_step(rng: np.random.Generator, batch: int = 5, slots: int = 24) -> tuple[Array, AttentionScores]:
    """Logits and scores of one query a row. Each row sees some slots, whose positions are in disorder."""
    scores_LBNTS = rng.normal(0, 2, (3, batch, 4, 1, slots))
    visible_BTS, position_BS = np.zeros((batch, 1, slots), bool), np.full((batch, slots), -7, np.int32)
    for row in range(batch):
        n = [1, 2, slots][row] if row < 3 else int(rng.integers(3, slots))
        chosen = rng.permutation(slots)[:n]
        visible_BTS[row, 0, chosen] = True
        position_BS[row, chosen] = rng.permutation(n)
    logits_BTV = jnp.asarray(rng.normal(0, 3, (batch, 1, 60)), jnp.float32)
    return logits_BTV, AttentionScores(
        jnp.asarray(scores_LBNTS, jnp.float32), jnp.asarray(visible_BTS), jnp.asarray(position_BS)
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_metric_equals_plain_float64_loops(seed: int) -> None:
    logits_BTV, attention = random_step(np.random.default_rng(seed))
    measured = measure(logits_BTV, attention)
    for row in range(logits_BTV.shape[0]):
        seen = np.asarray(attention.visible_BTS)[row, 0]
        order = np.argsort(np.asarray(attention.position_BS)[row, seen])
        scores_LNS = np.asarray(attention.scores_LBNTS)[:, row, :, 0][..., seen][..., order]
        expected = reference.metrics(np.asarray(logits_BTV)[row, 0], scores_LNS)
        assert set(expected) == set(Metrics._fields)
        for name, value in expected.items():
            assert float(getattr(measured, name)[row, 0]) == close(value), (name, row)


@pytest.mark.parametrize("garbage", [0.0, -1e30, 1e30, np.inf, -np.inf, np.nan])
def test_invisible_slots_have_no_part_in_any_metric(garbage: float) -> None:
    """Whatever their scores and positions, bit by bit: they are masked before anything is computed."""
    logits_BTV, attention = random_step(np.random.default_rng(7))
    dirty = AttentionScores(
        jnp.where(attention.visible_BTS[:, None][None], attention.scores_LBNTS, garbage),
        attention.visible_BTS,
        jnp.where(attention.visible_BTS[:, 0], attention.position_BS, 3),
    )
    jax.tree.map(np.testing.assert_array_equal, measure(logits_BTV, dirty), measure(logits_BTV, attention))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_without_finite_logits_is_nan_and_its_neighbours_are_untouched(bad: float) -> None:
    """Minus infinity is a removed token and fine; NaN and plus infinity leave no distribution."""
    logits_BTV, attention = random_step(np.random.default_rng(8))
    clean, sick = measure(logits_BTV, attention), measure(logits_BTV.at[2, 0, 5].set(bad), attention)
    for name in ("logits_entropy", "logits_varentropy", "self_certainty"):
        assert math.isnan(getattr(sick, name)[2, 0]), name
    others = np.array([0, 1, 3, 4])
    for name in Metrics._fields:
        np.testing.assert_array_equal(getattr(sick, name)[others], getattr(clean, name)[others], err_msg=name)


def test_metrics_are_per_row_and_never_averaged_over_the_batch() -> None:
    """Each row in turn is replaced: its own metrics change, no bit of the others does."""
    logits_BTV, attention = random_step(np.random.default_rng(9))
    other_BTV, other = random_step(np.random.default_rng(10))
    clean = measure(logits_BTV, attention)
    for row in range(3, 5):
        changed = measure(
            logits_BTV.at[row].set(other_BTV[row]),
            AttentionScores(
                attention.scores_LBNTS.at[:, row].set(other.scores_LBNTS[:, row]),
                attention.visible_BTS.at[row].set(other.visible_BTS[row]),
                attention.position_BS.at[row].set(other.position_BS[row]),
            ),
        )
        for name in Metrics._fields:
            before, after = np.asarray(getattr(clean, name)), np.asarray(getattr(changed, name))
            np.testing.assert_array_equal(np.delete(before, row), np.delete(after, row), err_msg=name)
            assert before[row] != after[row], name


def test_metrics_are_float32_of_the_shape_of_the_queries() -> None:
    logits_BTV, attention = random_step(np.random.default_rng(11))
    for metric_BT in measure(logits_BTV, attention):
        assert (metric_BT.shape, metric_BT.dtype) == ((5, 1), jnp.float32)
