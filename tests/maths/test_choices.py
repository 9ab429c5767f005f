"""M10: strengths by maximum likelihood, with errors."""

import math

import choix
import numpy as np
import pytest
import torch

from toolkit.maths.choices import fit_choices, misfit
from toolkit.maths.ratings import ELO_SCALE, elo_expectation


def of_wins(wins: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The choices of a table in which the row beats the column."""
    shown, chosen, times = [], [], []
    for i, row in enumerate(wins):
        for j, count in enumerate(row):
            if i != j:
                shown.append([int(k in (i, j)) for k in range(len(wins))])
                chosen.append(i)
                times.append(count)
    return torch.tensor(shown), torch.tensor(chosen), torch.tensor(times)


def test_wins_of_three_give_the_strengths_and_errors_of_m10() -> None:
    fitted = fit_choices(*of_wins([[0, 30, 10], [50, 0, 25], [70, 55, 0]]))
    assert fitted.values.tolist() == pytest.approx([-0.771634, -0.098271, 0.869905], abs=1e-6)
    assert fitted.log_likelihood == pytest.approx(-133.705990, abs=1e-6)
    points, errors = fitted.above(0)
    assert points == pytest.approx([0, 116.975128, 285.164514], abs=1e-6)
    assert errors == pytest.approx([0, 35.196091, 39.532590], abs=1e-6)


def test_sixty_of_a_hundred_are_seventy_points_and_174_points_are_a_nat() -> None:
    points, errors = fit_choices(*of_wins([[0, 60], [40, 0]])).above(1)
    assert points[0] == pytest.approx(70.436504, abs=1e-6)
    assert errors[0] == pytest.approx(35.459996, abs=1e-6)
    assert elo_expectation(174, 0) == pytest.approx(0.731378, abs=1e-6)
    assert pytest.approx(174, abs=0.3) == ELO_SCALE


def test_a_choice_counted_a_hundred_times_is_a_hundred_choices() -> None:
    """Rounding differs: a direction without information must not seem to have a little."""
    shown, chosen, times = of_wins([[0, 30, 10], [50, 0, 25], [70, 55, 0]])
    one_by_one = fit_choices(shown.repeat_interleave(times, 0), chosen.repeat_interleave(times))
    counted = fit_choices(shown, chosen, times)
    torch.testing.assert_close(one_by_one.values, counted.values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one_by_one.covariance, counted.covariance, rtol=1e-9, atol=1e-9)


def test_strengths_are_choixs_without_its_pull() -> None:
    wins = np.array([[0, 7, 3, 9], [4, 0, 6, 1], [8, 5, 0, 2], [3, 9, 6, 0]])
    fitted = fit_choices(*of_wins(wins.tolist())).values.numpy()
    expected = choix.ilsr_pairwise_dense(wins.astype(float), alpha=0.0)
    assert fitted == pytest.approx(expected - expected.mean(), abs=1e-6)


def test_one_who_wrote_two_of_three_texts_is_not_rated_higher_for_it() -> None:
    shown = torch.tensor([[2, 1], [2, 1]])  # by chance the first is chosen two times of three
    fitted = fit_choices(shown, torch.tensor([0, 1]), torch.tensor([200, 100]))
    assert fitted.values.tolist() == pytest.approx([0, 0], abs=1e-9)


def test_choices_between_texts_of_one_player_say_nothing() -> None:
    shown, chosen = torch.tensor([[1, 1], [1, 1], [4, 0]]), torch.tensor([0, 1, 0])
    with_own = fit_choices(shown, chosen, torch.tensor([60, 40, 900]))
    without = fit_choices(shown[:2], chosen[:2], torch.tensor([60, 40]))
    assert with_own.above(1) == without.above(1)
    assert with_own.log_likelihood == without.log_likelihood


def test_errors_are_the_spread_of_repeated_experiments() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        first = int(rng.binomial(200, 0.7))
        found.append(fit_choices(*of_wins([[0, first], [200 - first, 0]])).above(1))
    points, errors = np.array(found)[:, :, 0].T
    assert np.std(points) == pytest.approx(np.mean(errors), rel=0.3)


def drawn(
    strength: list[float], noise: float, rng: np.random.Generator
) -> tuple[torch.Tensor, ...]:
    """Choices between two, of which a share is careless."""
    shown, chosen, times = [], [], []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        p = noise / 2 + (1 - noise) / (1 + math.exp(strength[j] - strength[i]))
        won = int(rng.binomial(2000, p))
        shown += 2 * [[int(k in (i, j)) for k in range(3)]]
        chosen, times = [*chosen, i, j], [*times, won, 2000 - won]
    rows = torch.tensor(times)
    return (
        torch.tensor(shown).repeat_interleave(rows, 0),
        torch.tensor(chosen).repeat_interleave(rows),
    )


def test_the_ratio_of_likelihoods_is_the_formula_on_wins_of_three() -> None:
    shown, chosen, times = of_wins([[0, 30, 10], [50, 0, 25], [70, 55, 0]])
    found = misfit(shown.repeat_interleave(times, 0), chosen.repeat_interleave(times))
    own = sum(
        n * math.log(n / m) for n, m in ((30, 80), (50, 80), (10, 80), (70, 80), (25, 80), (55, 80))
    )
    assert found is not None and found.freedom == 1
    assert found.statistic == pytest.approx(2 * (own + 133.705990), abs=1e-5)
    assert found.p_value == pytest.approx(math.erfc(math.sqrt(found.statistic / 2)), rel=1e-9)


def test_careless_choices_do_not_fit_and_those_by_strength_alone_do() -> None:
    rng = np.random.default_rng(0)
    found = [misfit(*drawn([0.0, 1.0, 2.0], 0.0, rng)) for _ in range(20)]
    p = [f.p_value for f in found if f is not None]
    assert len(p) == 20 and 0.3 < np.mean(p) < 0.7 and sum(each < 0.05 for each in p) <= 4
    careless = misfit(*drawn([0.0, 2.0, 4.0], 0.2, rng))
    assert careless is not None and careless.p_value < 1e-4


def test_nothing_is_tested_of_two_players_or_of_few_choices() -> None:
    shown, chosen, times = of_wins([[0, 60], [40, 0]])
    assert misfit(shown.repeat_interleave(times, 0), chosen.repeat_interleave(times)) is None
    assert misfit(*of_wins([[0, 1, 1], [1, 0, 1], [1, 1, 0]])[:2]) is None
    far = torch.tensor([[1, 1, 0]] * 100 + [[0, 1, 1]] * 100)  # the third is chosen too rarely
    assert misfit(far, torch.tensor([0, 1] * 50 + [1] * 98 + [2] * 2)) is None
    never = torch.tensor([[1, 1]] * 9), torch.tensor([0] * 9)
    assert misfit(*never) is None


@pytest.mark.parametrize("wins", [[[0, 5], [0, 0]], [[0, 5, 0], [5, 0, 0], [0, 0, 0]]])
def test_no_strength_fits_who_never_lost_or_never_played(wins: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="never chosen over the others"):
        fit_choices(*of_wins(wins))


def test_who_was_not_shown_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="was not shown"):
        fit_choices(torch.tensor([[1, 1, 0]]), torch.tensor([2]))
