"""O12: Adam with TensorFlow's epsilon, against the oracle and against torch's own Adam."""

import math

import numpy as np
import pytest
import torch

from toolkit.maths.optimizers import AdamTFStyle


def first_step(optimizer: type, gradient: float) -> float:
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer([p], lr=1e-5, eps=1e-5).step()
    return p.item()


@pytest.mark.parametrize(
    ("gradient", "tf", "torch_style"),
    [(1.0, -9.996839e-06, -9.999900e-06), (1e-3, -7.597469e-06, -9.900990e-06),
     (1e-4, -2.402531e-06, -9.090909e-06), (1e-5, -3.065343e-07, -5.000000e-06)],
)  # fmt: skip
def test_first_step(gradient: float, tf: float, torch_style: float) -> None:
    assert first_step(AdamTFStyle, gradient) == pytest.approx(tf, rel=1e-6)
    assert first_step(torch.optim.Adam, gradient) == pytest.approx(torch_style, rel=1e-6)


@pytest.mark.parametrize(
    ("gradient", "step"), [(1.0, -9.999000), (1e-3, -9.090909), (1e-5, -0.909091)]
)
def test_rmsprops_first_step_is_ten_times_the_rate(gradient: float, step: float) -> None:
    """Its running mean of squares starts at 0 and is not corrected: 1 / sqrt(1 - .99) is 10.

    Adam's first step is the rate itself, so a rate that is copied from Adam is too large here.
    """
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([gradient], dtype=torch.float64)
    torch.optim.RMSprop([p], lr=1.0, alpha=0.99, eps=1e-5).step()
    assert p.item() == pytest.approx(step, abs=1e-6)
    other = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    other.grad = torch.ones(1, dtype=torch.float64)
    torch.optim.Adam([other], lr=1.0).step()
    assert other.item() == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_equals_torchs_adam_once_its_epsilon_is_rescaled(eps: float) -> None:
    """torch's effective epsilon at step t is eps sqrt(1 - b2^t); undo that and both agree."""
    torch.manual_seed(0)
    ours = torch.randn(5, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    tf = AdamTFStyle([ours], lr=1e-2, eps=eps)
    stock = torch.optim.Adam([theirs], lr=1e-2, eps=eps)
    for t in range(1, 30):
        gradient = torch.randn(5, dtype=torch.float64) * 1e-4
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        stock.param_groups[0]["eps"] = eps / math.sqrt(1 - 0.999**t)
        tf.step()
        stock.step()
    np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-12)
