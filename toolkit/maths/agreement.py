"""How far people agree with each other: what a reward model can at best be asked for."""

import random
from collections.abc import Sequence


def one_rater_accuracy(ratings: Sequence[Sequence[float]], best: int) -> float:
    """Probability that one rater, drawn anew for each candidate, rates ``best`` highest.

    Exact: with independent draws, P = sum over v of P(best's rating = v) * E[1 / (1 + ties)] over
    the others, none above v; ties are broken by lot.

    Args:
        ratings: K lists, of any length each.
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
    """Whether two halves of the raters have the same favourite: 1, 0, or a share where means tie.

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
