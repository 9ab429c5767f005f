"""Calibration, against numpy and against scores whose temperature is known."""

import numpy as np
import pytest

from toolkit.maths.calibration import (
    as_table,
    bins,
    confidence,
    expected_calibration_error,
    fit_temperature,
)
from toolkit.maths.losses import best_of_k_loss


def test_confidence_is_the_largest_softmax_probability() -> None:
    scores = [[0.5, -0.2, 1.0, 0.1], [2.0, 2.0]]
    assert confidence(scores) == pytest.approx([0.432097, 0.5], abs=1e-6)
    assert confidence(scores, temperature=1e6) == pytest.approx([0.25, 0.5], abs=1e-5)


def test_a_gap_of_one_is_73_per_cent_and_75_per_cent_a_gap_of_ln_3() -> None:
    """Scores of pairs as arXiv 2204.05862 reads them."""
    assert confidence([[1.0, 0.0], [1.098612, 0.0]]) == pytest.approx([0.731059, 0.75], abs=1e-6)


def test_calibration_error_by_hand() -> None:
    sure, right = [0.95, 0.91, 0.3, 0.22], [True, False, True, False]
    # Bins (.9, 1]: share .5, confidence .93; (.2, .3]: share .5, confidence .26. Half of all each.
    assert expected_calibration_error(sure, right) == pytest.approx(0.5 * 0.43 + 0.5 * 0.24)
    assert bins(sure)[9] == [0, 1] and bins(sure)[2] == [2, 3]
    assert bins([1.0, 0.1])[9] == [0] and bins([1.0, 0.1])[0] == [1]


def test_perfectly_calibrated_guesses_have_no_error() -> None:
    sure = [0.75] * 400
    right = [i % 4 != 0 for i in range(400)]
    assert expected_calibration_error(sure, right) == pytest.approx(0.0, abs=1e-12)


def test_the_fitted_temperature_is_the_one_the_labels_came_from() -> None:
    rng = np.random.default_rng(0)
    for true in (0.5, 1.0, 4.0):
        scores = [rng.normal(size=rng.integers(2, 6)) * 3 for _ in range(4000)]
        best = []
        for r in scores:
            p = np.exp(r / true) / np.exp(r / true).sum()
            best.append(int(rng.choice(len(r), p=p)))
        assert fit_temperature([list(r) for r in scores], best) == pytest.approx(true, rel=0.1)


def test_no_other_temperature_makes_the_picks_likelier() -> None:
    rng = np.random.default_rng(1)
    scores = [list(rng.normal(size=4)) for _ in range(60)]
    best = [int(np.argmax(np.array(r) + rng.normal(size=4))) for r in scores]
    fitted = fit_temperature(scores, best)
    table, mask, picks = as_table(scores, best)
    losses = [best_of_k_loss(table / t, picks, mask).item() for t in np.geomspace(0.05, 50, 200)]
    assert best_of_k_loss(table / fitted, picks, mask).item() <= min(losses) + 1e-9
