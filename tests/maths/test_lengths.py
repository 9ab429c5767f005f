"""The line of scores over lengths, against numbers by hand and scipy."""

import math

import pytest
import torch
from scipy.stats import linregress

from toolkit.maths.lengths import length_line

LENGTHS = torch.tensor([10.0, 20.0, 30.0, 40.0])
SCORES = torch.tensor([1.0, 1.5, 2.5, 3.0])


def test_slope_and_scores_at_equal_length() -> None:
    line = length_line(LENGTHS, SCORES)
    assert line is not None
    assert (line.slope, line.length) == (pytest.approx(0.07), 25.0)
    pairs = zip(SCORES.tolist(), LENGTHS.tolist(), strict=True)
    found = [line.at_equal_length(score, length) for score, length in pairs]
    assert found == pytest.approx([2.05, 1.85, 2.15, 1.95])


def test_slope_and_its_error_are_scipys() -> None:
    lengths = torch.randint(5, 40, (50,)).float()
    scores = 0.1 * lengths + torch.randn(50)
    line, scipys = length_line(lengths, scores), linregress(lengths, scores)
    assert line is not None
    assert (line.slope, line.error) == pytest.approx((scipys.slope, scipys.stderr))


def test_equal_lengths_have_no_slope_and_two_samples_no_error() -> None:
    assert length_line(torch.full((4,), 24.0), SCORES) is None
    assert length_line(torch.empty(0), torch.empty(0)) is None
    two = length_line(LENGTHS[:2], SCORES[:2])
    assert two is not None and two.slope == pytest.approx(0.05) and math.isnan(two.error)
