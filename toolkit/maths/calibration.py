"""Whether the softmax's probabilities match the shares that come true."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.maths.losses import best_of_k_loss


def confidence(scores: Sequence[Sequence[float]], temperature: float = 1.0) -> list[float]:
    """The softmax's largest probability for each comparison's scores / temperature."""
    return [
        float((torch.tensor(row, dtype=torch.float64) / temperature).softmax(dim=0).max())
        for row in scores
    ]


def bins(confidences: Sequence[float], count: int = 10) -> list[list[int]]:
    """Indices of the comparisons in each of ``count`` equal ranges of confidence, (lo, hi]."""
    groups: list[list[int]] = [[] for _ in range(count)]
    for i, value in enumerate(confidences):
        groups[min(count - 1, max(0, math.ceil(value * count) - 1))].append(i)
    return groups


def expected_calibration_error(
    confidences: Sequence[float], right: Sequence[float], count: int = 10
) -> float:
    """sum over bins of n_b / n * |share right in b - mean confidence in b|.

    Source: arXiv 1706.04599 section 2.

    Args:
        confidences: in (0, 1].
        right: whether the most probable candidate was the pick.
        count: number of bins of equal width.
    """
    error = 0.0
    for group in bins(confidences, count):
        if group:
            gap = sum(right[i] for i in group) - sum(confidences[i] for i in group)
            error += abs(gap)
    return error / len(confidences)


def fit_temperature(scores: Sequence[Sequence[float]], best: Sequence[int]) -> float:
    """Find the T > 0 at which softmax(scores / T) makes the picks most probable (arXiv 1706.04599).

    The loss is convex in 1/T, so ternary search on 1/T in [1e-3, 1e3] finds it.
    """
    table, mask, picks = as_table(scores, best)

    def loss(log_inverse: float) -> float:
        return best_of_k_loss(table * math.exp(log_inverse), picks, mask).item()

    low, high = math.log(1e-3), math.log(1e3)
    while high - low > 1e-6:  # quasi-convex in the logarithm, too
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return math.exp(-(low + high) / 2)


def as_table(
    scores: Sequence[Sequence[float]], best: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of different K as float64 scores (B, K), bool mask (B, K) and picks (B,)."""
    width = max(map(len, scores))
    table = torch.zeros(len(scores), width, dtype=torch.float64)
    mask = torch.zeros(len(scores), width, dtype=torch.bool)
    for i, row in enumerate(scores):
        table[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[i, : len(row)] = True
    return table, mask, torch.tensor(list(best))
