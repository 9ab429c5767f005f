"""Confidence intervals, standard errors and tests for reported figures."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import torch


def wilson_interval(
    successes: float, trials: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's score interval for a proportion; (0, 1) without trials. Counts may be fractions.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Source: E. B. Wilson (1927),
    JASA 22:209-212. It keeps its coverage near 0 and 1; p -+ z SE does not.
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
    """P(at least ``successes``) if trial i succeeds with probability chances[i].

    Exact: the Poisson binomial distribution by convolution, O(n^2). With equal chances it is the
    one-sided binomial test.
    """
    distribution = torch.ones(1, dtype=torch.float64)
    for p in chances:
        widened = torch.zeros(len(distribution) + 1, dtype=torch.float64)
        widened[:-1] = distribution * (1 - p)
        widened[1:] += distribution * p
        distribution = widened
    return float(distribution[successes:].sum().clamp(0.0, 1.0))


def design_effect(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Variance of the mean, divided by that for independent 0-1 values; at least 1.

    sum over clusters of (sum of v - mean)^2 / sum of mean (1 - mean). It is 1 if the values
    of a cluster are independent, and a cluster's size if they are all equal.
    Source: L. Kish, Survey Sampling (1965), section 5.4; the cluster-robust variance.

    Args:
        values: in [0, 1].
        clusters: the cluster of each value.
    """
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    independent = len(values) * mean * (1 - mean)
    if independent <= 0:  # nothing varies: assume that a cluster's values are copies
        return len(values) / len(sums)
    return max(1.0, math.fsum(s * s for s in sums.values()) / independent)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error s / sqrt(n) (s divides by n - 1); the error is nan for n < 2."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def ratio_and_error(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The ratio of two sums, R = sum v / sum w, and its standard error.

    sqrt( n / (n - 1) sum (v - R w)^2 ) / sum w, the linearized variance of a ratio estimate. With
    equal weights these are the mean of v / w and its standard error.
    Source: W. G. Cochran, Sampling Techniques (1977), chapter 6.

    Args:
        values: of n independent units, for example the losses of texts.
        weights: their sizes, for example numbers of tokens, above 0.

    Returns:
        the ratio and its error, which is nan for n < 2.
    """
    n, whole = len(values), math.fsum(weights)
    ratio = math.fsum(values) / whole
    if n < 2:
        return ratio, math.nan
    squares = math.fsum((v - ratio * w) ** 2 for v, w in zip(values, weights, strict=True))
    return ratio, math.sqrt(squares * n / (n - 1)) / whole


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests by Holm's method.

    The i-th smallest of m is multiplied by m - i + 1, but is never below a smaller one or above 1.
    Source: S. Holm (1979), Scand. J. Statist. 6:65-70.
    """
    m, greatest = len(p_values), 0.0
    corrected = [0.0] * m
    for i, k in enumerate(sorted(range(m), key=lambda k: p_values[k])):
        greatest = max(greatest, min(1.0, (m - i) * p_values[k]))
        corrected[k] = greatest
    return corrected
