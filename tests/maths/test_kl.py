"""O6, O15: where the penalty enters, and estimators."""

import math

import numpy as np
import pytest
import torch

from toolkit.maths.kl import kl_estimate, penalized_rewards

LOGPROBS = torch.tensor([[-1, -2, -0.5], [-0.2, -1.5, -3]], dtype=torch.float64)
REFERENCE = torch.tensor([[-1.2, -1, -0.5], [-0.3, -1.4, -1]], dtype=torch.float64)
SCORES = torch.tensor([0.4, -1.0], dtype=torch.float64)
FULL = torch.ones(2, 3, dtype=torch.bool)


def test_penalty_lowers_rewards_and_score_lands_on_the_last_token() -> None:
    kl = kl_estimate(LOGPROBS, REFERENCE)
    rewards = penalized_rewards(SCORES, kl, 0.15, FULL)
    expected = [[-0.03, 0.15, 0.4], [-0.015, 0.015, -0.7]]
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    np.testing.assert_allclose(kl.sum(1), [-0.8, -2.0], atol=1e-6)
    assert kl.sum(1).mean().item() == pytest.approx(-1.4, abs=1e-6)
    non_score = -0.15 * kl.sum(1).mean().item()
    assert non_score == pytest.approx(0.21, abs=1e-6)
    assert SCORES.mean().item() + non_score == pytest.approx(-0.09, abs=1e-6)


def test_score_lands_on_last_real_token() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = penalized_rewards(torch.tensor([5.0, 7.0]), torch.ones(2, 3), 0.1, mask)
    expected = [[-0.1, 4.9, 0.0], [-0.1, -0.1, 6.9]]
    np.testing.assert_allclose(rewards, expected, atol=1e-6)


def test_a_better_score_raises_rewards_and_a_higher_kl_lowers_them() -> None:
    """The sign test: a refactor that flips either sign makes the worst text there is."""
    kl = torch.full((2, 3), 0.5)
    low = penalized_rewards(torch.tensor([0.0, 0.0]), kl, 0.2, FULL).sum()
    assert penalized_rewards(torch.tensor([1.0, 1.0]), kl, 0.2, FULL).sum() > low
    assert penalized_rewards(torch.tensor([0.0, 0.0]), 2 * kl, 0.2, FULL).sum() < low


def test_totals_equal_published_samples() -> None:
    def total(score: float, kl: float, kl_coef: float) -> float:
        one = torch.ones(1, 1, dtype=torch.bool)
        score_, kl_ = torch.tensor([score]).double(), torch.tensor([[kl]]).double()
        return penalized_rewards(score_, kl_, kl_coef, one).item()

    assert total(1.86, 7.88, 0.15) == pytest.approx(0.678, abs=1e-6)
    assert total(3.0, math.log(0.08 / 0.02), 0.5) == pytest.approx(2.306853, abs=1e-6)


@pytest.mark.parametrize(
    ("logq", "logp", "expected"),
    [(-1, -1.2, (0.2, 0.02, 0.018731)), (-2, -1, (-1, 0.5, 0.718282)), (-1, -1, (0, 0, 0))],
)
def test_kl_estimators_on_single_tokens(logq: float, logp: float, expected: tuple) -> None:
    q, p = torch.tensor([[logq]]).double(), torch.tensor([[logp]]).double()
    for name, value in zip(("k1", "k2", "k3"), expected, strict=True):
        assert kl_estimate(q, p, name).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "kl", "spreads", "k2_bias"),
    [
        (0.1, 0.005, (20, 1.417745, 1.416575), 0.0025 * 0.005),
        (1.0, 0.5, (2, 1.732051, 1.695030), 0.25 * 0.5),
    ],
)
def test_kl_estimators_on_gaussians(mean: float, kl: float, spreads: tuple, k2_bias: float) -> None:
    """q = N(0, 1), p = N(mean, 1), integrated over q on a grid: mean and std / KL of each."""
    x = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    weights = torch.exp(-(x**2) / 2)
    weights /= weights.sum()
    logq, logp = -(x**2) / 2, -((x - mean) ** 2) / 2
    for name, spread in zip(("k1", "k2", "k3"), spreads, strict=True):
        values = kl_estimate(logq, logp, name)
        average = (weights * values).sum().item()
        std = (weights * (values - average) ** 2).sum().sqrt().item()
        assert average == pytest.approx(kl + (k2_bias if name == "k2" else 0), rel=1e-6)
        assert std / kl == pytest.approx(spread, rel=1e-5)


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(LOGPROBS, REFERENCE, "k4")
