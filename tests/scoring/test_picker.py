"""Whose score is highest is picked; ties, and picks by lot."""

import random

from toolkit.scoring.picker import pick_best


def test_the_best_is_the_highest_score() -> None:
    assert pick_best([0.0, 3.0, -1.0, 2.0], "drop", 0.0, random.Random(0)) == 1


def test_ties_are_dropped_or_broken_by_the_seed() -> None:
    rng = random.Random(0)
    assert pick_best([3.0, 3.0, 1.0], "drop", 0.0, rng) is None
    picks = [pick_best([3.0, 3.0, 1.0], "random", 0.0, rng) for _ in range(200)]
    assert 70 < picks.count(0) < 130 and picks.count(2) == 0


def test_noise_picks_by_lot_that_often() -> None:
    rng = random.Random(0)
    picks = [pick_best([0.0, 1.0, 0.0, 0.0], "drop", 0.4, rng) for _ in range(2000)]
    assert 0.66 < picks.count(1) / 2000 < 0.74  # 0.6 + 0.4 / 4


def test_a_rows_tie_does_not_shift_another_rows_luck() -> None:
    def picks(first: list[float]) -> list[int | None]:
        rng = random.Random(5)
        rows = [first] + [[1.0, 1.0, 0.0]] * 20
        return [pick_best(row, "random", 0.3, rng) for row in rows][1:]

    assert picks([1.0, 0.0, 0.0]) == picks([1.0, 1.0, 1.0])
