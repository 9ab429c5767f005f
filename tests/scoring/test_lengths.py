"""A price for tokens, and the slope over length taken out of a score."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.maths.lengths import LengthLine
from toolkit.scoring.lengths import LengthPriced, fitted, token_counts
from toolkit.scoring.scorer import Completions, Scorer


class Fixed(Scorer):
    name = "fixed"
    identity = "fixed 1"

    def __call__(self, completions: Completions) -> Tensor:
        return torch.tensor([1.0, 1.5, 2.5])


IDS = [[5] * 2, [5] * 4, [5] * 6]


@pytest.fixture
def asked(new_sampling: Callable[..., Any]) -> Any:
    from toolkit.evaluation.contenders import Outputs

    return new_sampling().completions(Outputs(["a", "b", "c"], IDS, None, [9, 9, 9]))


def test_each_token_costs_its_price_and_the_slope_is_taken_out_about_the_mean(asked: Any) -> None:
    priced = LengthPriced(Fixed(), 0.1)
    assert priced(asked).tolist() == pytest.approx([0.8, 1.1, 1.9])
    priced.line = LengthLine(slope=0.5, error=0.0, length=4.0)
    assert priced(asked).tolist() == pytest.approx([0.8 + 1, 1.1, 1.9 - 1])


def test_without_a_price_the_scores_are_the_same_tensor_and_texts_need_no_tokens(
    asked: Any,
) -> None:
    scores = torch.tensor([1.0, 1.5, 2.5])
    assert LengthPriced(Fixed()).priced(scores, IDS) is scores
    assert LengthPriced(Fixed()).identity == "fixed 1"
    with pytest.raises(ValueError, match="needs completions as token ids"):
        LengthPriced(Fixed(), 0.1)(Completions(["p"], ["c"]))


def test_the_slope_is_of_what_has_a_score_and_equal_lengths_are_refused() -> None:
    scores = torch.tensor([1.0, 1.5, 2.5, torch.nan])
    line = fitted(scores, token_counts([*IDS, [5] * 99]))
    assert (line.slope, line.length) == (pytest.approx(0.375), 4.0)
    with pytest.raises(InputError, match="all 3 samples that have a score are equally long"):
        fitted(torch.randn(3), torch.full((3,), 24.0))
