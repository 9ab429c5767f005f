"""Intervals against scipy, errors against numpy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from toolkit.maths.statistics import (
    design_effect,
    holm,
    mean_and_error,
    ratio_and_error,
    tail_probability,
    wilson_interval,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (1, 3), (361, 400), (50, 100), (7, 9)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_interval_equals_scipys(hits: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(hits, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


def test_an_interval_holds_its_proportion_to_the_last_bit() -> None:
    for n in range(1, 300):
        for hits in (0, n // 3, n):
            low, high = wilson_interval(hits, n)
            assert 0 <= low <= hits / n <= high <= 1


def test_the_design_effect_is_1_for_independent_values_and_the_size_for_copies() -> None:
    assert design_effect([1, 0, 0, 1], range(4)) == 1.0
    assert design_effect([1, 1, 0, 0, 0, 0], "aabbcc") == pytest.approx(2.0)
    assert design_effect([1, 0, 1, 0], "aabb") == 1.0  # each as mixed as the whole
    assert design_effect([1, 1, 1], "aab") == 1.5  # nothing varies: nothing says they differ
    assert design_effect([1, 1, 1], "abc") == 1.0


def test_nothing_tried_is_nothing_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_mean_and_error_equal_numpys() -> None:
    values = np.random.default_rng(0).normal(size=50)
    mean, error = mean_and_error(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_the_tail_of_equal_chances_is_the_binomial_test() -> None:
    for hits, n, p in ((0, 20, 0.25), (9, 20, 0.25), (20, 20, 0.25), (130, 400, 0.25)):
        expected = stats.binomtest(hits, n, p, alternative="greater").pvalue
        assert tail_probability(hits, [p] * n) == pytest.approx(expected, abs=1e-12)


def test_the_tail_of_unequal_chances_equals_a_count_of_all_outcomes() -> None:
    chances = [1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 5]
    expected = 0.0
    for outcome in itertools.product([0, 1], repeat=5):
        if sum(outcome) >= 3:
            expected += np.prod(
                [p if hit else 1 - p for hit, p in zip(outcome, chances, strict=True)]
            )
    assert tail_probability(3, chances) == pytest.approx(expected, abs=1e-12)


def test_wilson_is_scipys_on_random_tables() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        trials = int(rng.integers(1, 600))
        wins = int(rng.integers(0, trials + 1))
        theirs = stats.binomtest(wins, trials).proportion_ci(0.95, method="wilson")
        assert wilson_interval(wins, trials) == pytest.approx(tuple(theirs), abs=1e-12)


def test_holm_by_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    rng = np.random.default_rng(0)
    for _ in range(50):  # rejected at 0.05: exactly Holm's step-down procedure
        p = rng.uniform(0, 0.06, size=7)
        left, rejected = sorted(p), set()
        while left and left[0] <= 0.05 / len(left):
            rejected.add(left.pop(0))
        assert {x for x, h in zip(p, holm(list(p)), strict=True) if h <= 0.05} == rejected


def test_a_ratio_of_sums_has_the_error_that_resampling_shows() -> None:
    """Against 4,000 bootstrap samples of the units, and with equal weights the mean's own error."""
    rng = np.random.default_rng(0)
    weights = rng.integers(5, 60, 400)
    values = weights * rng.normal(2.0, 0.4, 400) + rng.normal(0, 3.0, 400)
    ratio, error = ratio_and_error(values.tolist(), weights.tolist())
    assert ratio == pytest.approx(values.sum() / weights.sum())
    drawn = rng.integers(0, 400, (4000, 400))
    assert error == pytest.approx((values[drawn].sum(1) / weights[drawn].sum(1)).std(), rel=0.05)
    assert ratio_and_error([1.0, 2.0, 6.0], [2, 2, 2]) == pytest.approx(
        mean_and_error([0.5, 1.0, 3.0])
    )
    assert np.isnan(ratio_and_error([1.0], [2])[1])
