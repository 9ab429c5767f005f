"""O5: whitening."""

import numpy as np
import pytest
import torch

from toolkit.maths.masking import masked_mean, masked_var, whiten

X = torch.arange(1.2, 2.05, 0.1, dtype=torch.float64).reshape(3, 3)


def test_whiten_without_shift_equals_tensorflows_print() -> None:
    expected = [[0.050807, 0.438105, 0.825403], [1.212702, 1.6, 1.987298],
                [2.374597, 2.761895, 3.149193]]  # fmt: skip
    np.testing.assert_allclose(whiten(X, shift_mean=False), expected, atol=1e-6)


def test_whiten_divides_by_the_population_deviation() -> None:
    assert whiten(X, shift_mean=False)[0, 0].item() != pytest.approx(0.139407, abs=1e-3)


def test_whiten_with_shift() -> None:
    expected = [-1.549193, -1.161895, -0.774597, -0.387298, 0, 0.387298, 0.774597, 1.161895,
                1.549193]  # fmt: skip
    np.testing.assert_allclose(whiten(X).flatten(), expected, atol=1e-6)


def test_whiten_leaves_a_constant_where_it_is() -> None:
    constant = torch.full((2, 3), 4.2, dtype=torch.float64)
    np.testing.assert_allclose(whiten(constant, shift_mean=False), constant)
    np.testing.assert_allclose(whiten(constant), 0, atol=1e-9)


def test_masked_statistics_equal_numpy_on_what_is_left() -> None:
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=(5, 7)), rng.random((5, 7)) < 0.6
    tensor, keep = torch.tensor(values), torch.tensor(mask)
    assert masked_mean(tensor, keep).item() == pytest.approx(values[mask].mean())
    assert masked_var(tensor, keep).item() == pytest.approx(values[mask].var())
    whitened = whiten(tensor, keep)
    kept = (values[mask] - values[mask].mean()) / np.sqrt(values[mask].var() + 1e-8)
    np.testing.assert_allclose(whitened[keep], kept, atol=1e-9)
    assert not whitened[~keep].any()
