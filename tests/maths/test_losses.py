"""O2, O8: the K-way softmax, rankings and pairs; PPO's clipped losses."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import RewardTrainer

from toolkit.maths.advantages import gae
from toolkit.maths.losses import (
    best_of_k_loss,
    pairwise_loss,
    plackett_luce_loss,
    policy_loss,
    value_loss,
)
from toolkit.maths.masking import masked_var, whiten

R = torch.tensor([[0.5, -0.2, 1.0, 0.1]], dtype=torch.float64)


def loss_of(scores: list[float], best: int) -> float:
    return best_of_k_loss(torch.tensor([scores], dtype=torch.float64), torch.tensor([best])).item()


def test_equal_scores_cost_ln_k() -> None:
    for k in (2, 3, 4, 9):
        assert loss_of([0.7] * k, 0) == pytest.approx(math.log(k), abs=1e-6)


@pytest.mark.parametrize(
    ("best", "expected"), [(0, 1.339105), (1, 2.039105), (2, 0.839105), (3, 1.739105)]
)
def test_best_of_four_loss_for_each_pick(best: int, expected: float) -> None:
    assert loss_of(R[0].tolist(), best) == pytest.approx(expected, abs=1e-6)
    assert loss_of((R[0] + 100).tolist(), best) == pytest.approx(expected, abs=1e-6)


def test_best_of_k_further_oracles() -> None:
    assert loss_of([1, 1, 0, 0], 0) == pytest.approx(1.006409, abs=1e-6)
    assert loss_of([1, 0], 0) == pytest.approx(0.313262, abs=1e-6)
    assert loss_of([0, 1, 2, -1], 2) == pytest.approx(0.440190, abs=1e-6)


def test_best_of_four_gradient_is_softmax_minus_the_pick() -> None:
    scores = R.clone().requires_grad_()
    best_of_k_loss(scores, torch.tensor([2])).backward()
    expected = [[0.262080, 0.130145, -0.567903, 0.175678]]
    np.testing.assert_allclose(scores.grad, expected, atol=1e-6)


def test_gain_gets_a_gradient_and_bias_gets_none() -> None:
    gain = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    best_of_k_loss(gain * R + bias, torch.tensor([2])).backward()
    assert gain.grad.item() == pytest.approx(-0.445324, abs=1e-6)
    assert bias.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_missing_candidates_take_no_part() -> None:
    padded = torch.tensor([[0.5, -0.2, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False, False]])
    assert best_of_k_loss(padded, torch.tensor([1]), mask).item() == pytest.approx(
        loss_of([0.5, -0.2], 1), abs=1e-6
    )


def test_permuting_the_candidates_changes_nothing() -> None:
    order = torch.tensor([3, 1, 0, 2])
    moved = best_of_k_loss(R[:, order], torch.tensor([order.tolist().index(2)]))
    assert moved.item() == pytest.approx(loss_of(R[0].tolist(), 2), abs=1e-12)


def test_two_way_loss_equals_trls_own() -> None:
    """TRL 1.16.0's RewardTrainer.compute_loss itself, run on a stub of a trainer."""
    torch.manual_seed(0)
    ours = torch.randn(7, 2, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": {name: [] for name in (
            "num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")}},
        _total_train_tokens=0,
    )  # fmt: skip

    def model(**inputs: object) -> SimpleNamespace:  # chosen rows first, then rejected
        return SimpleNamespace(logits=torch.cat([theirs[:, 0], theirs[:, 1]]).unsqueeze(1))

    stock = RewardTrainer.compute_loss(stub, model, {})
    loss = best_of_k_loss(ours, torch.zeros(7, dtype=torch.long))
    assert loss.item() == pytest.approx(stock.item(), abs=1e-6)
    assert pairwise_loss(ours[:, 0], ours[:, 1]).item() == pytest.approx(stock.item(), abs=1e-6)
    loss.backward()
    stock.backward()
    np.testing.assert_allclose(ours.grad, theirs.grad, atol=1e-6)


def plackett_luce_numpy(scores: np.ndarray, ranking: list[int]) -> float:
    left, total = list(range(len(scores))), 0.0
    for pick in ranking:
        total -= math.log(np.exp(scores[pick]) / np.exp(scores[left]).sum())
        left.remove(pick)
    return total


