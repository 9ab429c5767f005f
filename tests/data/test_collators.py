"""Comparisons of any K in one batch."""

import doctest

import pytest
import torch

from toolkit.data import collators, text
from toolkit.data.collators import ComparisonCollator, by_comparison
from toolkit.maths import sequences


def test_the_docstrings_show_what_comes_out() -> None:
    for module in (collators, sequences, text):
        outcome = doctest.testmod(module, extraglobs={"torch": torch})
        assert outcome.attempted > 0 and outcome.failed == 0


def test_mixed_k_is_flattened_and_comes_back_as_a_table() -> None:
    batch = ComparisonCollator(pad_token_id=0)([
        {"candidate_ids": [[5], [6, 7]], "best": 0},
        {"candidate_ids": [[5], [6], [7, 8, 9]], "best": 2},
    ])  # fmt: skip
    assert batch["input_ids"].shape == (5, 3)
    table, mask = by_comparison(torch.arange(5.0) + 1, batch["candidates"])
    assert table.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_gradients_flow_through_the_table() -> None:
    scores = torch.arange(5.0, requires_grad=True)
    table, _ = by_comparison(scores, torch.tensor([2, 3]))
    table.sum().backward()
    assert scores.grad.tolist() == [1.0] * 5


def test_a_candidate_that_ends_in_the_pad_token_is_refused() -> None:
    with pytest.raises(ValueError, match="ends in the pad token"):
        ComparisonCollator(pad_token_id=0)([{"candidate_ids": [[5, 0], [5]], "best": 0}])
