"""Intervals and errors for what is reported."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion; (0, 1) without trials.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Source: E. B. Wilson (1927),
    JASA 22:209-212. It keeps its coverage near 0 and 1, where p -+ z SE does not.
    """
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    center = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = (center - spread) / scale, (center + spread) / scale
    return max(min(low, p), 0.0), min(max(high, p), 1.0)  # rounding at 0 and 1


def tail_probability(successes: int, chances: Sequence[float]) -> float:
    """P(at least so many successes) by luck, where trial i succeeds with probability chances[i].

    Exact: the Poisson binomial distribution by convolution, O(n^2); with equal chances it is the
    one-sided binomial test.
    """
    distribution = torch.ones(1, dtype=torch.float64)
    for p in chances:
        widened = torch.zeros(len(distribution) + 1, dtype=torch.float64)
        widened[:-1] = distribution * (1 - p)
        widened[1:] += distribution * p
        distribution = widened
    return float(distribution[successes:].sum().clamp(0.0, 1.0))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error s / sqrt(n), s with n - 1; the error is nan for n < 2."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, math.sqrt(variance / n)
