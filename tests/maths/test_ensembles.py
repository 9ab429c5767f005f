"""Combining the scores of several reward models, against sums by hand."""

import pytest
import torch

from toolkit.maths.ensembles import Combining, combined, disagreement

# Three models' scores of three completions.
SCORES = torch.tensor([[1.0, 0.5, 2.0], [0.8, 0.7, -1.0], [1.2, 0.6, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", (1.0, 0.6, 2 / 3)),
        ("min", (0.8, 0.5, -1.0)),
        ("mean_minus_std", (0.836701, 0.518350, -0.580552)),
    ],
)
def test_mean_minimum_and_mean_less_a_deviation(
    how: Combining, expected: tuple[float, ...]
) -> None:
    assert combined(SCORES, how).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_weight_is_of_the_deviation_alone_and_equal_models_lose_nothing() -> None:
    twice = combined(SCORES, "mean_minus_std", 2.0)
    assert torch.allclose(twice, SCORES.mean(dim=0) - 2 * disagreement(SCORES))
    equal = SCORES[:1].repeat(3, 1)
    for how in ("mean", "min", "mean_minus_std"):
        assert torch.equal(combined(equal, how), SCORES[0])


def test_two_models_disagree_by_half_of_their_difference() -> None:
    assert disagreement(SCORES[:2]).tolist() == pytest.approx([0.1, 0.1, 1.5])


def test_a_completion_that_one_model_cannot_score_has_no_score() -> None:
    holed = SCORES.clone()
    holed[1, 0] = float("nan")
    for how in ("mean", "min", "mean_minus_std"):
        assert combined(holed, how).isnan().tolist() == [True, False, False]
