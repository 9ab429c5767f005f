"""Losses for reward models (K-way softmax, rankings, pairs) and for PPO (policy, value)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.maths.masking import masked_mean

RatioOf = Literal["token", "completion", "completion_mean"]


def average(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Average the comparisons' losses (B,), each times its weight (B,): mean of w_i l_i.

    The weights are not divided by their sum in the batch, so that a batch with more of the heavy
    comparisons has a larger loss, and the expectation is exactly that of the weighted data.
    """
    return (losses if weights is None else losses * weights).mean()


def best_of_k_loss(
    scores: Tensor,
    best: Tensor,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """K-way softmax: -log( exp(r_best) / sum_k exp(r_k) ), averaged over the comparisons.

    Source: arXiv 1909.08593 eq. 1 (without its minus sign); openai/lm-human-preferences
    lm_human_preferences/label_types.py:44-49. K = 2 is the Bradley-Terry loss of pairs; with a
    margin it is that of trl/trainer/reward_trainer.py: compute_loss (arXiv 2307.09288 eq. 2).

    Args:
        scores: (B, K).
        best: int (B,), index of the pick.
        mask: bool (B, K), False where a comparison has fewer than K candidates.
        label_smoothing: probability that the pick is wrong and one of the other K - 1 was meant.
        margin: (B,), by how much the best must lead; r_best - margin replaces r_best.
        weights: (B,), of the comparisons (``average``); None for equal weights.

    Returns:
        scalar, ln K for equal scores (without a margin).
    """
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    rows = torch.arange(scores.shape[0], device=scores.device)
    if margin is not None:
        scores = scores.index_put((rows, best), scores[rows, best] - margin)
    logprobs = scores.masked_fill(~mask, float("-inf")).log_softmax(dim=1)
    loss = -logprobs[rows, best]
    if label_smoothing:
        others = -(logprobs.masked_fill(~mask, 0.0).sum(dim=1) + loss) / (mask.sum(dim=1) - 1)
        loss = (1 - label_smoothing) * loss + label_smoothing * others
    return average(loss, weights)


def best_vs_rest_loss(
    scores: Tensor,
    best: Tensor,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Loss of K - 1 pairs: -log sigmoid(r_best - margin - r_k), averaged over k not best.

    Arguments as for best_of_k_loss, which it equals for K = 2. Each comparison has the same weight,
    whatever its K.
    """
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    rows = torch.arange(scores.shape[0], device=scores.device)
    lead = scores[rows, best]
    gap = (lead if margin is None else lead - margin).unsqueeze(1) - scores
    loss = -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)
    others = mask.clone()
    others[rows, best] = False
    return average(loss.masked_fill(~others, 0.0).sum(dim=1) / others.sum(dim=1), weights)


def plackett_luce_loss(
    scores: Tensor,
    ranking: Tensor,
    mask: Tensor | None = None,
    worst: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of a ranking, as successive picks of the best of the remaining.

    -sum_j [ r_(j) - log sum_{i >= j} exp r_(i) ], averaged over the rankings.
    Source: Plackett (1975); Luce (1959).

    With ``worst``, the likelihood is that of all rankings that begin with ``ranking`` and end with
    ``worst``, summed (``last_logprob``). Nothing is said of the order between them.

    Args:
        scores: (B, K).
        ranking: int (B, R), indices of candidates from best to worst, padded with -1. A row may
            rank fewer than K candidates; the others then come last, in no order.
        mask: bool (B, K), False where a comparison has fewer than K candidates.
        worst: int (B,), index of the candidate that comes last; -1 where none is named. None if no
            row names one.
        weights: (B,), of the comparisons (``average``); None for equal weights.

    Returns:
        scalar; with R = 1 and no worst it equals best_of_k_loss.
    """
    rows = torch.arange(scores.shape[0], device=scores.device)
    left = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.clone()
    everything = left.clone()
    total = scores.new_zeros(scores.shape[0])
    for j in range(ranking.shape[1]):
        named = ranking[:, j] >= 0
        pick = ranking[:, j].clamp(min=0)
        among = torch.where(named.unsqueeze(1), left, everything)  # never empty, so never -inf
        term = scores.masked_fill(~among, float("-inf")).logsumexp(dim=1) - scores[rows, pick]
        total = total + torch.where(named, term, torch.zeros_like(term))
        left = left.clone()
        left[rows, pick] &= ~named
    if worst is not None:
        total = total - last_logprob(scores, worst, left)
    return average(total, weights)


def last_logprob(scores: Tensor, worst: Tensor, left: Tensor) -> Tensor:
    """Log-probability that ``worst`` comes last of the candidates that are left.

    Under Plackett-Luce this is the sum over all orders of the others. It obeys
    P(S) = sum over i in S without worst of exp(r_i) / sum_{j in S} exp(r_j) * P(S without i), with
    P({worst}) = 1, so 2^M sums over subsets replace M! orders of the M others. All terms are
    positive, so nothing cancels; inclusion and exclusion would lose all digits where the
    probability is small.

    Args:
        scores: (B, K).
        worst: int (B,); -1 where none is named.
        left: bool (B, K), the candidates that are not ranked yet, ``worst`` among them.

    Returns:
        (B,), 0 where no worst is named, or where it is the only one left.
    """
    rows = torch.arange(scores.shape[0], device=scores.device)
    named = worst >= 0
    last = scores[rows, worst.clamp(min=0)]

    # Put each row's others first, so that its first m columns are its own.
    others = left.clone()
    others[rows, worst.clamp(min=0)] &= ~named
    others &= named.unsqueeze(1)
    count = others.sum(dim=1)
    order = others.int().argsort(dim=1, descending=True, stable=True)
    ahead = scores.gather(1, order)

    # Subsets of these columns by their bits; a subset comes after all of its own subsets.
    subsets = [torch.zeros_like(last)]
    for bits in range(1, 2 ** int(count.max())):
        inside = [i for i in range(bits.bit_length()) if bits >> i & 1]
        among = torch.cat([ahead[:, inside], last.unsqueeze(1)], dim=1).logsumexp(dim=1)
        without = torch.stack([ahead[:, i] + subsets[bits & ~(1 << i)] for i in inside])
        subsets.append(without.logsumexp(dim=0) - among)
    return torch.stack(subsets, dim=1)[rows, 2**count - 1]


def scalar_rating_loss(
    scores: Tensor, targets: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean squared error of scores against ratings, over all candidates: (B, K) thrice -> scalar.

    With ``weights`` (B,) each candidate's error counts by its comparison's weight.
    Source: openai/lm-human-preferences lm_human_preferences/label_types.py:58-82.
    """
    squares = (scores - targets) ** 2
    return masked_mean(squares if weights is None else squares * weights.unsqueeze(1), mask)


def scalar_compare_loss(
    scores: Tensor, targets: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean squared error of score differences against rating differences.

    mean over i < j of ((r_j - r_i) - (t_j - t_i))^2, averaged over the comparisons: adding a
    constant to a comparison's ratings changes nothing. For K = 2 it is the loss of
    openai/lm-human-preferences lm_human_preferences/label_types.py:85-109.

    Args:
        scores, targets: (B, K).
        mask: bool (B, K), False where a comparison has fewer than K candidates.
        weights: (B,), of the comparisons (``average``); None for equal weights.
    """
    error = scores - targets
    difference = error.unsqueeze(1) - error.unsqueeze(2)
    both = mask.unsqueeze(1) & mask.unsqueeze(2)
    both = both & torch.ones_like(both).triu(diagonal=1)
    squares = (difference**2).masked_fill(~both, 0.0).sum(dim=(1, 2))
    return average(squares / both.sum(dim=(1, 2)), weights)


def centering_penalty(scores: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """(2 * mean of a comparison's scores)^2, averaged: pulls each comparison's mean score to 0.

    For K = 2 it is (r_chosen + r_rejected)^2, TRL's term behind center_rewards_coefficient
    (arXiv 2312.09244). scores (B, K), mask bool (B, K), weights (B,) or None -> scalar.
    """
    mean = scores.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)
    return average((2 * mean).square(), weights)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    cliprange: float,
    mask: Tensor,
    weights: Tensor | None = None,
    ratio_of: RatioOf = "token",
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective: mean of max(-A rho, -A clip(rho, 1 - c, 1 + c)).

    rho = exp(logprobs - old_logprobs). Source: arXiv 1707.06347 eq. 7; openai/lm-human-preferences
    lm_human_preferences/train_policy.py:349-357.

    A whole completion may share one ratio: the product of its tokens' (RLOO, arXiv 2402.14740;
    trl/trainer/rloo_trainer.py: _compute_loss), or their geometric mean (GSPO, arXiv 2507.18071
    eq. 7). A row of ``advantages`` should then hold one number.

    Args:
        logprobs, old_logprobs, advantages: (B, C).
        cliprange: c.
        mask: bool (B, C), True = real token.
        weights: (B, C), multiply the tokens' losses before the mean; None for equal weights.
        ratio_of: "token", "completion" (the product) or "completion_mean" (the geometric mean).

    Returns:
        scalar loss, and statistics: approxkl = mean((new - old)^2) / 2 (the k2 estimate), clipfrac,
        ratio, each a scalar.
    """
    log_ratio = (logprobs - old_logprobs) * mask
    shared = log_ratio
    if ratio_of != "token":
        shared = log_ratio.sum(dim=1, keepdim=True)
        if ratio_of == "completion_mean":
            shared = shared / mask.sum(dim=1, keepdim=True).clamp(min=1)
        shared = shared.expand_as(log_ratio)

    ratio = shared.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    worse = torch.max(unclipped, clipped)
    loss = masked_mean(worse if weights is None else worse * weights, mask)

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
    """0.5 mean max((V - R)^2, (V_clip - R)^2); V_clip is within ``cliprange_value`` of the old V.

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
