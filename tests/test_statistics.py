"""Statistics of comparisons, against closed forms, published examples and simulated odds."""

import math

import numpy as np
import pytest
from scipy import stats

from entropix.lab import lanes
from entropix.lab.statistics import (
    Contrast,
    Interval,
    contrast,
    detectable,
    halves,
    holm,
    items_needed,
    mean_interval,
    paired_shares,
    share_interval,
    variance,
)


def test_a_mean_of_two_has_students_widest_interval() -> None:
    """t(0.975, 1) = tan(0.475 π)."""
    found = mean_interval([1.0, 3.0, None])
    assert found is not None and found.low is not None and found.high is not None
    assert (found.mean, found.high - found.mean) == pytest.approx((2.0, math.tan(0.475 * math.pi)))
    assert mean_interval([None]) is None
    assert mean_interval([5.0]) == (5.0, None, None)


def test_a_contrast_is_that_of_the_paired_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, 30), rng.normal(0, 1, 30)
    found = contrast(list(a), list(b))
    expected = stats.ttest_rel(a, b)
    assert found is not None and found.effect is not None
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference[1:] == pytest.approx(tuple(expected.confidence_interval()))
    assert found.effect.mean == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1))
    # The interval of the effect holds 0 if and only if that of the difference does.
    assert (found.effect.low < 0 < found.effect.high) == (found.p > 0.05)  # type: ignore[operator]


def test_intervals_of_effects_hold_the_truth_as_often_as_they_say() -> None:
    """d = 0.5 with 12 items, 200 times: 95 % ± 4 standard errors."""
    changes = np.random.default_rng(1).normal(0.5, 1, (200, 12))
    held = 0
    for change in changes:
        found = contrast(list(change), [0.0] * 12)
        assert found is not None and found.effect is not None
        held += found.effect.low < 0.5 < found.effect.high  # type: ignore[operator]
    assert held / 200 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 200))


def test_what_is_detectable_is_seen_four_times_out_of_five() -> None:
    """The exact power of the paired test at that difference, for a standard deviation of 1."""
    n = 40
    change = np.sqrt(n / (n - 1)) * stats.zscore(np.random.default_rng(2).normal(size=n))  # mean 0, sd 1
    found = contrast(list(change), [0.0] * n)
    assert found is not None and found.detectable is not None
    limit, shift = stats.t.ppf(0.975, n - 1), found.detectable * math.sqrt(n) / np.std(change, ddof=1)
    power = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
    assert power == pytest.approx(0.8, abs=0.01)


