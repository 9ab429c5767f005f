"""How far raters agree: against counting all cases, published examples and another library."""

import itertools
import math
import random

import krippendorff
import numpy as np
import pytest

from toolkit.maths.agreement import (
    alpha_interval,
    krippendorff_alpha,
    one_rater_accuracy,
    split_half_accuracy,
)


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


def counted(*labelers: str) -> np.ndarray:
    """Counts (U, C) of what each labeler said, a letter for each unit; "." is nothing."""
    categories = sorted(set("".join(labelers)) - {"."})
    units = zip(*labelers, strict=True)
    return np.array([[unit.count(category) for category in categories] for unit in units])


@pytest.mark.parametrize(
    ("labelers", "alpha"),
    [
        (["0100000010", "1110010000"], 0.095),  # section A
        (["aabbdcccedda", "babbbccceddd"], 0.692),  # section B
        (["123321412...", "1233224125.3", ".3332342251.", "12332441251."], 0.743),  # section C
    ],
)
def test_alpha_is_that_of_krippendorffs_own_examples(labelers: list[str], alpha: float) -> None:
    # K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011)
    assert round(krippendorff_alpha(counted(*labelers)), 3) == alpha


def test_alpha_equals_the_package_on_tables_with_gaps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        labelers, units, categories = rng.integers(2, 7), rng.integers(5, 40), rng.integers(2, 7)
        truth = rng.integers(0, categories, units)
        said = rng.integers(0, categories, (labelers, units))
        said = np.where(rng.random(said.shape) < 0.4, truth, said).astype(float)
        said[rng.random(said.shape) < rng.uniform(0, 0.6)] = math.nan
        said[0, 0], said[1, 0], said[0, 1], said[1, 1] = 0, 0, 1, 0  # something to pair
        counts = (said.T[..., None] == np.arange(categories)).sum(axis=1)
        known = krippendorff.alpha(reliability_data=said, level_of_measurement="nominal")
        assert krippendorff_alpha(counts) == pytest.approx(known, abs=1e-12)


def test_units_of_one_label_and_unused_categories_do_not_count() -> None:
    counts = np.array([[2, 0, 1], [0, 2, 0], [1, 0, 1]])
    padded = np.array([[2, 0, 0, 1], [0, 0, 2, 0], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    assert krippendorff_alpha(padded) == krippendorff_alpha(counts)
    assert alpha_interval(padded) == alpha_interval(counts)


def test_alpha_is_one_where_all_agree_and_below_zero_where_none_do() -> None:
    assert krippendorff_alpha(np.array([[3, 0], [0, 2]])) == 1.0
    assert krippendorff_alpha(np.array([[1, 1]] * 10)) == pytest.approx(1 - 19 / 10)
    assert alpha_interval(np.array([[3, 0], [0, 2]] * 5)) == (1.0, 1.0)


@pytest.mark.parametrize(
    "counts",
    [np.zeros((0, 3), int), np.zeros((4, 3), int), np.eye(3, dtype=int), [[2, 0], [3, 0], [0, 1]]],
    ids=["no units", "no labels", "none to pair", "one category"],
)
def test_alpha_is_nan_where_it_is_not_defined(counts: np.ndarray) -> None:
    assert math.isnan(krippendorff_alpha(np.array(counts)))
    assert all(map(math.isnan, alpha_interval(np.array(counts))))


def test_one_unit_has_an_alpha_but_no_interval() -> None:
    counts = np.array([[1, 1], [1, 0]])
    assert krippendorff_alpha(counts) == 0.0
    assert all(map(math.isnan, alpha_interval(counts)))


def noisy(units: int, knowing: float, rng: np.random.Generator) -> np.ndarray:
    """Two labelers who know the truth with this probability, else guess: alpha is its square."""
    truth = rng.integers(0, 4, (units, 1))
    said = np.where(rng.random((units, 2)) < knowing, truth, rng.integers(0, 4, (units, 2)))
    return (said[..., None] == np.arange(4)).sum(axis=1)


def test_interval_covers_the_populations_alpha_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    within = {0.95: 0, 0.5: 0}
    for seed in range(300):
        counts = noisy(200, 0.7, rng)
        for level in within:
            low, high = alpha_interval(counts, 400, seed, level)
            within[level] += low <= 0.7**2 <= high
    # Four standard errors of 300 draws: 0.05 and 0.115.
    assert 0.90 < within[0.95] / 300 < 0.99 and 0.385 < within[0.5] / 300 < 0.615


def test_interval_halves_with_four_times_the_units() -> None:
    rng = np.random.default_rng(0)
    widths = [np.diff(alpha_interval(noisy(n, 0.7, rng), 4000))[0] for n in (500, 2000, 8000)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.15)


def test_interval_is_that_of_drawing_units_one_by_one() -> None:
    counts = np.random.default_rng(0).multinomial(3, [0.6, 0.3, 0.1], size=60)
    rng = random.Random(0)
    alphas = [krippendorff_alpha(counts[rng.choices(range(60), k=60)]) for _ in range(4000)]
    expected = np.quantile(alphas, [0.025, 0.975])
    assert alpha_interval(counts, 4000) == pytest.approx(expected, abs=0.015)


def test_interval_is_the_same_for_the_same_seed_and_any_order_of_units() -> None:
    counts = noisy(300, 0.7, np.random.default_rng(0))
    assert alpha_interval(counts, seed=3) == alpha_interval(counts[::-1], seed=3)
    assert alpha_interval(counts, seed=3) != alpha_interval(counts, seed=4)


def test_interval_of_many_sorts_of_units_is_drawn_in_chunks() -> None:
    # Of 20 labels nearly every unit is a sort of its own: 200 weights of 20,000 do not fit one.
    counts = np.random.default_rng(0).multinomial(20, [1 / 6] * 6, size=20_000)
    low, high = alpha_interval(counts, 200)
    # Under independence alpha's variance is about 2 / (U m (m - 1) (C - 1)).
    error = math.sqrt(2 / (20_000 * 20 * 19 * 5))
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.2)
