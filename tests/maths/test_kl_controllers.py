"""O1: controllers of the KL penalty's coefficient."""

import math

import pytest

from toolkit.maths.kl_controllers import AdaptiveKLController, FixedKLController, preview_kl


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
