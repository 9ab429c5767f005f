"""What a test on held-out comparisons can show, against the binomial distribution of scipy."""

import pytest
from scipy.stats import binom

from toolkit.scoring.accuracy import best_of_k_accuracy, judge
from toolkit.scoring.power import power_of


def test_of_120_choices_of_four_46_must_be_right() -> None:
    found = power_of([0.25] * 120)
    assert found.right == 46 and found.accuracy == pytest.approx(46 / 120)  # 38 %
    assert binom.sf(45, 120, 0.25) < 0.001 < binom.sf(44, 120, 0.25)
    assert found.likely is not None
    assert binom.sf(45, 120, found.likely) == pytest.approx(0.8)
    assert "46 must be right (38.3%)" in found.sentence()
    assert "share a prompt" not in power_of([0.25] * 120, 120).sentence()
    assert "share a prompt, so it may take a few more" in power_of([0.25] * 120, 60).sentence()
    assert found.sentence(5).startswith("In 5 folds, 120 comparisons are held out once each")


@pytest.mark.parametrize(("n", "k"), [(15, 2), (40, 4), (64, 3)])
def test_the_verdict_changes_at_the_count_that_is_needed(n: int, k: int) -> None:
    right = power_of([1 / k] * n).right
    assert right is not None
    for count, answer in ((right, "yes"), (right - 1, "not decided")):
        scores = [[1.0, *[0.0] * (k - 1)]] * count + [[0.0, 1.0, *[0.0] * (k - 2)]] * (n - count)
        assert judge(best_of_k_accuracy(scores, [0] * n)).answer == answer


def test_pairs_and_fours_together_are_counted_exactly() -> None:
    """Two pairs and a four: all three are right by luck once in 16, which is not below 0.001."""
    assert power_of([0.5, 0.5, 0.25]).right is None
    assert "too few: even if all are right" in power_of([0.5, 0.5, 0.25]).sentence()
    mixed = power_of([0.5] * 30 + [0.25] * 30)
    assert mixed.right is not None and mixed.chance == 0.375
    alike = power_of([0.375] * 60).right  # a mixture of the same mean spreads less
    assert alike is not None and alike - 1 <= mixed.right <= alike


def test_nothing_is_held_out() -> None:
    assert power_of([]).right is None
