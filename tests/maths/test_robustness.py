"""M11: gaps of two reward models' gains, and their intervals."""

import pytest
import torch

from toolkit.maths.robustness import gap_of, robustness_gaps

TRAIN, TEST = (0, 0.8, 1.6, 2.4, 3.2), (0.05, 0.8, 1.5, 1.95, 2.2)


def test_gaps_have_the_figures_of_m11() -> None:
    gaps = gap_of(torch.tensor(TRAIN), torch.tensor(TEST), 0.3, -0.2)
    assert gaps.tolist() == pytest.approx([-0.55, -0.5, -0.4, -0.05, 0.5], abs=1e-6)
    assert (gaps - gaps[0]).tolist() == pytest.approx([0, 0.05, 0.15, 0.5, 1.05], abs=1e-6)


def drawn(seed: int, prompts: int, rise: list[float], lead: list[float]) -> list[torch.Tensor]:
    """Scores of checkpoints that rise by so much under both, and lead under the first by more.

    The second scorer has another zero and another scale.
    """
    rng = torch.Generator().manual_seed(seed)

    def noise(rows: int) -> torch.Tensor:
        return torch.randn(rows, prompts, generator=rng, dtype=torch.float64)

    level = 0.3 * noise(1)  # of a prompt, which all its samples share
    up, more = (torch.tensor(each).double().unsqueeze(1) for each in (rise, lead))
    own = level + up + noise(len(rise))
    shared = level + noise(4)
    return [own + more, 3 * own + 7, shared, 3 * shared + 7]


def test_another_zero_and_another_scale_are_no_gap() -> None:
    gaps = robustness_gaps(*drawn(0, 300, [0.0, 1.0, 4.0], [0.0, 0.0, 0.0]), draws=200)
    assert gaps.gap.abs().max() < 1e-9 and gaps.first() is None
    assert gaps.train.tolist() == pytest.approx(gaps.test.tolist())


def test_gains_are_those_of_numbers_by_hand() -> None:
    train = torch.tensor([[1.0, 3.0]])
    shared = torch.tensor([[0.0, 2.0], [2.0, 4.0]])  # mean 2, variance 2
    gaps = robustness_gaps(train + 2, train, shared, shared, draws=20)
    root = 2**0.5
    assert gaps.train.tolist() == pytest.approx([2 / root])
    assert gaps.test.tolist() == pytest.approx([0.0])
    assert gaps.gap.tolist() == pytest.approx([2 / root])


def test_the_first_overoptimized_checkpoint_is_found() -> None:
    scores = drawn(1, 400, [0.5, 1.0, 1.5, 2.0], [0.0, 0.0, 0.8, 1.5])
    gaps = robustness_gaps(*scores, draws=400)
    assert gaps.first() == 2
    assert (gaps.low < gaps.gap).all() and (gaps.gap < gaps.high).all()


def test_many_checkpoints_take_a_wider_band_than_one() -> None:
    rng = torch.Generator().manual_seed(0)
    four = [torch.randn(rows, 200, generator=rng) for rows in (12, 12, 4, 4)]
    all_of_them = robustness_gaps(*four, draws=1000)
    one = robustness_gaps(four[0][:1], four[1][:1], *four[2:], draws=1000)
    assert one.low.item() == pytest.approx(all_of_them.low[0].item())
    assert one.sure_low.item() == pytest.approx(one.low.item(), abs=0.02)
    assert (all_of_them.sure_low < all_of_them.low - 0.02).all()


def test_without_a_gap_one_is_named_in_few_runs() -> None:
    named = 0
    for seed in range(50):
        rng = torch.Generator().manual_seed(seed)
        four = [torch.randn(rows, 60, generator=rng) for rows in (6, 6, 4, 4)]
        named += robustness_gaps(*four, draws=200).first() is not None
    assert named <= 5  # 1.25 are expected; more than 5 would be seen once in 500


def test_an_interval_holds_the_true_gap_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        rng = torch.Generator().manual_seed(1000 + seed)
        four = [torch.randn(rows, 60, generator=rng) for rows in (1, 1, 4, 4)]
        gaps = robustness_gaps(four[0] + 0.5, *four[1:], draws=200)
        held += bool(gaps.low[0] <= 0.5 <= gaps.high[0])
    assert 52 <= held <= 60


def test_what_cannot_be_compared_is_refused() -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="two prompts"):
        robustness_gaps(one, one, one, one)
    two = torch.tensor([[0.0, 1.0]])
    with pytest.raises(ValueError, match="the same score"):
        robustness_gaps(two, two, two, torch.ones(4, 2))
