"""How far people agree with each other, which bounds what a reward model can reach."""

import math
import random
from collections.abc import Sequence

import numpy as np


def one_rater_accuracy(ratings: Sequence[Sequence[float]], best: int) -> float:
    """Probability that ``best`` is rated highest if a rater is drawn for each candidate.

    Exact for independent draws: P = sum over v of P(best's rating = v) * E[1 / (1 + ties)], where
    none of the others is above v. Ties are broken at random.

    Args:
        ratings: K lists of any length.
        best: index of the pick.
    """
    total = 0.0
    own = ratings[best]

    for value in own:
        # Coefficients by number of ties: product over the others of P(below) + P(equal) x.
        ties = [1.0]
        for k, others in enumerate(ratings):
            if k == best:
                continue
            below = sum(r < value for r in others) / len(others)
            equal = sum(r == value for r in others) / len(others)
            ties = [
                (ties[m] * below if m < len(ties) else 0.0) + (ties[m - 1] * equal if m else 0.0)
                for m in range(len(ties) + 1)
            ]
        total += sum(p / (m + 1) for m, p in enumerate(ties)) / len(own)
    return total


def split_half_accuracy(ratings: Sequence[Sequence[float]], rng: random.Random) -> float:
    """Return 1 if two halves of the raters have the same favorite, else 0; a share where means tie.

    Args:
        ratings: K lists of at least two each.
        rng: draws the halves.
    """
    halves: tuple[list[float], list[float]] = ([], [])
    for values in ratings:
        shuffled = rng.sample(list(values), len(values))
        middle = len(shuffled) // 2
        for half, part in zip(halves, (shuffled[:middle], shuffled[middle:]), strict=True):
            half.append(sum(part) / len(part))
    first, second = ([k for k, v in enumerate(half) if v == max(half)] for half in halves)
    return len(set(first) & set(second)) / (len(first) * len(second))


def krippendorff_alpha(counts: np.ndarray) -> float:
    """Krippendorff's alpha for nominal data: 1 if all agree, 0 if they agree as often as by chance.

    alpha = 1 - D_o / D_e, where with m_u = sum over c of n_uc, and over units with m_u >= 2 only,
    n_c = sum over u of n_uc, n = sum over c of n_c:

        D_o = 1/n     sum over u of (m_u^2 - sum over c of n_uc^2) / (m_u - 1)
        D_e = 1/(n (n - 1))  (n^2 - sum over c of n_c^2)

    Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C;
    Content Analysis (4th edition, 2019), chapter 12.

    Args:
        counts: (U, C) integers, how many labelers put unit u into category c. Units with fewer
            than two labels do not count.

    Returns:
        Alpha, which may be negative; nan where no unit has two labels, or only one category occurs
        (D_e is 0: nobody could have disagreed). The package ``krippendorff`` 0.9 raises ValueError
        in the first case and, of ``value_counts``, gives nan with a warning in the second.
    """
    disagreements, labels = _per_unit(counts)
    return float(_alpha(disagreements.sum(), labels.sum(axis=0)))


def alpha_interval(
    counts: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of alpha; units are drawn with replacement.

    Units with the same counts are drawn together. How often each kind of unit is drawn is
    multinomial, so this is the bootstrap exactly, and few labelers make few kinds (two labels in
    6 categories make 21, for any number of units). Source: B. Efron and R. Tibshirani,
    An Introduction to the Bootstrap (1993), section 13.3. (Krippendorff himself draws pairs.)

    As a percentile interval, it is too narrow where units are few, and a point where all agree.
    Resamples in which only one category occurs have no alpha and are left out.

    Args:
        counts: (U, C), as ``krippendorff_alpha`` takes them.
        resamples: how many are drawn, each of as many units as have two labels or more.
        seed: seed of the draws.
        level: share of the resamples inside the interval.

    Returns:
        The interval's ends; nan, nan where alpha is nan, or fewer than two units have two labels.
    """
    counts = np.asarray(counts)
    counts = counts[counts.sum(axis=1) >= 2]
    if len(counts) < 2 or math.isnan(krippendorff_alpha(counts)):
        return math.nan, math.nan

    counts = counts[np.lexsort(counts.T)]
    first = np.flatnonzero(np.append(True, (counts[1:] != counts[:-1]).any(axis=1)))
    sizes = np.diff(np.append(first, len(counts)))
    disagreements, labels = _per_unit(counts[first])

    rng, chunk = np.random.default_rng(seed), max(1, 2_000_000 // len(first))  # 16 MB of weights
    alphas = []
    for start in range(0, resamples, chunk):
        weights = rng.multinomial(
            len(counts), sizes / len(counts), size=min(chunk, resamples - start)
        ).astype(float)
        alphas.append(_alpha(weights @ disagreements, weights @ labels))

    found = np.concatenate(alphas)
    found = found[~np.isnan(found)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _per_unit(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each unit with two labels or more: its summand of n D_o (U,), and n_uc (U, C)."""
    labels = np.asarray(counts, dtype=float)
    size = labels.sum(axis=1)
    labels, size = labels[size >= 2], size[size >= 2]
    return (size**2 - (labels**2).sum(axis=1)) / (size - 1), labels


def _alpha(disagreements: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Alpha (...,) from n D_o (...,) and n_c (..., C)."""
    n = labels.sum(axis=-1)
    with np.errstate(invalid="ignore"):  # 0 / 0 where only one category occurs
        return 1 - (n - 1) * disagreements / (n**2 - (labels**2).sum(axis=-1))
