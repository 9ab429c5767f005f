"""What the best policy at a given KL could score: the curve that runs are measured against."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Tilt(NamedTuple):
    """Reference samples reweighted by exp(score / kl_coef).

    Attributes:
        score: mean score under the tilted policy, averaged over prompts.
        kl: nats from the reference, averaged over prompts.
        effective_samples: 1 / sum w^2 of the worst-served prompt; small means not to be trusted.
    """

    score: float
    kl: float
    effective_samples: float


def exponential_tilt(scores: Tensor, kl_coef: float, logprobs: Tensor | None = None) -> Tilt:
    """The optimum of E[r] - kl_coef KL(pi || rho): pi proportional to rho exp(r / kl_coef).

    From samples, self-normalised importance weights w_i = softmax(r_i / kl_coef), and
    KL = sum_i w_i log(N w_i), which cannot exceed ln N. From a reference that can be enumerated,
    pass its log-probabilities, and the result is exact.
    Source: arXiv 1909.08593 section 3.1.1, figure 3.

    Args:
        scores: (P, N), N samples of the reference for each of P prompts.
        kl_coef: the price of a nat.
        logprobs: (P, N), of an enumerated reference; by default log(1 / N) for each sample.
    """
    scores = scores.double()
    n = scores.shape[1]
    base = torch.full_like(scores, -math.log(n)) if logprobs is None else logprobs.double()
    log_weights = torch.log_softmax(base + scores / kl_coef, dim=1)
    weights = log_weights.exp()
    kl = (weights * (log_weights - base)).sum(dim=1)
    return Tilt(
        score=(weights * scores).sum(dim=1).mean().item(),
        kl=kl.mean().item(),
        effective_samples=(1 / (weights**2).sum(dim=1)).min().item(),
    )


def best_of_n_kl(n: int) -> float:
    """ln n - (n - 1) / n: KL in nats of picking the best of n samples (no ties)."""
    return math.log(n) - (n - 1) / n


def gaussian_frontier(kl: float) -> float:
    """sqrt(2 KL): the best mean of a reward that is N(0, 1) under the reference."""
    return math.sqrt(2 * kl)
