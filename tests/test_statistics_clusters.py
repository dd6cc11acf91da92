"""Figures of clustered items, against other formulas and in simulations with known truths."""

import numpy as np
import pytest
from scipy import stats

from entropix.lab.statistics import (
    auroc,
    auroc_difference,
    bends,
    bootstrap,
    cluster_mean,
    nested_gains,
    prr,
    total_variation,
)
from entropix.lab.statistics.bootstrap import bounds, mean_bounds
from entropix.lab.statistics.nested import fit_logistic

SIMULATIONS = 2000


# Of what clusters have in common: none, and that of a gamma of shape 4.
@pytest.mark.parametrize("skewness", [0.02, 1.0])
def test_means_of_clusters_hold_the_truth_and_seldom_cry_wolf(skewness: float) -> None:
    """40 clusters of 1 to 7 items; what items of one have in common is most of their spread."""
    rng, shape = np.random.default_rng(0), 4 / skewness**2
    count = rng.integers(1, 8, (40, SIMULATIONS)).astype(np.float64)
    common = (rng.gamma(shape, 1, count.shape) - shape) / np.sqrt(shape)
    total = count * common + np.sqrt(count) * rng.normal(0, 0.5, count.shape)
    _, low, high = mean_bounds(total, count, resamples=1000)
    assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97
    assert skewness > 0.1 or np.mean((low > 0) | (high < 0)) <= 0.055
    _, low, high = bounds(lambda weights: (weights @ total) / (weights @ count), 40, resamples=1000)
    assert np.mean((low <= 0) & (high >= 0)) >= 0.92


def test_a_mean_of_clusters_is_that_of_items_and_wider_than_if_they_were_independent() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=30), 10)
    names = [f"document {i // 10}" for i in range(300)]
    found, independent = cluster_mean(values, names), cluster_mean(values, range(300))
    assert found.mean == pytest.approx(values.mean()) and found.low is not None and found.high is not None
    student = stats.t.interval(0.95, 29, values[::10].mean(), stats.sem(values[::10]))
    assert (found.low, found.high) == pytest.approx(student, abs=0.1)
    assert (found.high - found.low) / (independent.high - independent.low) == pytest.approx(  # type: ignore[operator]
        np.sqrt(10), rel=0.1
    )
    assert cluster_mean([1.0, 2.0], ["a", "a"]) == (1.5, None, None)
    assert cluster_mean([1.0, 1.0], ["a", "b"]) == (1, 1, 1)
    assert bootstrap(lambda weights: np.full(len(weights), np.nan), 5)[1:] == (None, None)


@pytest.mark.slow
def test_auroc_counts_pairs_and_holds_the_truth() -> None:
    rng = np.random.default_rng(2)
    score, right = rng.integers(0, 5, 60), rng.integers(0, 2, 60)
    pairs = [(a > b) + (a == b) / 2 for a in score[right == 1] for b in score[right == 0]]
    assert auroc(score, right, range(60)).mean == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc([1, 2], [1, 1], [0, 1]).mean)
    held = []
    documents = np.repeat(np.arange(25), 3)
    for _ in range(SIMULATIONS):
        right = rng.integers(0, 2, 75)
        noise = rng.normal(0, 0.5, 25)[documents] + rng.normal(0, 1, 75)
        found = auroc(0.8 * right + noise, right, documents, resamples=250)
        held.append(found.low <= stats.norm.cdf(0.8 / np.sqrt(2.5)) <= found.high)  # type: ignore[operator]
    assert 0.93 <= np.mean(held) <= 0.97


def test_differences_of_auroc_are_paired() -> None:
    """Two nearly equal scores differ by far less than each is unsure."""
    rng = np.random.default_rng(3)
    right, documents = rng.integers(0, 2, 400), np.repeat(np.arange(40), 10)
    score = right + rng.normal(0, 1, 400)
    other = score + rng.normal(0, 0.1, 400)
    difference = auroc_difference(score, other, right, documents)
    alone = [auroc(values, right, documents) for values in (score, other)]
    assert difference.mean == pytest.approx(alone[0].mean - alone[1].mean)
    assert difference.high - difference.low < (alone[0].high - alone[0].low) / 4  # type: ignore[operator]


def test_prr_is_one_for_the_truth_nothing_for_chance_and_by_hand_between() -> None:
    rng = np.random.default_rng(4)
    quality, documents = rng.uniform(size=200), np.arange(200)
    assert prr(quality, quality, documents).mean == pytest.approx(1)
    assert prr(np.zeros(200), quality, documents).mean == pytest.approx(0)
    assert prr(-quality, quality, documents).mean < -0.9
    chance = prr(rng.uniform(size=200), quality, documents)
    assert chance.low < 0 < chance.high  # type: ignore[operator]
    # Of 1, 0, 1, 0 by falling score, a share r is rejected from the end: (2 - 0) / (4 - 4r) for r up to 1/4, then
    # (1 + (3 - 4r) - 2 + 1) / (4 - 4r) ... ; the best order keeps 1, 1 first: 2 / (4 - 4r) all the way.
    r = np.linspace(0, 0.5, 101)
    kept = np.where(r <= 0.25, 2, 1 + (2 - 4 * r)) / (4 - 4 * r)
    best = 2 / (4 - 4 * r)
    expected = (np.trapezoid(kept, r) / 0.5 - 0.5) / (np.trapezoid(best, r) / 0.5 - 0.5)
    assert prr([4, 3, 2, 1], [1, 0, 1, 0], range(4)).mean == pytest.approx(expected, rel=1e-3)