def test_differences_that_are_all_alike_have_no_test() -> None:
    assert contrast([1.1, 2.1], [1.0, 2.0]) == Contrast(2, pytest.approx((0.1, 0.1, 0.1)), None, None, None)
    assert contrast([1.0, None], [None, 2.0]) is None
    assert contrast([3.0], [1.0]) == Contrast(1, (2.0, None, None), None, None, None)  # type: ignore[arg-type]


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; never less than the one before; at most 1."""
    assert holm([0.04, None, 0.01, 0.03, 0.02]) == pytest.approx([0.06, None, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_right_and_wrong_answers_to_few_items_have_the_interval_of_two_shares() -> None:
    """Also where nothing changed, which is no proof that nothing can."""
    same = contrast([1, 0] * 20, [1, 0] * 20)
    assert same is not None and same.is_exact and same.p == 1 and same.detectable is None
    assert same.difference.low == pytest.approx(-same.difference.high, abs=1e-4)  # type: ignore[operator]
    assert 0.03 < same.difference.high < 0.07  # type: ignore[operator]
    many = contrast([1, 0] * 100, [1, 0] * 100)
    assert many is not None and not many.is_exact and many.difference == (0, 0, 0)
    shares = contrast([0.5, 1] * 20, [1, 0] * 20)
    assert shares is not None and not shares.is_exact


def test_sample_sizes_are_those_of_the_textbook() -> None:
    """(1.96 + 0.84)² sd² / d², and two more for not knowing the spread."""
    for sd, difference, normal in (
        (0.30, 0.05, 283),
        (0.45, 0.05, 636),
        (0.30, 0.02, 1766),
        (0.45, 0.03, 1766),
    ):
        assert items_needed(sd, difference) == pytest.approx(normal + 2, abs=1)
    assert detectable(0.3, items_needed(0.3, 0.05)) <= 0.05 < detectable(0.3, items_needed(0.3, 0.05) - 1)


@pytest.mark.parametrize(("n", "gains", "losses"), [(50, 0.1, 0.1), (180, 0.06, 0.06), (100, 0.15, 0.05)])
def test_paired_shares_hold_the_truth_and_seldom_cry_wolf(n: int, gains: float, losses: float) -> None:
    rng = np.random.default_rng(n)
    found = {}
    held = alarms = 0
    for gained, lost, _ in rng.multinomial(n, [gains, losses, 1 - gains - losses], 2000):
        if (gained, lost) not in found:
            right = [True] * gained + [False] * (n - gained)
            before = [False] * gained + [True] * lost + [False] * (n - gained - lost)
            found[gained, lost] = paired_shares(right, before)
        one = found[gained, lost]
        held += one.difference.low <= gains - losses <= one.difference.high  # type: ignore[operator]
        alarms += one.p < 0.05
    assert 0.93 <= held / 2000 <= 0.97
    assert gains != losses or alarms / 2000 <= 0.055


def test_mid_p_and_shares_by_hand() -> None:
    """5 gains, 1 loss: 2 × (1 + 6) / 64 - 6 / 64."""
    found = paired_shares([True] * 5 + [False] * 5, [False] * 5 + [True] + [False] * 4)
    assert (found.gained, found.lost, found.p) == (5, 1, pytest.approx(8 / 64))
    assert found.difference.mean == pytest.approx(0.4)
    assert share_interval(0, 10)[:2] == (0, 0)
    assert share_interval(0, 10).high == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-4)
    intervals = {k: share_interval(k, 80) for k in range(81)}
    drawn = np.random.default_rng(0).binomial(80, 0.3, 2000)
    held = [intervals[k].low <= 0.3 <= intervals[k].high for k in drawn]  # type: ignore[operator]
    assert 0.93 <= np.mean(held) <= 0.97
    with pytest.raises(ValueError, match="from 0 to 3 right items"):
        share_interval(4, 3)


def test_parts_of_the_variance_are_found_and_seeds_counted() -> None:
    """Items spread by 0.2, answers to one by 0.4: within / between = 4, which 39 seeds bring to 10 %."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.2, (4000, 1)) + rng.normal(0, 0.4, (4000, 5))
    found = variance(values.tolist())
    assert (found.between, found.within) == pytest.approx((0.04, 0.16), rel=0.1)
    assert found.error == pytest.approx(np.std(values.mean(axis=1), ddof=1) / math.sqrt(4000), rel=1e-6)
    assert found.error_with_more_seeds == pytest.approx(math.sqrt(0.04 / 4000), rel=0.05)
    assert found.enough_seeds == pytest.approx(39, abs=4)
    ragged = [row[: 1 + i % 5] for i, row in enumerate(values.tolist())]
    assert variance(ragged)[1:3] == pytest.approx((0.04, 0.16), rel=0.15)
    assert variance([[0.0, 1.0], [1.0, 0.0]]).enough_seeds is None
    with pytest.raises(ValueError, match="got 2 answers to 2 items"):
        variance([[1.0], [0.0]])


def test_an_interval_of_a_share_stays_within_0_and_1() -> None:
    found = mean_interval([1.0, 0.9])
    assert found is not None and found.high is not None and found.high > 1
    assert found.within(0, 1) == (found.mean, found.low, 1) and found.low is not None and found.low > 0
    assert Interval(-0.1, -0.3, 0.4).within(0, 1) == (-0.1, -0.1, 0.4)
    assert Interval(0.5, None, None).within(0, 1) == (0.5, None, None)


def test_an_interval_need_not_reach_as_far_down_as_up() -> None:
    """As drawn: Wilson's of one in four, and a share that ends at 1."""
    from matplotlib.figure import Figure

    found = [share_interval(1, 4), Interval(0.95, 0.3, 1.0)]
    axes = Figure().subplots()
    for lane, each in enumerate(found):
        lanes.interval(axes, each, lane, is_filled=True)
    for bar, each in zip(axes.containers, found, strict=True):
        [segment] = bar[2][0].get_segments()
        assert segment[:, 0] == pytest.approx([each.low, each.high])
    assert halves(None) == halves(Interval(1.0, None, None)) == (0.0, 0.0)


def test_measures_that_happen_to_be_0_or_1_are_no_shares() -> None:
    """Repetition of 0 in every answer is a difference of nothing, not of 16 questions that all went wrong."""
    nothing = contrast([0.0] * 16, [0.0] * 16, are_scores=False)
    wrong = contrast([0.0] * 16, [0.0] * 16)
    assert nothing is not None and wrong is not None
    assert (nothing.difference.low, nothing.difference.high, nothing.p) == (0.0, 0.0, None)
    assert wrong.difference.high == pytest.approx(0.078, abs=1e-3) and wrong.p == 1.0