def test_plackett_luce_on_a_full_ranking() -> None:
    loss = plackett_luce_loss(R, torch.tensor([[2, 0, 3, 1]]))
    assert loss.item() == pytest.approx(2.166760, abs=1e-6)


def test_plackett_luce_equals_numpy_on_full_and_partial_rankings() -> None:
    rng = np.random.default_rng(0)
    for r in (1, 2, 4):
        scores = rng.normal(size=(6, 5))
        rankings = np.stack([rng.permutation(5)[:r] for _ in range(6)])
        expected = np.mean(
            [plackett_luce_numpy(s, list(p)) for s, p in zip(scores, rankings, strict=True)]
        )
        loss = plackett_luce_loss(torch.tensor(scores), torch.tensor(rankings))
        assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_a_ranking_of_one_is_a_pick() -> None:
    loss = plackett_luce_loss(R, torch.tensor([[2]]))
    assert loss.item() == pytest.approx(loss_of(R[0].tolist(), 2), abs=1e-12)


# O8 stands on O7's batch: rewards whitened without shift, then GAE, then whitened advantages.
REWARDS = torch.tensor([[-0.03, 0.15, 0.4], [-0.015, 0.015, -0.7]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.4, 0.3], [-0.1, 0.2, 0.0]], dtype=torch.float64)
LOG_RATIO = torch.tensor([[0.1, -0.3, 0.25], [0, 0.05, -0.4]], dtype=torch.float64)
VALUE_MOVE = torch.tensor([[0.1, -0.5, 0.3], [0, 0.25, -0.1]], dtype=torch.float64)
FULL = torch.ones(2, 3, dtype=torch.bool)


def test_ppo_losses_and_statistics_of_a_batch() -> None:
    advantages, returns = gae(whiten(REWARDS, shift_mean=False), VALUES, 1.0, 0.95)
    pg, pg_stats = policy_loss(LOG_RATIO, torch.zeros(2, 3), whiten(advantages), 0.2, FULL)
    vf, vf_stats = value_loss(VALUES + VALUE_MOVE, VALUES, returns, 0.2, FULL)
    assert pg.item() == pytest.approx(-0.025384, abs=1e-6)
    assert pg_stats["clipfrac"].item() == pytest.approx(0.333333, abs=1e-6)
    assert vf.item() == pytest.approx(1.374496, abs=1e-6)
    assert vf_stats["clipfrac"].item() == pytest.approx(0.166667, abs=1e-6)
    assert (pg + 0.1 * vf).item() == pytest.approx(0.112066, abs=1e-6)
    assert pg_stats["approxkl"].item() == pytest.approx(0.027083, abs=1e-6)
    assert vf_stats["error"].item() == pytest.approx(2.725384, abs=1e-6)
    explained = 1 - vf_stats["error"].item() / masked_var(returns).item()
    assert explained == pytest.approx(0.063264, abs=1e-6)


def test_unchanged_policy_has_ratio_one_and_loss_zero_on_whitened_advantages() -> None:
    advantages = whiten(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    loss, stats = policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), advantages, 0.2, FULL)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert stats["ratio"].item() == 1.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1, -1.2), (1.5, -1, 1.5), (0.5, 1, -0.5), (0.5, -1, 0.8)],
)
def test_clip_takes_the_worse_of_both(ratio: float, advantage: float, expected: float) -> None:
    one = torch.ones(1, 1, dtype=torch.bool)
    new = torch.tensor([[math.log(ratio)]]).double()
    loss, _ = policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2, one)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_padding_has_no_part_in_ppo_losses() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    garbage = torch.where(mask, LOG_RATIO, torch.tensor(7.0, dtype=torch.float64))
    kept = [LOG_RATIO[0, :2], LOG_RATIO[1]]
    advantages = torch.ones(2, 3)
    loss, _ = policy_loss(garbage, torch.zeros(2, 3), advantages, 0.2, mask)
    by_hand = torch.cat([torch.max(-k.exp(), -k.exp().clamp(0.8, 1.2)) for k in kept]).mean()
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-9)