def test_total_variation_is_cautious_where_nothing_differs_and_exact_where_all_does() -> None:
    rng = np.random.default_rng(5)
    same = [total_variation(*rng.integers(0, 4, (2, 24)).tolist()) for _ in range(SIMULATIONS)]
    error = np.std([found.cautious for found in same]) / np.sqrt(SIMULATIONS)
    assert abs(np.mean([found.cautious for found in same])) < 4 * error
    assert np.mean([found.plug_in for found in same]) > 0.15
    assert total_variation("aaaa", "bbbb") == (1, 1)
    assert total_variation("aabb", "aabb") == (0, 0)
    # Signs of the other pairs, by hand: a of "aab|abb" has excess 1, without its own pair (a, a) still 1.
    assert total_variation("aab", "abb") == (pytest.approx((0 + 0 + 0) / 3), pytest.approx(1 / 3))
    with pytest.raises(ValueError, match="as many answers on both sides"):
        total_variation("a", "b")


def test_means_of_total_variation_hold_the_truth() -> None:
    """Half a mass moved between two answers, 30 positions of 16 rollouts each."""
    rng, n = np.random.default_rng(6), 300
    x, y = rng.random((30, n, 16)) < 0.8, rng.random((30, n, 16)) < 0.3
    moved = np.array(
        [total_variation(*pair).cautious for pair in zip(x.reshape(-1, 16), y.reshape(-1, 16), strict=True)]
    ).reshape(30, n)
    _, low, high = mean_bounds(moved, np.ones_like(moved), resamples=1000)
    assert np.mean((low <= 0.5) & (high >= 0.5)) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / n))


def test_a_logistic_fit_is_where_its_gradient_vanishes() -> None:
    rng = np.random.default_rng(7)
    x = np.concatenate([np.ones((500, 1)), rng.normal(size=(500, 2))], axis=1)
    right = (rng.random(500) < 1 / (1 + np.exp(-(x @ [0.5, 1.0, -2.0])))).astype(float)
    weights = np.stack([np.ones(500), (np.arange(500) < 250).astype(float)])
    both = fit_logistic(x, right, weights)
    for found, weight in zip(both, weights, strict=True):
        chance = 1 / (1 + np.exp(-x @ found))
        assert x.T @ (weight * (chance - right)) + [0, *found[1:]] == pytest.approx(np.zeros(3), abs=1e-5)
    assert both[0] == pytest.approx([0.5, 1.0, -2.0], abs=0.4)
    apart = fit_logistic(np.array([[1.0, -1], [1, 1]]), np.array([0.0, 1]), np.ones((1, 2)))
    assert np.isfinite(apart).all()  # separable, and yet finite


@pytest.mark.slow
def test_a_gain_is_seen_where_there_is_one_and_noise_gains_nothing() -> None:
    """The second feature matters, the third is noise: alarms over it are rarer than 2.5 % of one side."""
    rng, alarms, gains = np.random.default_rng(8), 0, []
    documents = np.repeat(np.arange(30), 5)
    for _ in range(SIMULATIONS // 5):
        x = rng.normal(size=(3, 150))
        right = rng.random(150) < 1 / (1 + np.exp(-(x[0] + 1.5 * x[1])))
        features = {"a": x[0], "b": x[1], "noise": x[2]}
        found = nested_gains(features, right, documents, folds=5, resamples=200)
        gains.append(found[1].gain.low > 0)  # type: ignore
        alarms += found[2].gain.low > 0  # type: ignore
    assert np.mean(gains) > 0.95
    assert alarms / (SIMULATIONS // 5) <= 0.055
    assert found[0].gain is None and found[2].gain_over_first.mean == pytest.approx(  # type: ignore[union-attr]
        found[0].loss - found[2].loss
    )
    with pytest.raises(ValueError, match=r"features 'a': expected 150 rows of finite numbers"):
        nested_gains({"a": np.full(150, np.nan)}, right, documents)
    with pytest.raises(ValueError, match="at least 10 clusters for 10 folds, got 1"):
        nested_gains({"a": x[0]}, right, [0] * 150)


def test_bends_let_a_line_be_a_curve() -> None:
    """|x| is two straight halves, which a line alone does not see."""
    rng = np.random.default_rng(9)
    x = rng.normal(size=1000)
    right = rng.random(1000) < 1 / (1 + np.exp(-(4 * np.abs(x) - 3)))
    found = nested_gains({"x": x, "bent": bends(x)[:, 1:]}, right, np.arange(1000))
    assert found[1].gain is not None and found[1].gain.mean > 0.1
    assert bends(np.ones(5)).shape == (5, 1)
