"""Who is best when nobody has met everybody: ratings of models or of completions from choices.

A contest is one comparison: its competitors (names) and the order in which they came out, from the
best on, as far as it is known. Strengths are Plackett-Luce's, which for two are Bradley-Terry's;
choix fits them. They are given on Elo's scale: mean 1500, and 400 points for odds of 10 to 1.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import choix
import numpy as np
from tqdm.auto import tqdm

from toolkit.data.files import write_json
from toolkit.data.records import Row, to_row
from toolkit.errors import InputError, check_choice
from toolkit.evaluation.result import PairRating
from toolkit.maths.ratings import ELO_SCALE, elo_ratings, z_scores

METHODS = ("plackett_luce", "bradley_terry", "elo")
# Competitors; places of them, best first; and what contests of one prompt have in common.
Contest = tuple[tuple[str, ...], tuple[int, ...], str]
Placed = tuple[tuple[int, ...], tuple[int, ...]]  # competitors by number, and their places


@dataclass
class Rating:
    """A competitor's rating with its 95 % bootstrap interval, and how often it took part and won.

    Wins are contests that it came out best of.
    """

    name: str
    rating: float
    low: float
    high: float
    contests: int
    wins: int


@dataclass
class Ratings:
    """What ratings.py found, as ratings.json holds it."""

    method: str
    ratings: list[Rating]

    def write(self, path: str | Path) -> None:
        """Write it, atomically."""
        write_json(path, to_row(self))


def contests_between_models(rows: Iterable[tuple[str, Row]]) -> list[Contest]:
    """The contests of comparisons that say which model wrote each completion (``models``).

    Args:
        rows: with their places.

    Raises:
        InputError: rows without it, or with another number of models than of completions.
    """
    contests = []
    for place, row in rows:
        models = row.get("models")
        if not isinstance(models, list) or len(models) != len(row["completions"]):
            raise InputError(
                f"{place}: models: missing, or not one for each completion "
                '(write who wrote what: "models": ["gpt2", "gpt2-tuned", ...])'
            )
        contests.append((tuple(map(str, models)), _order(row), repr(row["prompt"])))
    return contests


def _order(row: Row) -> tuple[int, ...]:
    return tuple(row.get("ranking") or [row["best"]])


def rate(
    contests: Sequence[Contest], method: str, resamples: int = 200, seed: int = 0
) -> list[Rating]:
    """Ratings of all competitors, the best first.

    Args:
        contests: a competitor who stands twice in one is not compared with itself.
        method: "plackett_luce" (each pick from those left), "bradley_terry" (each order as pairs)
            or "elo" (pairs, one after the other, K = 32: the order of the contests matters).
        resamples: prompts, with all their contests, are drawn with replacement so often for the
            intervals; contests stay in their order.
        seed: of that.

    Raises:
        InputError: some models never met any of the others, not even by way of third ones.
    """
    check_choice("method", method, METHODS)
    _check_connected(contests)

    names = sorted({name for competitors, _, _ in contests for name in competitors})
    place = {name: i for i, name in enumerate(names)}
    placed = [(tuple(place[n] for n in competitors), order) for competitors, order, _ in contests]
    prompts: dict[str, list[int]] = defaultdict(list)
    for i, (_, _, prompt) in enumerate(contests):
        prompts[prompt].append(i)

    point = _fit(placed, len(names), method)
    rng = random.Random(seed)
    draws = []
    for _ in tqdm(range(resamples), desc="Bootstrap", leave=False):
        again = [placed[i] for i in _resample(list(prompts.values()), rng)]
        draws.append(_fit(again, len(names), method))
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)

    wins = [sum(c[o[0]] == i for c, o in placed) for i in range(len(names))]
    met = [sum(i in c for c, _ in placed) for i in range(len(names))]
    ratings = [
        Rating(n, float(point[i]), float(low[i]), float(high[i]), met[i], wins[i])
        for n, i in place.items()
    ]
    return sorted(ratings, key=lambda r: -r.rating)


def rate_pairs(
    names: Sequence[str],
    verdicts: dict[tuple[str, str], list[int | None]],
    resamples: int = 400,
    seed: int = 0,
) -> list[PairRating]:
    """Bradley-Terry ratings of contenders who met on the same prompts; a tie is half a win each.

    Args:
        names: of all.
        verdicts: (contender, opponent) -> 1, 0, -1 or None (not judged) for each prompt.
        resamples: prompts are drawn with replacement so often for the 95 % intervals.
        seed: of that.

    Returns:
        the ratings, on Elo's scale with mean 1500, the best first.
    """
    place = {name: i for i, name in enumerate(names)}
    said = np.array(
        [[math.nan if v is None else v for v in row] for row in verdicts.values()], dtype=float
    )
    winners = np.array([place[a] for a, _ in verdicts])
    losers = np.array([place[b] for _, b in verdicts])

    def fit(weights: np.ndarray) -> np.ndarray:
        wins = np.zeros((len(names), len(names)))
        known = ~np.isnan(said)
        share = np.where(known, (1 + np.nan_to_num(said)) / 2, 0.0)
        np.add.at(wins, (winners, losers), share @ weights)
        np.add.at(wins, (losers, winners), (known - share) @ weights)
        return 1500 + ELO_SCALE * choix.ilsr_pairwise_dense(wins, alpha=0.01)

    # Prompts are drawn with replacement by how often each one counts.
    count = said.shape[1]
    point = fit(np.ones(count))
    rng = np.random.default_rng(seed)
    draws = [fit(rng.multinomial(count, np.full(count, 1 / count))) for _ in range(resamples)]
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)

    ratings = [
        PairRating(name, float(point[i]), float(low[i]), float(high[i]))
        for name, i in place.items()
    ]
    return sorted(ratings, key=lambda r: -r.rating)


def _check_connected(contests: Sequence[Contest]) -> None:
    groups: list[set[str]] = []
    for competitors, _, _ in contests:
        joined = set(competitors).union(*(g for g in groups if g & set(competitors)))
        groups = [g for g in groups if not g & joined] + [joined]
    if len(groups) > 1:
        first, second = (", ".join(sorted(g))[:60] for g in groups[:2])
        raise InputError(
            f"models: {first} and {second} never met, not even by way of others, so that nothing "
            "says which is better (rate them apart, or compare them)"
        )


def _resample(groups: list[list[int]], rng: random.Random) -> list[int]:
    return sorted(i for group in rng.choices(groups, k=len(groups)) for i in group)


def _fit(contests: Sequence[Placed], players: int, method: str) -> np.ndarray:
    picks = [pick for competitors, order in contests for pick in _picks(competitors, order)]
    if method == "plackett_luce":
        return 1500 + ELO_SCALE * strengths(picks, players)
    pairs = [(winner, loser) for winner, losers in picks for loser in losers]
    if method == "bradley_terry":
        return 1500 + ELO_SCALE * strengths([(w, (loser,)) for w, loser in pairs], players)
    return np.array(elo_ratings(pairs, players))


def _picks(competitors: Sequence[int], order: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """(winner, those left), for each place that is known."""
    picks = []
    left = set(range(len(competitors)))
    for best in order:
        left.discard(best)
        losers = tuple(competitors[k] for k in sorted(left) if competitors[k] != competitors[best])
        if losers:
            picks.append((competitors[best], losers))
    return picks


def strengths(
    picks: Sequence[tuple[int, Sequence[int]]], players: int, alpha: float = 0.01
) -> np.ndarray:
    """Plackett-Luce log-strengths (players,), in nats, mean 0, by choix's iterated spectral method.

    Args:
        picks: (winner, losers), indices.
        players: how many.
        alpha: pulls towards equality a little, so that one who never lost stays finite.
    """
    fitted = choix.ilsr_top1(players, [(w, tuple(losers)) for w, losers in picks], alpha=alpha)
    return fitted - fitted.mean()


def scores_from_rankings(rows: Iterable[Row], alpha: float = 0.1) -> list[Row]:
    """One row for each prompt, all labels of its completions made into ``scores``.

    Several models answer a prompt, people put the answers in order, and the orders become a number
    for each answer: Plackett-Luce strengths over that prompt's labels, as z-scores. ``best`` and
    ``ranking`` follow the scores (no ranking where two are equal), ``labels`` counts the labels;
    prompts whose labels leave a tie at the top are left out.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[repr(row["prompt"])].append(row)

    made: list[Row] = []
    for group in groups.values():
        completions = list(dict.fromkeys(text for row in group for text in row["completions"]))
        place = {text: i for i, text in enumerate(completions)}
        picks = [
            pick
            for row in group
            for pick in _picks([place[text] for text in row["completions"]], _order(row))
        ]

        fitted = z_scores([round(s, 9) for s in strengths(picks, len(completions), alpha)])
        ranking = sorted(range(len(fitted)), key=lambda i: -fitted[i])
        if fitted[ranking[0]] == fitted[ranking[1]]:
            continue

        scored: Row = {name: group[0][name] for name in ("prompt", "source") if name in group[0]}
        scored |= {
            "completions": completions,
            "best": ranking[0],
            "scores": fitted,
            "labels": len(group),
        }
        if len(set(fitted)) == len(fitted):
            scored["ranking"] = ranking
        made.append(scored)
    return made
