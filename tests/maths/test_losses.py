"""O2, O8: the K-way softmax, rankings and pairs; PPO's clipped losses."""

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import RewardTrainer

from toolkit.maths.advantages import gae
from toolkit.maths.losses import (
    RatioOf,
    best_of_k_loss,
    best_vs_rest_loss,
    centering_penalty,
    plackett_luce_loss,
    policy_loss,
    scalar_compare_loss,
    scalar_rating_loss,
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


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("centering", [None, 0.3])
@pytest.mark.parametrize("loss_of_k", [best_of_k_loss, best_vs_rest_loss])
def test_two_way_loss_equals_trls_own(
    loss_of_k: Callable[..., torch.Tensor], centering: float | None, margin: bool
) -> None:
    """TRL 1.16.0's RewardTrainer.compute_loss itself, run on a stub of a trainer."""
    torch.manual_seed(0)
    ours = torch.randn(7, 2, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    margins = torch.rand(7) if margin else None
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centering),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={
            "eval": {
                name: []
                for name in (
                    "num_tokens",
                    "min_reward",
                    "mean_reward",
                    "max_reward",
                    "accuracy",
                    "margin",
                )
            }
        },
        _total_train_tokens=0,
    )

    def model(**inputs: object) -> SimpleNamespace:  # chosen rows first, then rejected
        return SimpleNamespace(logits=torch.cat([theirs[:, 0], theirs[:, 1]]).unsqueeze(1))

    stock = RewardTrainer.compute_loss(stub, model, {"margin": margins} if margin else {})
    loss = loss_of_k(ours, torch.zeros(7, dtype=torch.long), margin=margins)
    if centering:
        loss = loss + centering * centering_penalty(ours, torch.ones(7, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(stock.item(), abs=1e-6)
    loss.backward()
    stock.backward()
    np.testing.assert_allclose(ours.grad, theirs.grad, atol=1e-6)


MIXED = torch.tensor([[0.3, -1.0, 0.8, 9.0], [1.0, 0.5, 9.0, 9.0], [0.1, -0.4, 0.2, 0.9]])
MIXED_MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
MIXED_BEST = torch.tensor([2, 1, 0])


def rows_of(table: torch.Tensor) -> list[np.ndarray]:
    return [r[m].double().numpy() for r, m in zip(table, MIXED_MASK, strict=True)]


def test_label_smoothing_spreads_the_doubt_over_the_others() -> None:
    expected = []
    for r, b in zip(rows_of(MIXED), MIXED_BEST.tolist(), strict=True):
        target = np.full(len(r), 0.1 / (len(r) - 1))
        target[b] = 0.9
        expected.append(-(target * (r - np.log(np.exp(r).sum()))).sum())
    loss = best_of_k_loss(MIXED, MIXED_BEST, MIXED_MASK, label_smoothing=0.1)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_two_way_label_smoothing_is_that_of_conservative_dpo() -> None:
    scores = torch.tensor([[1.0, 0.3]])
    expected = -0.9 * np.log(1 / (1 + np.exp(-0.7))) - 0.1 * np.log(1 / (1 + np.exp(0.7)))
    for loss in (best_of_k_loss, best_vs_rest_loss):
        smooth = loss(scores, torch.tensor([0]), label_smoothing=0.1)
        assert smooth.item() == pytest.approx(expected, abs=1e-6)


def test_best_against_the_rest_of_four() -> None:
    loss = best_vs_rest_loss(R, torch.tensor([2]))
    assert loss.item() == pytest.approx(0.359504, abs=1e-6)


def test_best_against_the_rest_counts_each_comparison_once_whatever_its_k() -> None:
    expected = []
    for r, b in zip(rows_of(MIXED), MIXED_BEST.tolist(), strict=True):
        others = np.delete(r, b)
        expected.append(np.log1p(np.exp(-(r[b] - others))).mean())
    loss = best_vs_rest_loss(MIXED, MIXED_BEST, MIXED_MASK)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_margin_is_a_lead_that_the_best_must_have() -> None:
    lead = best_of_k_loss(R - torch.tensor([[0.0, 0, 0.4, 0]]), torch.tensor([2]))
    loss = best_of_k_loss(R, torch.tensor([2]), margin=torch.tensor([0.4], dtype=torch.float64))
    assert loss.item() == pytest.approx(lead.item(), abs=1e-7)


def test_scalar_losses_equal_numpy_with_mixed_k() -> None:
    targets = torch.tensor([[1.0, 0, 2, 5], [0.5, 0.5, 5, 5], [-1, 0, 1, 2]])
    pairs = list(zip(rows_of(MIXED), rows_of(targets), strict=True))
    squares = np.concatenate([(r - t) ** 2 for r, t in pairs])
    rating = scalar_rating_loss(MIXED, targets, MIXED_MASK)
    assert rating.item() == pytest.approx(squares.mean(), abs=1e-6)
    compare = []
    for r, t in pairs:
        gaps = [
            (r[j] - r[i] - t[j] + t[i]) ** 2 for i in range(len(r)) for j in range(i + 1, len(r))
        ]
        compare.append(np.mean(gaps))
    loss = scalar_compare_loss(MIXED, targets, MIXED_MASK)
    assert loss.item() == pytest.approx(np.mean(compare), abs=1e-6)
    shifted = scalar_compare_loss(MIXED + 7, targets, MIXED_MASK)
    assert shifted.item() == pytest.approx(loss.item(), abs=1e-4)


def test_centering_pulls_each_comparisons_mean_to_zero() -> None:
    expected = np.mean([(2 * r.mean()) ** 2 for r in rows_of(MIXED)])
    assert centering_penalty(MIXED, MIXED_MASK).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [best_of_k_loss, best_vs_rest_loss])
def test_what_stands_outside_the_mask_has_no_say_and_gets_no_gradient(
    loss: Callable[..., torch.Tensor],
) -> None:
    scores = MIXED.clone().requires_grad_()
    value = loss(scores, MIXED_BEST, MIXED_MASK, 0.1)
    value.backward()
    assert torch.isfinite(scores.grad).all() and not scores.grad[~MIXED_MASK].any()
    elsewhere = loss(MIXED.masked_fill(~MIXED_MASK, -50.0), MIXED_BEST, MIXED_MASK, 0.1)
    assert value.item() == pytest.approx(elsewhere.item(), abs=1e-7)


def plackett_luce_numpy(scores: np.ndarray, ranking: list[int]) -> float:
    left, total = list(range(len(scores))), 0.0
    for pick in ranking:
        total -= math.log(np.exp(scores[pick]) / np.exp(scores[left]).sum())
        left.remove(pick)
    return total


def test_plackett_luce_on_a_full_ranking() -> None:
    loss = plackett_luce_loss(R, torch.tensor([[2, 0, 3, 1]]))
    assert loss.item() == pytest.approx(2.166760, abs=1e-6)


def test_plackett_luce_with_mixed_k_and_rankings_of_any_length() -> None:
    rankings = [[2, 0, 1], [1], [3, 0]]
    expected = np.mean(
        [plackett_luce_numpy(s, r) for s, r in zip(rows_of(MIXED), rankings, strict=True)]
    )
    padded = torch.tensor([r + [-1] * (3 - len(r)) for r in rankings])
    scores = MIXED.clone().requires_grad_()
    loss = plackett_luce_loss(scores, padded, MIXED_MASK)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert torch.isfinite(scores.grad).all() and not scores.grad[~MIXED_MASK].any()


def test_a_ranking_is_the_same_whichever_way_the_candidates_stand() -> None:
    order = [3, 1, 0, 2]
    ranking = [2, 0, 3]
    moved = torch.tensor([[order.index(k) for k in ranking]])
    loss = plackett_luce_loss(R[:, order], moved)
    same = plackett_luce_loss(R, torch.tensor([ranking]))
    assert loss.item() == pytest.approx(same.item(), abs=1e-12)


def test_a_ranking_of_one_is_the_pick_of_the_best() -> None:
    assert plackett_luce_loss(MIXED, MIXED_BEST[:, None], MIXED_MASK).item() == pytest.approx(
        best_of_k_loss(MIXED, MIXED_BEST, MIXED_MASK).item(), abs=1e-6
    )


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


def numpy_with_worst(scores: np.ndarray, ranking: list[int], worst: int) -> float:
    """-log of the summed probabilities of every full ranking that agrees, one by one."""
    middle = [k for k in range(len(scores)) if k not in (*ranking, worst)]
    ends = [[*ranking, *order, worst] for order in itertools.permutations(middle)]
    return -math.log(sum(math.exp(-plackett_luce_numpy(scores, order)) for order in ends))


def test_the_best_and_the_worst_sum_over_all_orders_of_the_others() -> None:
    rng = np.random.default_rng(1)
    for k in (2, 3, 4, 7):
        scores = 3 * rng.normal(size=(5, k))
        picks = np.stack([rng.permutation(k)[:2] for _ in range(5)])
        expected = np.mean(
            [numpy_with_worst(s, [b], w) for s, (b, w) in zip(scores, picks, strict=True)]
        )
        best, worst = torch.tensor(picks).T
        loss = plackett_luce_loss(torch.tensor(scores), best[:, None], worst=worst)
        assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_a_worst_by_hand() -> None:
    """Of strengths 1, 2, 3 and 4 the last comes first (4/10), and then 3 and 2, or 2 and 3."""
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64).log()
    loss = plackett_luce_loss(scores, torch.tensor([[3]]), worst=torch.tensor([0]))
    assert loss.item() == pytest.approx(-math.log(0.4 * (3 / 6 * 2 / 3 + 2 / 6 * 3 / 4)), abs=1e-12)


