"""O14: the KL-optimal policy. M11: a line over the square root of the KL."""

import itertools
import math

import pytest
import torch

from toolkit.maths.frontier import (
    best_of_n_kl,
    best_of_n_score,
    coefficient_at,
    exponential_tilt,
    mixture_logprobs,
    sqrt_fit,
    supported_kl,
    tilt_at_kl,
)

RHO, REWARD = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("beta", "score", "kl", "log_partition"),
    [(10, 0.762305, 0.003136, 0.730942), (1, 1.350056, 0.322834, 1.027222),
     (0.5, 1.764107, 0.915475, 1.306369), (0.2, 1.989771, 1.548123, 1.680146)],
)  # fmt: skip
def test_optimum_of_an_enumerated_reference(
    beta: float, score: float, kl: float, log_partition: float
) -> None:
    tilt = exponential_tilt(REWARD, beta, RHO.double().log())
    assert tilt.score == pytest.approx(score, abs=1e-6)
    assert tilt.kl == pytest.approx(kl, abs=1e-6)
    assert tilt.score - beta * tilt.kl == pytest.approx(log_partition, abs=1e-6)


def test_kl_cannot_exceed_that_of_always_taking_the_best() -> None:
    tilt = exponential_tilt(REWARD, 1e-3, RHO.double().log())
    assert tilt.kl == pytest.approx(1.609438, abs=1e-5)


def test_estimate_from_samples() -> None:
    tilt = exponential_tilt(torch.tensor([[0.1, -0.4, 1.2, 2.0, 0.3]]), 0.5)
    assert tilt.score == pytest.approx(1.778407, abs=1e-6)
    assert tilt.kl == pytest.approx(0.930493, abs=1e-6)
    assert 1 <= tilt.effective_samples <= 5


def test_estimate_from_many_samples_nears_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(RHO, 400_000, replacement=True, generator=generator)
    tilt = exponential_tilt(REWARD.gather(1, draws), 0.5)
    assert tilt.score == pytest.approx(1.764107, abs=5e-3)
    assert tilt.kl == pytest.approx(0.915475, abs=5e-3)


@pytest.mark.parametrize(
    ("n", "kl"), [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089), (64, 3.174508)]
)
def test_kl_of_best_of_n(n: int, kl: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-6)


def test_with_n_samples_no_more_than_log_n_nats_can_be_seen() -> None:
    scores = torch.arange(8.0)[None]
    assert exponential_tilt(scores, 1e-4).kl == pytest.approx(math.log(8), abs=1e-6)


def test_the_tilt_at_a_kl_has_that_kl_and_is_the_one_of_its_price() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(5, 4096, generator=generator)
    for kl in (0.05, 0.5, 1.5):
        tilt = tilt_at_kl(scores, kl)
        assert tilt.kl == pytest.approx(kl, abs=1e-6)
        assert tilt.score == pytest.approx(
            math.sqrt(2 * kl), rel=0.05
        )  # of a standard normal score
    assert tilt_at_kl(scores, 100.0).kl == pytest.approx(math.log(4096), abs=1e-3)


def test_the_supported_kl_is_where_the_worst_prompt_has_ten_effective_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(5, 512, generator=generator)
    kl = supported_kl(scores)
    assert 0 < kl < math.log(512)
    assert tilt_at_kl(scores, kl).effective_samples == pytest.approx(10, rel=1e-3)
    assert supported_kl(scores[:, :8]) == 0.0  # eight samples are never ten


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_best_of_n_is_the_mean_over_all_choices_of_n(n: int) -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 7.0, -1.0], [0.0, 0.0, 0.0, 1.0, 1.0, 5.0]])
    by = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 2.0, 2.0, 2.0, 9.0, 9.0]])

    def mean_of_best(rows: torch.Tensor, by: torch.Tensor) -> float:
        found = []
        for row, key in zip(rows.tolist(), by.tolist(), strict=True):
            for chosen in itertools.combinations(range(6), n):
                top = max(key[i] for i in chosen)
                tied = [row[i] for i in chosen if key[i] == top]
                found.append(sum(tied) / len(tied))  # by lot
        return sum(found) / len(found)

    assert best_of_n_score(scores, n) == pytest.approx(mean_of_best(scores, scores), abs=1e-12)
    assert best_of_n_score(scores, n, by) == pytest.approx(mean_of_best(scores, by), abs=1e-12)


def test_more_than_there_are_cannot_be_picked_from() -> None:
    with pytest.raises(ValueError, match="best of 9 needs"):
        best_of_n_score(torch.zeros(1, 8), 9)


def test_the_coefficient_of_normal_scores_is_their_spread_over_sqrt_2_kl() -> None:
    """KL = std^2 / (2 coef^2): 0.5 nats are within reach of the samples, 5 nats are not.

    There the estimate is low, since the samples lack the best completions.
    """
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(64, 1, generator=generator)
    scores = means + 1.5 * torch.randn(64, 512, generator=generator)
    near, far = coefficient_at(scores, 0.5), coefficient_at(scores, 5.0)
    assert near.kl_coef == pytest.approx(1.5, rel=0.03) and near.supported_kl == pytest.approx(0.5)
    assert 0.75 < far.kl_coef / (1.5 / 10**0.5) < 1.0 and 2 < far.supported_kl < 4


