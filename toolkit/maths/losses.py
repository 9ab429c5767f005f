"""Losses for reward models (K-way softmax, rankings, pairs) and for PPO (policy, value)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.maths.masking import masked_mean


def best_of_k_loss(scores: Tensor, best: Tensor, mask: Tensor | None = None) -> Tensor:
    """K-way softmax: -log( exp(r_best) / sum_k exp(r_k) ), averaged over the comparisons.

    Source: arXiv 1909.08593 eq. 1 (there without its minus sign); openai/lm-human-preferences
    lm_human_preferences/label_types.py:44-49. K = 2 is the Bradley-Terry loss of pairs.

    Args:
        scores: (B, K).
        best: int (B,), index of the pick.
        mask: bool (B, K), False where a comparison has fewer than K candidates.

    Returns:
        scalar, ln K for equal scores.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.cross_entropy(scores, best)


def plackett_luce_loss(scores: Tensor, ranking: Tensor) -> Tensor:
    """Negative log-likelihood of a ranking, as successive picks of the best from what is left.

    -sum_j [ r_(j) - log sum_{i >= j} exp r_(i) ], averaged over the rankings.
    Source: Plackett (1975); Luce (1959).

    Args:
        scores: (B, K).
        ranking: int (B, R), indices of candidates from best to worst. R < K is a partial ranking:
            those that are not named stand, unordered, behind those that are.

    Returns:
        scalar; with R = 1 it equals best_of_k_loss.
    """
    rows = torch.arange(scores.shape[0], device=scores.device)
    left = torch.ones_like(scores, dtype=torch.bool)
    total = scores.new_zeros(scores.shape[0])
    for j in range(ranking.shape[1]):
        pick = ranking[:, j]
        total = total - scores[rows, pick]
        total = total + scores.masked_fill(~left, float("-inf")).logsumexp(dim=1)
        left = left.clone()
        left[rows, pick] = False
    return total.mean()


def pairwise_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), averaged: (B,) twice -> scalar (Bradley-Terry)."""
    return -F.logsigmoid(chosen - rejected).mean()


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective: mean of max(-A rho, -A clip(rho, 1 - c, 1 + c)).

    rho = exp(logprobs - old_logprobs). Source: arXiv 1707.06347 eq. 7; openai/lm-human-preferences
    lm_human_preferences/train_policy.py:349-357.

    Args:
        logprobs, old_logprobs, advantages: (B, C).
        cliprange: c.
        mask: bool (B, C), True = real token.

    Returns:
        scalar loss, and statistics: approxkl = mean((new - old)^2) / 2 (the k2 estimate), clipfrac,
        ratio, each a scalar.
    """
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.max(unclipped, clipped), mask)
    with torch.no_grad():
        stats = {
            "approxkl": 0.5 * masked_mean(log_ratio**2, mask),
            "clipfrac": masked_mean((clipped > unclipped).float(), mask),
            "ratio": masked_mean(ratio, mask),
            "max_log_ratio": log_ratio.abs().max(),
        }
    return loss, stats


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """0.5 mean max((V - R)^2, (V_clip - R)^2), V_clip within ``cliprange_value`` of the old value.

    Source: openai/lm-human-preferences lm_human_preferences/train_policy.py:343-348. The caller
    multiplies by vf_coef.

    Args:
        values, old_values, returns: (B, C).
        mask: bool (B, C), True = real token.

    Returns:
        scalar loss, and statistics: clipfrac and error = mean((V - R)^2).
    """
    bounded = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    error, bounded_error = (values - returns) ** 2, (bounded - returns) ** 2
    loss = 0.5 * masked_mean(torch.max(error, bounded_error), mask)
    with torch.no_grad():
        stats = {
            "clipfrac": masked_mean((bounded_error > error).float(), mask),
            "error": masked_mean(error, mask),
        }
    return loss, stats
