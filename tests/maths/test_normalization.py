"""O3, O4: the reward head's start, gain and bias."""

import numpy as np
import pytest
import torch

from toolkit.maths.normalization import gain_and_bias, head_init_std

SCORES = torch.tensor([1.0, 2.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("width", "std"),
    [(512, 0.044151), (768, 0.036061), (1024, 0.031235), (1280, 0.027940), (1600, 0.024992),
     (2048, 0.022092), (4096, 0.015623)],
)  # fmt: skip
def test_head_starts_at_one_over_root_of_width_plus_one(width: int, std: float) -> None:
    assert head_init_std(width) == pytest.approx(std, abs=1e-6)


def test_normalised_scores_have_mean_0_and_population_std_1() -> None:
    gain, bias = gain_and_bias(SCORES)
    assert (gain, bias) == (pytest.approx(0.632456, abs=1e-6), pytest.approx(-1.897367, abs=1e-6))
    normalized = gain * SCORES + bias
    np.testing.assert_allclose(normalized, [-1.264911, -0.632456, 0.632456, 1.264911], atol=1e-6)
    assert normalized.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    assert gain != pytest.approx(0.547723, abs=1e-3)  # the sample deviation's, which is wrong


def test_another_target() -> None:
    gain, bias = gain_and_bias(SCORES, 0.5, 2.0)
    assert (gain, bias) == (pytest.approx(1.264911, abs=1e-6), pytest.approx(-3.294733, abs=1e-6))


@pytest.mark.parametrize("scores", [[3.0, 3.0, 3.0], [1.0], [1.0, float("nan")]])
def test_scores_that_cannot_be_normalised_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="gain_and_bias"):
        gain_and_bias(torch.tensor(scores))