def test_rows_with_and_without_a_worst_and_of_any_k_share_a_batch() -> None:
    rankings, worsts = [[2], [1], [3, 0]], [0, -1, 2]
    rows = list(zip(rows_of(MIXED), rankings, worsts, strict=True))
    expected = np.mean(
        [plackett_luce_numpy(s, r) if w < 0 else numpy_with_worst(s, r, w) for s, r, w in rows]
    )
    padded = torch.tensor([r + [-1] * (2 - len(r)) for r in rankings])
    scores = MIXED.clone().requires_grad_()
    loss = plackett_luce_loss(scores, padded, MIXED_MASK, torch.tensor(worsts))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert torch.isfinite(scores.grad).all() and not scores.grad[~MIXED_MASK].any()

    none = plackett_luce_loss(MIXED, padded, MIXED_MASK, torch.tensor([-1, -1, -1]))
    assert none.item() == plackett_luce_loss(MIXED, padded, MIXED_MASK).item()


def test_a_worst_that_ends_a_full_ranking_adds_nothing_and_an_unlikely_one_stays_exact() -> None:
    ranking = torch.tensor([[2, 0, 3, 1]])
    full = plackett_luce_loss(R, ranking)
    for named in (ranking, ranking[:, :3]):
        assert plackett_luce_loss(R, named, worst=torch.tensor([1])).item() == pytest.approx(
            full.item(), abs=1e-12
        )

    # 60 nats above all others: it comes last with a probability of about 2 exp(-120).
    scores = torch.tensor([[60.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    loss = plackett_luce_loss(scores, torch.tensor([[1]]), worst=torch.tensor([0]))
    assert loss.item() == pytest.approx(180 - math.log(2), abs=1e-9)


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


@pytest.mark.parametrize(
    ("ratio_of", "ratios", "expected"),
    [
        ("token", [[1.105171, 0.818731], [1.349859, 1.105171]], 0.132782),
        ("completion", [[0.904837] * 2, [1.491825] * 2], 0.293494),
        ("completion_mean", [[0.951229] * 2, [1.221403] * 2], 0.135087),
    ],
)
def test_a_ratio_is_a_tokens_or_its_completions(
    ratio_of: RatioOf, ratios: list[list[float]], expected: float
) -> None:
    log_ratio = torch.tensor([[0.1, -0.2], [0.3, 0.1]]).double()
    advantages = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double()
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss, stats = policy_loss(
        log_ratio, torch.zeros(2, 2), advantages, 0.2, mask, ratio_of=ratio_of
    )
    assert stats["ratio"].item() == pytest.approx(np.mean(ratios), abs=1e-6)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    # Padding is not part of a completion's ratio.
    wide = torch.cat([mask, torch.zeros_like(mask)], dim=1)
    padded = [
        torch.cat([x, torch.full((2, 2), 5.0).double()], dim=1) for x in (log_ratio, advantages)
    ]
    again, _ = policy_loss(padded[0], torch.zeros(2, 4), padded[1], 0.2, wide, ratio_of=ratio_of)
    assert again.item() == pytest.approx(loss.item(), abs=1e-12)
