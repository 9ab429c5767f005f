"""The points of the curve, and the sentences on how many more labels an accuracy takes."""

import pytest

from toolkit.evaluation.label_curve import curve_point, outlook
from toolkit.scoring.accuracy import best_of_k_accuracy
from toolkit.training.reward.cross_validation import HeldOut


def judged(share: float, trained: int, rows: int = 400) -> list[HeldOut]:
    """So many pairs, held out from two models, of which this share is right."""
    found = []
    for i in range(rows):
        row = {"prompt": f"p{i}", "completions": ["a", "b"], "best": 0}
        right = i % 100 < round(100 * share)
        fold = 1 + (i >= rows // 2)
        raw = [1.0, 0.0] if right else [0.0, 1.0]
        found.append(HeldOut(fold, trained + 2 * (fold - 1), raw, row))
    return found


def test_a_point_is_the_accuracy_after_as_many_comparisons_as_its_models_had() -> None:
    rows = judged(0.6, 30)
    point = curve_point(0.25, rows)
    assert (point.fraction, point.train, point.value) == (0.25, 31, 0.6)
    whole = best_of_k_accuracy([row.raw for row in rows], [0] * 400)
    assert (point.low, point.high, point.loss) == (
        whole.accuracy_low,
        whole.accuracy_high,
        pytest.approx(whole.loss),
    )


def looked(shares: tuple[float, ...], target: float | None = None) -> list[str]:
    curve = [judged(share, n - 1) for share, n in zip(shares, (100, 200, 400), strict=True)]
    points = [curve_point(n, rows) for n, rows in zip((0.25, 0.5, 1.0), curve, strict=True)]
    found = outlook(points, curve, target)
    return [found.twice, *(each.sentence for each in found.needed)]


def test_five_points_a_doubling_are_followed_for_two_doublings_and_no_further() -> None:
    twice, near, far, beyond = looked((0.52, 0.57, 0.62))
    assert twice.startswith("With twice as many, 800, the accuracy should be about 67.0% [")
    assert near.startswith("For 65.0% about 606 comparisons to train on are needed [")  # 400 2^0.6
    assert "206 more than now" in near
    assert far.startswith("For 70.0% about 1,213 comparisons")
    assert beyond.startswith("For 75.0% more than 1,600 comparisons to train on are needed. That")
    assert "over 4 times as many as were tried" in beyond and "interval begins at 1," in beyond
    assert (
        len(looked((0.52, 0.53, 0.54))) == 3
    )  # 55 % can be said, 60 % is too far, 65 % is dropped
    assert looked((0.52, 0.57, 0.62), 0.6)[1].startswith("For 60.0% no more labels are needed")


def test_a_curve_that_does_not_rise_says_so() -> None:
    _, said = looked((0.60, 0.59, 0.60), 0.9)
    assert "cannot be told: the curve does not surely rise" in said


def test_points_of_different_comparisons_are_not_one_curve() -> None:
    with pytest.raises(ValueError, match="different comparisons"):
        curve = [judged(0.5, 10), judged(0.6, 20, rows=398)]
        outlook([curve_point(1.0, rows) for rows in curve], curve, None)


def test_the_estimate_is_checked_by_what_all_labels_gave() -> None:
    """52 and 57 % after 100 and 200 labels foretell 62 % after 400."""

    def checked(*shares: float) -> str:
        curve = [judged(share, n - 1) for share, n in zip(shares, (100, 200, 400), strict=True)]
        points = [curve_point(n, rows) for n, rows in zip((0.25, 0.5, 1.0), curve, strict=True)]
        return outlook(points, curve, None).backtest

    said = checked(0.52, 0.57, 0.62)
    assert "from 25%, 50% of the labels alone, all 400 should have given 62.0% [" in said
    assert "They gave 62.0%, +0.0 points from the estimate [" in said
    assert "They gave 59.0%, -3.0 points from the estimate [" in checked(0.52, 0.57, 0.59)


def test_two_points_foretell_nothing_that_could_be_checked() -> None:
    curve = [judged(0.52, 99), judged(0.57, 199)]
    points = [curve_point(n, rows) for n, rows in zip((0.5, 1.0), curve, strict=True)]
    assert outlook(points, curve, None).backtest == ""
