"""Each loss of comparisons: what it says of itself is held against what it does."""

import math

import pytest
import torch
from torch import Tensor

from toolkit.training.reward.losses import LOSSES, Batch, Loss

SCORES = torch.tensor([[0.3, -1.2, 2.0], [1.1, 0.4, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
RATINGS = torch.tensor([1.0, 0.0, 3.0, -1.0, 2.0])  # flat, of the five candidates


def batch(scores: Tensor = RATINGS) -> Batch:
    return {
        "best": torch.tensor([2, 0]),
        "ranking": torch.tensor([[2, 0, 1], [0, 1, -1]]),
        "target_scores": scores,
        "candidates": torch.tensor([3, 2]),
    }


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_on_all_scores_is_seen_only_by_a_loss_that_fixes_zero(name: Loss) -> None:
    loss = LOSSES[name]
    same = torch.allclose(loss(SCORES + 5, MASK, batch()), loss(SCORES, MASK, batch()))
    assert same != loss.fixes_zero


@pytest.mark.parametrize("name", LOSSES)
def test_a_margin_raises_the_losses_that_take_one_and_no_others(name: Loss) -> None:
    loss = LOSSES[name]
    without = loss(SCORES, MASK, batch())
    lead = loss(SCORES, MASK, batch(), margin=torch.tensor([1.0, 1.0]))
    assert (lead > without) == loss.takes_margin
    assert loss.takes_margin or torch.equal(lead, without)


@pytest.mark.parametrize("name", LOSSES)
def test_ratings_are_read_by_the_losses_that_want_scores_and_picks_by_the_others(
    name: Loss,
) -> None:
    loss = LOSSES[name]
    plain = loss(SCORES, MASK, batch())
    rated = loss(SCORES, MASK, batch(RATINGS.flip(0)))
    other_picks = batch() | {
        "best": torch.tensor([0, 1]),
        "ranking": torch.tensor([[0, 1, 2], [1, 0, -1]]),
    }
    picked = loss(SCORES, MASK, other_picks)
    assert torch.equal(plain, rated) == (loss.wants == "best")
    assert torch.equal(plain, picked) == (loss.wants == "scores")


@pytest.mark.parametrize("name", LOSSES)
def test_where_there_is_no_candidate_a_score_counts_for_nothing(name: Loss) -> None:
    padded = SCORES.masked_fill(~MASK, 100.0)
    torch.testing.assert_close(
        LOSSES[name](padded, MASK, batch()), LOSSES[name](SCORES, MASK, batch())
    )


def test_equal_scores_cost_what_a_guess_costs() -> None:
    """Of K candidates a guess finds the best with probability 1/K, a pair's with 1/2."""
    flat, both = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    rows = {"best": torch.tensor([1]), "ranking": torch.tensor([[1, 0, 3, 2]])}
    guess = {"best_of_k": 4, "best_vs_rest": 2, "plackett_luce": math.factorial(4)}
    found = {name: LOSSES[name](flat, both, rows).item() for name in guess}  # type: ignore[index]
    assert found == pytest.approx({name: math.log(ways) for name, ways in guess.items()})


def test_scores_that_are_the_ratings_cost_nothing() -> None:
    table = torch.tensor([[1.0, 0.0, 3.0], [-1.0, 2.0, 0.0]])
    for name in ("scalar_rating", "scalar_compare"):
        assert LOSSES[name](table, MASK, batch()).item() == 0  # type: ignore[index]
    assert LOSSES["scalar_rating"](table + 2, MASK, batch()).item() == pytest.approx(4)


@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_a_weight_of_two_is_having_a_comparison_twice(loss_type: Loss) -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    targets = torch.randn(3, 4, generator=rng, dtype=torch.float64)

    def loss(rows: list[int], weight: list[float] | None) -> tuple[float, torch.Tensor]:
        own = scores.clone().requires_grad_()
        batch = {
            "best": torch.tensor([0, 3, 2])[rows],
            "ranking": torch.tensor([[0, 1], [3, -1], [2, 0]])[rows],
            "worst": torch.tensor([-1, 1, 3])[rows],
            "target_scores": targets[rows].flatten(),
            "candidates": torch.full((len(rows),), 4),
        }
        if weight is not None:
            batch["weight"] = torch.tensor(weight, dtype=torch.float64)
        mask = torch.ones(len(rows), 4, dtype=torch.bool)
        found = LOSSES[loss_type](own[rows], mask, batch)
        (gradient,) = torch.autograd.grad(found, own)
        return found.item(), gradient

    # Weights of mean 1: 3/4, 6/4 and 3/4 for the ratios 1, 2, 1.
    weighted, gradient = loss([0, 1, 2], [0.75, 1.5, 0.75])
    twice, expected = loss([0, 1, 1, 2], None)
    assert weighted == pytest.approx(twice, rel=1e-9)
    torch.testing.assert_close(gradient, expected)
    assert loss([0, 1, 2], [1.0, 1.0, 1.0])[0] == loss([0, 1, 2], None)[0]
