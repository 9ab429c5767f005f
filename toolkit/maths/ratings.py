"""Elo's arithmetic, and ratings as scalar labels."""

import math
from collections.abc import Iterable, Sequence

ELO_SCALE = 400 / math.log(10)  # points of one nat of log-odds: 100 points are 0.575646 nats


def elo_expectation(own: float, other: float) -> float:
    """Probability of a win, 1 / (1 + 10^((other - own) / 400)). Source: A. Elo (1978)."""
    return 1 / (1 + 10 ** ((other - own) / 400))


def elo_ratings(
    matches: Iterable[tuple[int, int]], players: int, k: float = 32, start: float = 1500
) -> list[float]:
    """Ratings after the matches in order: r <- r + k (result - expectation) for both players.

    Args:
        matches: (winner, loser), indices of players.
        players: number of players.
        k: the most that one match moves a rating.
        start: rating of every player at the start.
    """
    ratings = [start] * players
    for winner, loser in matches:
        move = k * (1 - elo_expectation(ratings[winner], ratings[loser]))
        ratings[winner] += move
        ratings[loser] -= move
    return ratings


def z_scores(values: Sequence[float]) -> list[float]:
    """(v - mean) / population std, as targets of a scalar loss; zeros if all are equal."""
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    if std <= 1e-12 * max(1.0, abs(mean)):
        return [0.0] * len(values)
    return [(v - mean) / std for v in values]
