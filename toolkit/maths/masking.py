"""Means, variances and whitening over the real tokens of a padded batch."""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the elements where ``mask`` is True (all of them without a mask); a scalar.

    Args:
        values: any shape.
        mask: bool, same shape.
    """
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum()


def masked_var(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Population variance (divided by n, not n - 1) over the elements where ``mask`` is True."""
    mean = masked_mean(values, mask)
    return masked_mean((values - mean) ** 2, mask)


def whiten(values: Tensor, mask: Tensor | None = None, shift_mean: bool = True) -> Tensor:
    """(v - mean) / sqrt(var + 1e-8), the mean added back unless ``shift_mean``.

    Population variance over all real elements of the batch, tokens and sequences alike.
    Source: openai/lm-human-preferences lm_human_preferences/utils/core.py:336-341 (TensorFlow's
    ``moments``; torch's default ``var`` divides by n - 1 and gives other numbers).

    Args:
        values: (B, C).
        mask: bool (B, C), True = real token. Elements outside come back as 0.
    """
    mean, var = masked_mean(values, mask), masked_var(values, mask)
    whitened = (values - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened if mask is None else whitened * mask
