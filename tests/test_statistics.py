"""Statistics of comparisons, against closed forms, published examples and simulated odds."""

import math

import numpy as np
import pytest
from scipy import stats

from entropix.lab.statistics import Contrast, contrast, holm, mean_interval


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
