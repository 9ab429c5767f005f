"""Frozen norms with the cheaper pass against transformers' own."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from toolkit.models.fast.norms import change_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_norm_gives_the_modules_values_and_gradients(dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(48, eps=1e-5).requires_grad_(False)
    nn.init.normal_(norm.weight)
    x = (3 * torch.randn(5, 7, 48)).to(dtype).requires_grad_()
    fast = copy.deepcopy(norm)
    change_norms(fast)
    factors = torch.randn(5, 7, 48)
    results = []
    for module in (norm, fast):
        x.grad = None
        y = module(x)
        (y * factors).sum().backward()
        results.append((y.detach(), x.grad.clone()))
    (y, grad), (fast_y, fast_grad) = results
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    assert fast_y.dtype == y.dtype and torch.allclose(fast_y, y, atol=tolerance, rtol=tolerance)
    assert torch.allclose(fast_grad, grad, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        assert torch.equal(fast(x), norm(x))
