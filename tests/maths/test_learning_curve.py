"""The line of accuracy over labels, against hand arithmetic, numpy and a world that is known."""

import math

import numpy as np
import pytest

from toolkit.maths.learning_curve import FARTHEST, learning_curve


def credits_of(accuracies: list[float], rows: int) -> list[list[float]]:
    return [[float(i < round(a * rows)) for i in range(rows)] for a in accuracies]


def test_a_doubling_that_adds_ten_points_takes_two_doublings_for_twenty() -> None:
    """40, 50 and 60 % after 100, 200 and 400 labels: 70 % after 800, 80 % after 1,600."""
    rows = 200
    made = credits_of([0.4, 0.5, 0.6], rows)
    curve = learning_curve([100, 200, 400], made, range(rows), [1] * rows)
    assert curve.per_doubling().value == pytest.approx(0.1)
    assert curve.at(800).value == pytest.approx(0.7) and curve.rises()
    assert curve.labels_for(0.7).value == pytest.approx(800)
    assert curve.labels_for(0.8).value == pytest.approx(1600)  # as far as it goes
    assert math.isinf(curve.labels_for(0.81).value)
    assert curve.labels_for(0.55).value == pytest.approx(400 / math.sqrt(2))
    low, high = curve.labels_for(0.7)[1:]
    assert 400 < low < 800 < high
    with pytest.raises(ValueError, match="too far"):
        curve.at(FARTHEST * 400 + 1)


def test_the_line_is_numpys() -> None:
    rng = np.random.default_rng(1)
    labels, rows = [30, 75, 150, 300], 90
    made = rng.integers(0, 2, size=(4, rows)).astype(float)
    curve = learning_curve(labels, made.tolist(), range(rows), [1] * rows)
    slope, intercept = np.polyfit(np.log2(labels), made.mean(axis=1), 1)
    assert curve.per_doubling().value == pytest.approx(slope)
    assert curve.at(100).value == pytest.approx(intercept + slope * np.log2(100))


def test_a_flat_curve_does_not_say_how_many_labels_it_takes() -> None:
    rows = 400
    rng = np.random.default_rng(0)
    made = (rng.random((3, rows)) < 0.5).astype(float).tolist()
    curve = learning_curve([50, 100, 200], made, range(rows), [1] * rows)
    assert not curve.rises() and math.isinf(curve.labels_for(0.9).value)
    assert curve.per_doubling().low < 0 < curve.per_doubling().high


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Each row is right with the line's probability, on the same luck at every point."""
    labels, rows, held = [100, 250, 500, 1000], 500, 0
    true = [0.5 + 0.05 * math.log2(n / 1000) for n in labels]
    for seed in range(30):
        luck = np.random.default_rng(seed).random(rows)
        made = [(luck < p).astype(float).tolist() for p in true]
        found = learning_curve(labels, made, range(rows), [1] * rows).at(2000)
        held += found.low <= 0.55 <= found.high
    assert 26 <= held <= 30


def test_rows_of_one_prompt_and_models_that_differ_widen_the_interval() -> None:
    rows = 300
    rng = np.random.default_rng(3)
    made = (rng.random((3, rows)) < np.array([[0.4], [0.5], [0.6]])).astype(float)
    labels = [100, 200, 400]

    def width(credits: np.ndarray, prompts: list[int], folds: list[int]) -> float:
        found = learning_curve(labels, credits.tolist(), prompts, folds).at(400)
        return found.high - found.low

    apart = width(made, list(range(rows)), [1] * rows)
    copied = np.repeat(made[:, :30], 10, axis=1)
    assert width(copied, [i // 10 for i in range(rows)], [1] * rows) > 2 * apart

    folds = [i // 100 for i in range(rows)]  # of the three models, one has learned nothing
    lucky = np.concatenate([made[:, :200], np.zeros((3, 100))], axis=1)
    assert width(lucky, list(range(rows)), folds) > 1.5 * width(
        lucky, list(range(rows)), [1] * rows
    )


def test_the_difference_of_two_lines_is_paired_draw_by_draw() -> None:
    """A line minus itself is 0 in each draw, and minus itself 5 points lower is 5 points."""
    rows = 200
    labels, made = [100, 200, 400], credits_of([0.4, 0.5, 0.6], rows)
    curve = learning_curve(labels, made, range(rows), [1] * rows)
    assert curve.minus(curve, 300) == (0.0, 0.0, 0.0)
    lower = [[value - 0.05 for value in point] for point in made]
    other = learning_curve(labels, lower, range(rows), [1] * rows)
    assert curve.minus(other, 800) == pytest.approx((0.05, 0.05, 0.05))
