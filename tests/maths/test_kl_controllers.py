"""O1: controllers of the KL penalty's coefficient."""

import math

import pytest

from toolkit.maths.kl_controllers import (
    AdaptiveKLController,
    FixedKLController,
    ProportionalIntegralKLController,
    preview_kl,
)


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


def test_it_does_not_wind_up_while_the_kl_is_on_its_way() -> None:
    """The adaptive controller would have fallen by 2 % for each of the 30 updates."""
    controller = ProportionalIntegralKLController(0.5, kl_target=5, kl_horizon=10)
    for update in range(30):
        controller.update(0.15 * update, episodes=1)
        assert controller.value == 0.5


def test_a_kl_that_rises_no_longer_is_taken_to_its_target_after_a_horizon() -> None:
    """At 2.45 nats for 10 updates: then sqrt(2.45 / 5) = 0.7 of the base, which falls by 2 %."""
    controller = ProportionalIntegralKLController(0.5, kl_target=5, kl_horizon=10)
    controller.update(4.99, episodes=1)  # the level is half of it, and falls from here on
    seen = []
    for _ in range(11):
        controller.update(2.45, episodes=1)
        seen.append(controller.value)
    assert seen[:9] == [0.5] * 9
    assert seen[9] == pytest.approx(0.7 * 0.5 * 0.98)
    assert seen[10] == pytest.approx(0.7 * 0.5 * 0.98**2)


def test_beyond_its_target_it_answers_at_once() -> None:
    """12 nats for a target of 5: sqrt(2.4) times the base, which rises by 0.2 / 10."""
    controller = ProportionalIntegralKLController(0.5, kl_target=5, kl_horizon=10)
    controller.update(12.0, episodes=1)
    assert controller.value == pytest.approx(0.5 * 1.02 * 2.4**0.5)
    controller.update(5.0, episodes=1)
    assert controller.value == pytest.approx(0.5 * 1.02)
    controller.update(500.0, episodes=1)
    assert controller.value == pytest.approx(0.5 * 1.02**2 * 2)


@pytest.mark.parametrize("kind", [AdaptiveKLController, ProportionalIntegralKLController])
@pytest.mark.parametrize("lag", [5, 20])
def test_it_holds_a_slow_process_that_the_adaptive_controller_lets_swing(
    kind: type[AdaptiveKLController], lag: float
) -> None:
    """log KL goes a share of 1 / lag of the way to log(target) - 2 log(coef / right coef)."""
    controller, log_kl = kind(0.4, 5.0, kl_horizon=10), math.log(0.5)
    path = []
    for _ in range(300):
        path.append(math.exp(log_kl))
        log_kl += (math.log(5) - 2 * math.log(controller.value / 0.4) - log_kl) / lag
        controller.update(path[-1], 1)
    peak = max(path) / 5
    if kind is AdaptiveKLController:
        assert peak > 1.2
    else:
        assert peak < 1.05
    assert sum(path[-60:]) / 60 == pytest.approx(5, rel=0.03)


def test_its_state_goes_on_exactly() -> None:
    one, other = (ProportionalIntegralKLController(0.5, 5, 10) for _ in range(2))
    kls = [1.0, 4.0, 7.0, 6.0, 2.0, 5.0]
    for kl in kls[:3]:
        one.update(kl, 1)
    other.load_state_dict(one.state_dict())
    for kl in kls[3:]:
        one.update(kl, 1)
        other.update(kl, 1)
    assert one.state_dict() == other.state_dict() and one.value != 0.5


@pytest.mark.parametrize("kind", [AdaptiveKLController, ProportionalIntegralKLController])
def test_a_second_estimate_keeps_what_was_found_out_since_the_first(
    kind: type[AdaptiveKLController],
) -> None:
    controller = kind(math.nan, 5, 10)
    controller.start_at(0.4)
    assert controller.value == 0.4
    controller.update(50.0, 1)
    risen = controller.value / 0.4
    assert risen > 1
    controller.start_at(0.2)
    assert controller.value == pytest.approx(0.2 * risen)
    controller.update(5.0, 1)
    assert 0.2 < controller.value < 0.2 * 2.5  # the base has moved, too


def test_an_estimate_from_the_policys_own_samples_is_taken_as_it_is() -> None:
    controller = ProportionalIntegralKLController(math.nan, 5, 10)
    controller.start_at(0.4)
    for _ in range(5):
        controller.update(10.0, 1)
    controller.start_at(0.2, anew=True)
    for kl in (3.0, 3.5, 4.0, 4.5):  # it waits again while the policy learns the other reward
        controller.update(kl, 1)
        assert controller.value == 0.2
    controller.update(5.0, 1)
    assert controller.value == pytest.approx(0.2)  # at the target the base is the value
    controller.update(6.0, 1)
    assert controller.value > 0.21


def test_an_estimate_stays_between_floor_and_ceiling() -> None:
    controller = ProportionalIntegralKLController(math.nan, 5, 10, None, 0.1, 0.3)
    controller.start_at(2.0)
    assert controller.value == 0.3
