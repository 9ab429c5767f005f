"""O9: temperature."""

import numpy as np
import pytest
import torch

from toolkit.maths.distributions import entropy, kl_between, token_logprobs

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [-0.440190, -1.440190, -2.440190, -3.440190]),
        (0.7, [-0.270674, -1.699245, -3.127817, -4.556388]),
    ],
)
def test_logprobs_are_of_the_scaled_distribution(temperature: float, expected: list) -> None:
    logprobs = token_logprobs(LOGITS.expand(1, 4, 4), torch.arange(4)[None], temperature)
    np.testing.assert_allclose(logprobs[0], expected, atol=1e-6)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.947537), (0.7, 0.702028),
                                                    (0.5, 0.455429)])  # fmt: skip
def test_entropy_at_temperature(temperature: float, value: float) -> None:
    assert entropy(LOGITS, temperature).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("temperature", "value"), [(0.7, 0.126947), (1.0, 0.093475)])
def test_kl_between_distributions_at_temperature(temperature: float, value: float) -> None:
    other = torch.tensor([1.5, 1.0, 0.5, 0.0])
    assert kl_between(LOGITS, other, temperature).item() == pytest.approx(value, abs=1e-6)


def test_logprobs_of_half_precision_logits_are_computed_in_fp32() -> None:
    logprobs = token_logprobs(LOGITS.bfloat16().expand(1, 4, 4), torch.arange(4)[None], 0.7)
    assert logprobs.dtype == torch.float32
    np.testing.assert_allclose(logprobs[0].exp().sum(), 1.0, atol=1e-6)
