"""SLERP and LERP by inner products, against vectors that were written out."""

import math

import pytest
import torch
from torch import Tensor

from toolkit.maths.interpolation import angle, slerp_in_turn, slerp_weights

# Two changes of a layer, as LoRA's factors and scales (worked by hand).
FIRST = 2 * torch.tensor([[1.0, 0], [0, 2], [1, 1]]) @ torch.tensor([[1.0, 2, 0, 1], [0, 1, 1, 0]])
SECOND = torch.tensor([[0.0, 1], [1, 0], [2, 0]]) @ torch.tensor([[1.0, 0, 1, 0], [2, 1, 0, 1]])


def gram_of(*vectors: Tensor) -> Tensor:
    rows = torch.stack([vector.double().flatten() for vector in vectors])
    return rows @ rows.T


def test_angle_norms_and_weights_are_those_worked_by_hand() -> None:
    gram = gram_of(FIRST, SECOND)
    assert gram[0, 0].sqrt().item() == pytest.approx(10.198039, abs=1e-6)
    assert gram[1, 1].sqrt().item() == pytest.approx(4.0)
    assert gram[0, 1].item() == pytest.approx(22.0)
    assert angle(gram) == pytest.approx(1.001168, abs=1e-6)
    assert math.degrees(angle(gram)) == pytest.approx(57.362682, abs=1e-6)

    for share, weights, norm, lerp_norm in (
        (0.5, (0.569929, 0.569929), 7.298650, 6.403124),
        (0.25, (0.810210, 0.294129), 8.952070, 8.231039),
    ):
        found = slerp_weights(gram, share)
        assert found.tolist() == pytest.approx(weights, abs=1e-6)
        assert (found @ gram @ found).sqrt().item() == pytest.approx(norm, abs=1e-6)
        lerp = torch.tensor([1 - share, share], dtype=torch.float64)
        assert (lerp @ gram @ lerp).sqrt().item() == pytest.approx(lerp_norm, abs=1e-6)


def test_orthogonal_vectors_of_one_length_keep_it_and_meet_in_the_middle() -> None:
    weights = slerp_weights(torch.eye(2, dtype=torch.float64), 0.5)
    assert weights.tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_nearly_parallel_vectors_and_zero_ones_are_interpolated_linearly() -> None:
    nearly = gram_of(torch.tensor([1.0, 0]), torch.tensor([1.0, 1e-4]))
    assert slerp_weights(nearly, 0.25).tolist() == [0.75, 0.25]
    zero = gram_of(torch.tensor([1.0, 0]), torch.zeros(2))
    assert slerp_weights(zero, 0.25).tolist() == [0.75, 0.25]


def test_opposite_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="opposite directions"):
        slerp_weights(gram_of(torch.tensor([1.0, 0]), torch.tensor([-2.0, 0])), 0.5)


def test_three_merged_in_turn_are_two_and_then_the_third_by_a_third() -> None:
    torch.manual_seed(0)
    vectors = [torch.randn(7, dtype=torch.float64) for _ in range(3)]

    def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
        one, other = slerp_weights(gram_of(a, b), share)
        return one * a + other * b

    expected = slerp(slerp(vectors[0], vectors[1], 1 / 2), vectors[2], 1 / 3)
    weights = slerp_in_turn(gram_of(*vectors))
    found = sum(w * v for w, v in zip(weights, vectors, strict=True))
    torch.testing.assert_close(found, expected)

    # Three orthogonal vectors of one length end on their sphere.
    even = slerp_in_turn(torch.eye(3, dtype=torch.float64))
    assert even.norm().item() == pytest.approx(1)
    assert even.tolist() == pytest.approx([even[0].item()] * 2 + [0.5])
