"""Comparisons of any K in one batch."""

import doctest

import pytest
import torch

from toolkit.data import collators, text
from toolkit.data.collators import ComparisonCollator, buckets, by_comparison
from toolkit.maths import sequences


def test_the_docstrings_show_what_comes_out() -> None:
    for module in (collators, sequences, text):
        outcome = doctest.testmod(module, extraglobs={"torch": torch})
        assert outcome.attempted > 0 and outcome.failed == 0


def test_mixed_k_is_flattened_and_comes_back_as_a_table() -> None:
    batch = ComparisonCollator(pad_token_id=0)(
        [
            {"candidate_ids": [[5], [6, 7]], "best": 0},
            {"candidate_ids": [[5], [6], [7, 8, 9]], "best": 2},
        ]
    )
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


def test_rankings_scores_and_margins_come_along_where_every_row_has_them() -> None:
    rows = [
        {"candidate_ids": [[5], [6]], "best": 0, "ranking": [0], "scores": [4.0, 2.0], "margin": 2},
        {
            "candidate_ids": [[5], [6], [7]],
            "best": 2,
            "ranking": [2, 0, 1],
            "scores": [1.0, 0.0, 6.0],
            "margin": 5,
        },
    ]
    batch = ComparisonCollator(0, score_mean=2.0, score_std=2.0)(rows)
    assert batch["ranking"].tolist() == [[0, -1, -1], [2, 0, 1]]
    assert batch["target_scores"].tolist() == [1.0, 0.0, -0.5, -1.0, 2.0]
    assert batch["margin"].tolist() == [2.0, 5.0]
    rows[1]["scores"] = None
    assert "target_scores" not in ComparisonCollator(0)(rows)


def test_a_worst_comes_along_if_any_row_has_one() -> None:
    rows = [{"candidate_ids": [[5], [6], [7]], "best": 2, "worst": worst} for worst in (None, 0)]
    assert ComparisonCollator(0)(rows)["worst"].tolist() == [-1, 0]
    assert "worst" not in ComparisonCollator(0)(rows[:1])


def test_buckets_keep_padding_under_their_bound_and_lose_nobody() -> None:
    generator = torch.Generator().manual_seed(0)
    for waste in (0.05, 0.15, 0.5):
        lengths = torch.randint(1, 400, (200,), generator=generator).tolist()
        groups = buckets(lengths, waste)
        assert sorted(i for group in groups for i in group) == list(range(200))
        computed = sum(max(lengths[i] for i in group) * len(group) for group in groups)
        assert 1 - sum(lengths) / computed < waste
    assert len(buckets([7] * 50)) == 1
