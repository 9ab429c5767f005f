"""Means, variances and whitening over the real tokens of a padded batch."""

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def here(value: Tensor) -> Tensor:
    """Return the value unchanged: the sum over all processes if there is only one."""
    return value


def masked_mean(values: Tensor, mask: Tensor | None = None, total: Total = here) -> Tensor:
    """Mean over the elements where ``mask`` is True (over all without a mask), as a scalar.

    Args:
        values: any shape.
        mask: bool, same shape.
        total: sums a tensor over all processes, each of which holds a part of the batch.
    """
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    sums = total(torch.stack([(values * mask).sum(), mask.sum().to(values.dtype)]))
    return sums[0] / sums[1]


def masked_var(values: Tensor, mask: Tensor | None = None, total: Total = here) -> Tensor:
    """Population variance (divided by n, not n - 1) over the elements where ``mask`` is True."""
    mean = masked_mean(values, mask, total)
    return masked_mean((values - mean) ** 2, mask, total)


def whiten(
    values: Tensor, mask: Tensor | None = None, shift_mean: bool = True, total: Total = here
) -> Tensor:
    """Return (v - mean) / sqrt(var + 1e-8); unless ``shift_mean``, the mean is added back.

    Mean and population variance are taken over all real tokens of the batch together.
    Source: openai/lm-human-preferences lm_human_preferences/utils/core.py:336-341 (TensorFlow's
    ``moments``; torch's default ``var`` divides by n - 1 and gives other numbers).

    Args:
        values: (B, C).
        mask: bool (B, C), True = real token. Elements outside come back as 0.
        total: as for masked_mean; mean and variance are over the batch of all processes.
    """
    mean, var = masked_mean(values, mask, total), masked_var(values, mask, total)
    whitened = (values - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened if mask is None else whitened * mask