def test_samples_of_a_policy_near_the_optimum_carry_the_estimate_to_its_kl() -> None:
    """Scores N(0, 1.5^2) under the reference, N(4, 1.5^2) under the policy: both tilts are known.

    The optimum at KL 5 has its mean at 1.5 sqrt(10) = 4.74, where the reference has no samples.
    """
    generator = torch.Generator().manual_seed(0)
    own = 1.5 * torch.randn(16, 512, generator=generator)
    scores = torch.cat([own, 4 + 1.5 * torch.randn(16, 512, generator=generator)], dim=1)
    log_ratios = (scores.square() - (scores - 4).square()) / (2 * 1.5**2)

    logprobs = mixture_logprobs(log_ratios)
    assert torch.allclose(logprobs.exp().sum(dim=1), torch.ones(16, dtype=torch.float64))
    mean = (logprobs.exp() * scores).sum(dim=1).mean().item()
    assert mean == pytest.approx(0, abs=0.05)  # they stand for the reference

    found = coefficient_at(scores, 5.0, logprobs=logprobs)
    assert found.kl_coef == pytest.approx(1.5 / 10**0.5, rel=0.03)
    assert found.supported_kl == pytest.approx(5.0, rel=0.01)


def test_samples_of_a_policy_that_has_not_moved_are_as_good_as_the_references() -> None:
    scores = torch.randn(8, 256, generator=torch.Generator().manual_seed(2))
    logprobs = mixture_logprobs(torch.zeros(8, 256))
    assert coefficient_at(scores, 1.0, logprobs=logprobs) == pytest.approx(
        coefficient_at(scores, 1.0)
    )


def test_beyond_the_samples_bounded_scores_have_a_steeper_line() -> None:
    """Scores of 0 or 1, even: KL -> ln 2 however small the coefficient, so it falls fast."""
    scores = (torch.arange(256) % 2).float().repeat(8, 1)
    near, far = coefficient_at(scores, 0.3), coefficient_at(scores, 0.6)
    for found, kl in ((near, 0.3), (far, 0.6)):
        # KL(p || 1/2) of the tilt that gives 1 the chance p = sigmoid(1 / coef).
        p = 1 / (1 + math.exp(-1 / found.kl_coef))
        assert p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)) == pytest.approx(kl, abs=1e-3)


def test_the_coefficient_is_that_of_the_tilt_with_this_kl() -> None:
    scores = torch.randn(8, 256, generator=torch.Generator().manual_seed(1)).exp()
    found = coefficient_at(scores, 1.0)
    assert exponential_tilt(scores, found.kl_coef).kl == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_scores_whose_best_is_common_allow_no_far_policy(share: float) -> None:
    """Always taking the best has KL -ln(share); the estimate must not fall to nothing instead."""
    scores = (torch.arange(200) < 200 * share).float().repeat(16, 1)
    with pytest.raises(ValueError, match=f"further than {-math.log(share):.2g} nats"):
        coefficient_at(scores, 6.0)
    assert coefficient_at(scores, -0.5 * math.log(share)).kl_coef > 0.05


def test_near_its_limit_the_line_is_not_followed_to_nothing() -> None:
    """3 of 128 have the best score: 3.75 nats at most, of which the samples support less."""
    scores = (torch.arange(128) < 3).float().repeat(16, 1)
    found = coefficient_at(scores, 6.0)
    assert found.supported_kl < 3 and found.kl_coef > 0.01


def test_scores_that_do_not_differ_have_no_coefficient() -> None:
    with pytest.raises(ValueError, match="same score"):
        coefficient_at(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), 5.0)


def test_a_line_over_the_root_of_the_kl_has_the_figures_of_m11() -> None:
    fit = sqrt_fit((0, 1, 4, 9, 16), (0.1, 0.9, 2.05, 2.9, 3.7))
    assert (fit.intercept, fit.slope) == pytest.approx((0.09, 0.92), abs=1e-9)
    assert (fit.r2, fit.kl_r2) == pytest.approx((0.995999, 0.900990), abs=1e-6)
    assert (fit.intercept_error, fit.slope_error) == pytest.approx((0.082462, 0.033665), abs=1e-6)
    assert fit.slope_from_first == pytest.approx(0.916667, abs=1e-6)


def test_the_points_of_three_ppo_runs_lie_on_a_line_over_the_root() -> None:
    fit = sqrt_fit((2.37, 4.09, 4.87, 7.45), (1.63, 2.41, 2.68, 3.28))
    assert fit.slope == pytest.approx(1.385, abs=5e-4)
    assert (fit.r2, fit.kl_r2) == pytest.approx((0.990, 0.963), abs=5e-4)


def test_two_points_have_a_line_but_no_errors_and_one_kl_has_none() -> None:
    fit = sqrt_fit((1, 4), (0, 2))
    assert (fit.intercept, fit.slope, fit.r2) == pytest.approx((-2, 2, 1))
    assert math.isnan(fit.slope_error) and math.isnan(fit.intercept_error)
    assert math.isnan(sqrt_fit((1, 4, 9), (2, 2, 2)).r2)
    for kl in ((1, 1), (-0.1, 1), (1,), ()):
        with pytest.raises(ValueError, match="two different KLs"):
            sqrt_fit(kl, [0.0] * len(kl))
