"""GAE, and baselines from siblings."""

import numpy as np
import pytest
import torch

from toolkit.maths.advantages import gae, group_moments, leave_one_out
from toolkit.maths.masking import whiten

VALUES = torch.tensor([[0.5, 0.4, 0.3]], dtype=torch.float64)
REWARDS = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        (1.0, 0.95, [0.436750, 0.565, 0.7]),
        (1.0, 1.0, [0.5, 0.6, 0.7]),
        (1.0, 0.0, [-0.1, -0.1, 0.7]),
        (0.9, 0.95, [0.260567, 0.4685, 0.7]),
    ],
)
def test_advantages_for_gamma_and_lambda(gamma: float, lam: float, expected: list[float]) -> None:
    advantages, returns = gae(REWARDS, VALUES, gamma, lam)
    np.testing.assert_allclose(advantages[0], expected, atol=1e-6)
    np.testing.assert_allclose(returns, advantages + VALUES, atol=1e-12)


def test_returns_are_advantages_plus_values() -> None:
    _, returns = gae(REWARDS, VALUES, 1.0, 0.95)
    np.testing.assert_allclose(returns[0], [0.93675, 0.965, 1.0], atol=1e-6)


def test_without_values_advantages_decay_from_the_end() -> None:
    advantages, _ = gae(REWARDS, torch.zeros_like(VALUES), 1.0, 0.95)
    np.testing.assert_allclose(advantages[0], [0.9025, 0.95, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("gamma", "steps", "expected"),
    [
        (1.0, 1, [0.4, 0.3, 1.0]),
        (1.0, 3, [1.0, 1.0, 1.0]),
        (0.9, 1, [0.36, 0.27, 1.0]),
        (0.9, 3, [0.81, 0.9, 1.0]),
    ],
)
def test_lambda_zero_is_the_one_step_return_and_lambda_one_the_whole(
    gamma: float, steps: int, expected: list[float]
) -> None:
    _, returns = gae(REWARDS, VALUES, gamma, 0.0 if steps == 1 else 1.0)
    np.testing.assert_allclose(returns[0], expected, atol=1e-9)


def test_batch_of_whitened_rewards() -> None:
    rewards = torch.tensor([[-0.03, 0.15, 0.4], [-0.015, 0.015, -0.7]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.4, 0.3], [-0.1, 0.2, 0.0]], dtype=torch.float64)
    whitened = whiten(rewards, shift_mean=False)
    np.testing.assert_allclose(
        whitened, [[-0.03, 0.509279, 1.258278], [0.01494, 0.10482, -2.037317]], atol=1e-6
    )
    advantages, returns = gae(whitened, values, 1.0, 0.95)
    np.testing.assert_allclose(
        advantages,
        [[1.123661, 1.319643, 0.958278], [-1.614160, -2.030631, -2.037317]],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        whiten(advantages),
        [[0.986721, 1.115319, 0.878201], [-0.809766, -1.083044, -1.087431]],
        atol=1e-6,
    )
    assert returns.mean().item() == pytest.approx(-0.163421, abs=1e-6)
    assert returns.var(correction=0).item() == pytest.approx(2.909448, abs=1e-6)


def test_padding_behind_the_end_changes_nothing() -> None:
    mask = torch.tensor([[True, True, True, False, False]])
    garbage = torch.full((1, 2), 9.0, dtype=torch.float64)
    advantages, returns = gae(
        torch.cat([REWARDS, garbage], 1), torch.cat([VALUES, garbage], 1), 1.0, 0.95, mask
    )
    alone, alone_returns = gae(REWARDS, VALUES, 1.0, 0.95)
    np.testing.assert_allclose(advantages[:, :3], alone, atol=1e-12)
    np.testing.assert_allclose(returns[:, :3], alone_returns, atol=1e-12)
    assert not advantages[:, 3:].any() and not returns[:, 3:].any()


def test_lambda_one_telescopes_to_the_whole_return_minus_value() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    advantages, _ = gae(torch.tensor(rewards), torch.tensor(values), 0.9, 1.0)
    discounts = 0.9 ** np.arange(8)
    for t in range(8):
        expected = (rewards[:, t:] * discounts[: 8 - t]).sum(1) - values[:, t]
        np.testing.assert_allclose(advantages[:, t], expected, atol=1e-9)


def test_a_completion_is_measured_against_its_siblings_mean() -> None:
    totals = torch.tensor([1.0, 0.0, 0.5, -1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 1.0, 1.0, 3.0])
    baseline = leave_one_out(totals, torch.ones(12, dtype=torch.bool), 4)
    expected = [
        1.166667,
        -0.166667,
        0.5,
        -1.5,
        0,
        0,
        0,
        0,
        1.333333,
        -1.333333,
        -1.333333,
        1.333333,
    ]
    np.testing.assert_allclose(totals - baseline, expected, atol=1e-6)


def test_what_has_no_score_is_nobodys_sibling() -> None:
    totals = torch.tensor([1.0, 9.0, 3.0, 5.0, 7.0, 7.0])
    scored = torch.tensor([True, False, True, True, False, False])
    baseline = leave_one_out(totals, scored, 3)
    np.testing.assert_allclose(baseline[:3], [3.0, 2.0, 1.0])
    np.testing.assert_allclose(baseline[3:], [0.0, 5.0, 5.0])


def test_a_groups_mean_and_sample_deviation_are_numpys() -> None:
    totals = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    mean, deviation = group_moments(totals, torch.ones(12, dtype=torch.bool), 4)
    groups = totals.numpy().reshape(3, 4)
    np.testing.assert_allclose(mean, groups.mean(1).repeat(4), atol=1e-12)
    np.testing.assert_allclose(deviation, groups.std(1, ddof=1).repeat(4), atol=1e-12)


def test_a_groups_moments_leave_out_what_has_no_score() -> None:
    totals = torch.tensor([1.0, 9.0, 3.0, 5.0, 7.0, 7.0, 8.0, 8.0, 8.0])
    scored = torch.tensor([True, False, True, True, False, False, False, False, False])
    mean, deviation = group_moments(totals, scored, 3)
    np.testing.assert_allclose(mean, [2, 2, 2, 5, 5, 5, 0, 0, 0])
    np.testing.assert_allclose(deviation, [2**0.5] * 3 + [0.0] * 6, atol=1e-6)
