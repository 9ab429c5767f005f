"""Intervals against scipy, errors against numpy."""

import numpy as np
import pytest
from scipy import stats

from toolkit.maths.statistics import mean_and_error, wilson_interval


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (1, 3), (361, 400), (50, 100), (7, 9)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_interval_equals_scipys(hits: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(hits, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


def test_nothing_tried_is_nothing_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_mean_and_error_equal_numpys() -> None:
    values = np.random.default_rng(0).normal(size=50)
    mean, error = mean_and_error(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))
