"""How far raters agree, against counting all cases."""

import itertools
import random

import pytest

from toolkit.maths.agreement import one_rater_accuracy, split_half_accuracy


def by_counting(ratings: list[list[float]], best: int) -> float:
    points = []
    for drawn in itertools.product(*ratings):
        top = [k for k, r in enumerate(drawn) if r == max(drawn)]
        points.append(1 / len(top) if best in top else 0.0)
    return sum(points) / len(points)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_one_rater_equals_a_count_of_all_draws(best: int) -> None:
    ratings = [[1, 2, 2, 3], [2, 2, 0], [3, 1, 2, 2, -1]]
    assert one_rater_accuracy(ratings, best) == pytest.approx(by_counting(ratings, best), abs=1e-12)


def test_raters_who_agree_agree() -> None:
    assert one_rater_accuracy([[3, 3], [1, 1]], 0) == 1.0
    assert one_rater_accuracy([[2, 2], [2, 2], [2]], 1) == pytest.approx(1 / 3)
    assert split_half_accuracy([[3, 3], [1, 1]], random.Random(0)) == 1.0
    assert split_half_accuracy([[1, 1], [1, 1]], random.Random(0)) == 0.5


def test_halves_are_drawn_at_random() -> None:
    ratings = [[4, -4], [-4, 4]]  # each half has another favourite
    outcomes = {split_half_accuracy(ratings, random.Random(seed)) for seed in range(20)}
    assert outcomes == {0.0, 0.5}
