"""O17: Elo's arithmetic and z-scores."""

import math

import pytest

from toolkit.maths.ratings import ELO_SCALE, elo_expectation, elo_ratings, z_scores


def test_elo_expectations() -> None:
    assert elo_expectation(1600, 1400) == pytest.approx(0.759747, abs=1e-6)
    assert elo_expectation(1500, 1400) == pytest.approx(0.640065, abs=1e-6)
    assert pytest.approx(0.575646, abs=1e-6) == 100 / ELO_SCALE
    assert math.log(0.640065 / (1 - 0.640065)) == pytest.approx(100 / ELO_SCALE, abs=1e-5)


def test_an_upset_moves_both_by_as_much() -> None:
    move = 32 * (1 - elo_expectation(1400, 1600))
    assert 1400 + move == pytest.approx(1424.311902, abs=1e-6)
    ratings = elo_ratings([(0, 1), (1, 0)], 2)
    first = 1500 + 32 * 0.5
    second = 32 * (1 - elo_expectation(3000 - first, first))
    assert ratings == pytest.approx([first - second, 3000 - first + second])
    assert sum(elo_ratings([(0, 1), (2, 1), (1, 2)], 3)) == pytest.approx(4500)


def test_z_scores_use_the_population_standard_deviation() -> None:
    assert z_scores([1600, 1500, 1400, 1500]) == pytest.approx(
        [1.414214, 0, -1.414214, 0], abs=1e-6
    )
    assert z_scores([3.0, 3.0]) == [0.0, 0.0]
