"""O1, O6, O15: controllers, where the penalty enters, estimators."""

import math

import numpy as np
import pytest
import torch

from toolkit.maths.kl import (
    AdaptiveKLController,
    FixedKLController,
    kl_estimate,
    penalized_rewards,
    preview_kl,
)

LOGPROBS = torch.tensor([[-1, -2, -0.5], [-0.2, -1.5, -3]], dtype=torch.float64)
REFERENCE = torch.tensor([[-1.2, -1, -0.5], [-0.3, -1.4, -1]], dtype=torch.float64)
SCORES = torch.tensor([0.4, -1.0], dtype=torch.float64)
FULL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kl", "multiplier"),
    [
        (0, 0.989760), (3, 0.989760), (4.8, 0.989760), (5.4, 0.994880), (6, 1.0),
        (6.6, 1.005120), (7.2, 1.010240), (12, 1.010240), (1e9, 1.010240),
    ],
)  # fmt: skip
def test_adaptive_controller_multiplies_by_the_clipped_error(kl: float, multiplier: float) -> None:
    controller = AdaptiveKLController(0.15, kl_target=6, kl_horizon=10_000)
    controller.update(kl, episodes=512)
    assert controller.value == pytest.approx(0.15 * multiplier, abs=1e-6)


def test_adaptive_controller_over_a_hundred_updates_above_target() -> None:
    controller = AdaptiveKLController(0.15, 6, 10_000)
    for _ in range(100):
        controller.update(12, 512)
    assert controller.value == pytest.approx(0.415477, abs=1e-6)


def test_adaptive_controller_follows_a_trace() -> None:
    controller = AdaptiveKLController(0.15, 6, 10_000)
    for kl in (0, 2, 5, 8, 7, 6):
        controller.update(kl, 512)
    assert controller.value == pytest.approx(0.148438, abs=1e-6)


def test_papers_form_is_a_horizon_of_ten_batches() -> None:
    controller = AdaptiveKLController(1.0, 6, kl_horizon=10 * 1024)
    controller.update(12, 1024)
    assert controller.value == pytest.approx(1.02, abs=1e-9)  # K_beta = 0.1, error clipped to 0.2


@pytest.mark.parametrize(("horizon", "updates"), [(10_000, 68.036), (5_120, 35.003)])
def test_doubling_time_under_a_kl_far_above_target(horizon: float, updates: float) -> None:
    controller = AdaptiveKLController(1.0, 6, horizon)
    controller.update(100, 512)
    assert math.log(2) / math.log(controller.value) == pytest.approx(updates, abs=1e-3)


def test_counting_one_of_eight_ranks_would_be_eight_times_too_slow() -> None:
    controller = AdaptiveKLController(1.0, 6, 10_000)
    controller.update(12, 64)
    assert controller.value == pytest.approx(1.001280, abs=1e-6)


def test_controller_refuses_a_kl_that_is_not_finite_and_keeps_its_value() -> None:
    controller = AdaptiveKLController(0.15, 6, 10_000)
    with pytest.raises(ValueError, match="KL is nan"):
        controller.update(float("nan"), 512)
    assert controller.value == 0.15


def test_fixed_controller_never_moves() -> None:
    controller = FixedKLController(0.03)
    controller.update(1e9, 512)
    assert controller.value == 0.03


def test_controller_state_survives_a_round_trip() -> None:
    controller, other = AdaptiveKLController(0.15, 6, 10_000), AdaptiveKLController(9, 6, 10_000)
    controller.update(12, 512)
    other.load_state_dict(controller.state_dict())
    assert other.value == controller.value


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


def test_the_papers_form_ignores_the_batch() -> None:
    """O1: at KL 12 with target 6 the paper's coefficient rises by 2 %, whatever the batch."""
    for episodes in (64, 512):
        controller = AdaptiveKLController(0.15, 6.0, 10_000, k_beta=0.1)
        controller.update(12.0, episodes)
        assert controller.value == pytest.approx(0.15 * 1.02)


def test_both_forms_agree_where_the_horizon_is_ten_batches() -> None:
    code, paper = (AdaptiveKLController(0.15, 6.0, 5120, k_beta=k) for k in (None, 0.1))
    for kl in (0.0, 2.0, 5.0, 8.0, 7.0, 6.0):
        code.update(kl, 512)
        paper.update(kl, 512)
        assert code.value == pytest.approx(paper.value, rel=1e-12)


def test_the_coefficient_stays_between_floor_and_ceiling() -> None:
    controller = AdaptiveKLController(0.15, 6.0, 512, floor=0.1, ceiling=0.2)
    for _ in range(10):
        controller.update(0.0, 512)
    assert controller.value == 0.1
    for _ in range(10):
        controller.update(1e3, 512)
    assert controller.value == 0.2


def test_a_preview_settles_with_a_short_horizon_and_not_with_a_long_one() -> None:
    """Where the simulated policy stands at 1 / (2 coef^2), target 6 means coef = 0.2887."""
    short = preview_kl(AdaptiveKLController(1.0, 6.0, 1000), 300, 100, stiffness=1.0, lag=5)
    kl, coefficient = short[-1]
    assert kl == pytest.approx(6.0, rel=0.01) and coefficient == pytest.approx(12**-0.5, rel=0.01)
    long = preview_kl(AdaptiveKLController(1.0, 6.0, 100_000), 300, 100, stiffness=1.0, lag=5)
    assert long[-1][0] < 3.0
