"""Rate models or completions from choices, even if not all of them met.

A contest is one comparison: its competitors (names) and their order, the best first, as far as it
is known. Strengths follow the Plackett-Luce model, which is Bradley-Terry for two competitors, and
are fitted by choix. Ratings are on Elo's scale: mean 1500, and 400 points for odds of 10 to 1.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import choix
import numpy as np
import torch
from tqdm.auto import tqdm

from toolkit.data.files import read_object, write_json
from toolkit.data.records import Row, from_row, to_row
from toolkit.errors import InputError, check_choice
from toolkit.evaluation.result import PairRating
from toolkit.maths.choices import misfit
from toolkit.maths.ratings import ELO_SCALE, elo_ratings, z_scores
from toolkit.terminal import counted

WORST = "rows name the worst of more than three completions, which is ignored"
PREDICTED = ("predicted by scores", "95 %", "by its choices")
METHODS = ("plackett_luce", "bradley_terry", "elo")
# Competitors; their places, best first; and a key that contests of the same prompt share.
Contest = tuple[tuple[str, ...], tuple[int, ...], str]
Placed = tuple[tuple[int, ...], tuple[int, ...]]  # competitors by number, and their places


@dataclass
class Predicted:
    """What a reward model's scores say of a competitor, on the same scale.

    Attributes:
        points: 1500 + 174 times its mean score in nats above the others', within comparisons.
        low, high: its 95 % bootstrap interval.
        by_choices: its rating if the reward model's choices are taken for people's.
    """

    points: float
    low: float
    high: float
    by_choices: float


@dataclass
class Rating:
    """A competitor's rating with its 95 % bootstrap interval, and its contests and first places."""

    name: str
    rating: float
    low: float
    high: float
    contests: int
    wins: int
    predicted: Predicted | None = None


@dataclass
class Ratings:
    """The result of ratings.py, stored in ratings.json.

    Attributes:
        method: how the ratings were made.
        ratings: the best first.
        reward_model: whose predictions stand beside them; None for none.
        left_out: comparisons that were left out because it was trained on their prompts.
    """

    method: str
    ratings: list[Rating]
    reward_model: str | None = None
    left_out: int = 0

    @classmethod
    def read(cls, path: str | Path, what: str) -> "Ratings":
        """Read what ``write`` wrote.

        Raises:
            InputError: the file is missing or malformed.
        """
        found = from_row(Ratings, read_object(path, what), str(path))
        check_choice(f"{path}: method", found.method, METHODS)
        return found

    def write(self, path: str | Path) -> None:
        """Write the ratings atomically."""
        write_json(path, to_row(self))

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The headers and a row for each competitor, the best first."""
        predicted = self.reward_model is not None
        rows = [
            [
                r.name,
                f"{r.rating:.0f}",
                f"{r.low:.0f} to {r.high:.0f}",
                str(r.contests),
                f"{r.wins / r.contests:.0%}",
                *_predictions(r.predicted),
            ]
            for r in self.ratings
        ]
        headers = ["model", "rating", "95 %", "contests", "won"]
        return [*headers, *(PREDICTED if predicted else ())], rows


def _predictions(predicted: Predicted | None) -> list[str]:
    """The cells of what a reward model predicts; none without one."""
    if predicted is None:
        return []
    p = predicted
    return [f"{p.points:.0f}", f"{p.low:.0f} to {p.high:.0f}", f"{p.by_choices:.0f}"]


def contests_between_models(
    rows: Iterable[tuple[str, Row]], noted: Counter[str] | None = None
) -> list[Contest]:
    """Make contests of comparisons whose ``models`` name the writer of each completion.

    Args:
        rows: rows with their places for messages.
        noted: what of the rows could not be used, with counts; filled as rows are read.

    Raises:
        InputError: a row does not have one model per completion.
    """
    contests = []
    for place, row in rows:
        models = row.get("models")
        if not isinstance(models, list) or len(models) != len(row["completions"]):
            raise InputError(
                f"{place}: models: missing, or not one for each completion "
                '(name the writers, as in "models": ["gpt2", "gpt2-tuned", ...])'
            )
        contests.append((tuple(map(str, models)), _order(row, noted), repr(row["prompt"])))
    return contests


def _order(row: Row, noted: Counter[str] | None) -> tuple[int, ...]:
    """Return what is known of a row's order, the best first.

    Of three completions, the best and the worst tell the whole order. Of more, the order between
    them stays open, which a list of places cannot say, so the worst is ignored and counted.
    """
    if row.get("ranking"):
        return tuple(row["ranking"])

    best, worst, count = row["best"], row.get("worst"), len(row["completions"])
    if worst is None or worst == best or count < 3:
        return (best,)
    if count == 3:
        return (best, 3 - best - worst, worst)
    if noted is not None:
        noted[WORST] += 1
    return (best,)


def rate(
    contests: Sequence[Contest], method: str, resamples: int = 200, seed: int = 0
) -> list[Rating]:
    """Rate all competitors, the best first.

    Args:
        contests: the contests; a competitor is never compared with itself.
        method: "plackett_luce" (each pick from those left), "bradley_terry" (each order as pairs)
            or "elo" (pairs in turn, K = 32, so the order of the contests matters).
        resamples: number of bootstrap samples for the intervals; prompts are drawn with all their
            contests, which stay in order.
        seed: seed of the bootstrap.

    Raises:
        InputError: some models never met the others, directly or through third models.
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


UNSURE = 0.01  # the share of good fits of which it is said by chance


def said_of_misfit(contests: Sequence[Contest]) -> str | None:
    """Return a line if the first places surely do not fit one scale of ratings; else None."""
    names = sorted({name for competitors, _, _ in contests for name in competitors})
    place = {name: i for i, name in enumerate(names)}
    shown = torch.zeros(len(contests), len(names))
    for row, (competitors, _, _) in zip(shown, contests, strict=True):
        for name in competitors:
            row[place[name]] += 1
    chosen = [place[competitors[order[0]]] for competitors, order, _ in contests]
    found = misfit(shown, torch.tensor(chosen))
    if found is None or found.p_value >= UNSURE:
        return None
    freedom = counted(found.freedom, "degree of freedom", "degrees of freedom")
    return (
        f"note: these picks do not fit one scale of ratings (chi-squared {found.statistic:.1f}, "
        f"{freedom}). Careless picks do that: models far apart then seem nearer than the steps "
        "between them add up to, and a rating's interval may miss what two models' own picks say."
    )


def with_predictions(
    ratings: Sequence[Rating],
    contests: Sequence[Contest],
    scores: Sequence[Sequence[float]],
    method: str,
    resamples: int = 200,
    seed: int = 0,
) -> list[Rating]:
    """Put beside each rating what a reward model predicts of it.

    A difference of one nat between its scores means odds of e, which are 174 points. Scores are
    compared within comparisons only: each score is a level of its comparison plus one of its
    writer, fitted by least squares, so that a writer of easy prompts gains nothing.
    Source: arXiv 2204.05862, section 4.5 (Elo scores that a preference model predicts).

    Args:
        ratings: of ``rate``, for these contests.
        contests: the contests.
        scores: the score of each contest's texts in nats, without gain and bias.
        method, resamples, seed: as for ``rate``.
    """
    names = [r.name for r in ratings]
    place = {name: i for i, name in enumerate(names)}
    prompts: dict[str, list[int]] = defaultdict(list)
    for i, (_, _, prompt) in enumerate(contests):
        prompts[prompt].append(i)

    # The sums of the normal equations, one part a prompt, so that a draw only adds up parts.
    squares = np.zeros((len(prompts), len(names), len(names)))
    products = np.zeros((len(prompts), len(names)))
    for group, members in enumerate(prompts.values()):
        for i in members:
            writers = np.eye(len(names))[[place[name] for name in contests[i][0]]]
            writers -= writers.mean(axis=0)
            squares[group] += writers.T @ writers
            products[group] += writers.T @ np.asarray(scores[i], dtype=float)

    def points(weights: np.ndarray) -> np.ndarray:
        levels = np.linalg.pinv(np.tensordot(weights, squares, 1)) @ (weights @ products)
        return 1500 + ELO_SCALE * (levels - levels.mean())

    rng = np.random.default_rng(seed)
    even = np.full(len(prompts), 1 / len(prompts))
    draws = [points(rng.multinomial(len(prompts), even)) for _ in range(resamples)]
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    middle = points(np.ones(len(prompts)))

    # Who would be chosen, were the scores the choices.
    ordered = sorted(place)
    number = {name: i for i, name in enumerate(ordered)}
    chosen = [
        (tuple(number[name] for name in competitors), (int(np.argmax(own)),))
        for (competitors, _, _), own in zip(contests, scores, strict=True)
    ]
    by_choices = _fit(chosen, len(ordered), method)
    return [
        replace(
            r,
            predicted=Predicted(
                points=float(middle[i]),
                low=float(low[i]),
                high=float(high[i]),
                by_choices=float(by_choices[number[r.name]]),
            ),
        )
        for i, r in enumerate(ratings)
    ]


def rate_pairs(
    names: Sequence[str],
    verdicts: dict[tuple[str, str], list[int | None]],
    resamples: int = 400,
    seed: int = 0,
) -> list[PairRating]:
    """Rate contenders who met on the same prompts by Bradley-Terry; a tie is half a win each.

    Args:
        names: names of all contenders.
        verdicts: (contender, opponent) -> 1, 0, -1 or None (not judged) for each prompt.
        resamples: number of bootstrap samples of the prompts for the 95 % intervals.
        seed: seed of the bootstrap.

    Returns:
        The ratings on Elo's scale with mean 1500, the best first.
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

    # Drawing prompts with replacement means weighting each one by its count.
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
            f"models: {first} and {second} never met, directly or through others, so they cannot "
            "be ranked (rate them separately, or compare them)"
        )


def _resample(groups: list[list[int]], rng: random.Random) -> list[int]:
    return sorted(i for group in rng.choices(groups, k=len(groups)) for i in group)


def _fit(contests: Sequence[Placed], players: int, method: str) -> np.ndarray:
    picks = [pick for competitors, order in contests for pick in _picks(competitors, order)]
    if method == "plackett_luce":
        return 1500 + ELO_SCALE * strengths(picks, players)
    # A model is not compared with itself.
    pairs = [(winner, loser) for winner, losers in picks for loser in losers if loser != winner]
    if method == "bradley_terry":
        return 1500 + ELO_SCALE * strengths([(w, (loser,)) for w, loser in pairs], players)
    return np.array(elo_ratings(pairs, players))


def _picks(competitors: Sequence[int], order: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """List (winner, those left) for each known place at which there is somebody else.

    Those left have the winner's own other texts among them: who wrote two of three is picked more
    often for that alone, and a likelihood without them would call it strength.
    """
    picks = []
    left = set(range(len(competitors)))
    for best in order:
        left.discard(best)
        losers = tuple(competitors[k] for k in sorted(left))
        if any(loser != competitors[best] for loser in losers):
            picks.append((competitors[best], losers))
    return picks


def strengths(
    picks: Sequence[tuple[int, Sequence[int]]], players: int, alpha: float = 0.01
) -> np.ndarray:
    """Fit Plackett-Luce log-strengths (players,) in nats, mean 0, by choix's spectral method.

    Args:
        picks: (winner, losers) as indices.
        players: number of players.
        alpha: pulls towards equality a little, so that a player who never lost stays finite.
    """
    fitted = choix.ilsr_top1(players, [(w, tuple(losers)) for w, losers in picks], alpha=alpha)
    return fitted - fitted.mean()


def scores_from_rankings(
    rows: Iterable[Row], alpha: float = 0.1, noted: Counter[str] | None = None
) -> list[Row]:
    """Merge the labels of each prompt into one row with ``scores``.

    A completion's score is its Plackett-Luce strength over the prompt's labels, as a z-score.
    ``best`` and ``ranking`` follow the scores (no ranking if two are equal), and ``labels`` counts
    the labels. Prompts with a tie for the best are left out.

    Args:
        rows: the labels, as comparisons.
        alpha: of ``strengths``.
        noted: what of the rows could not be used, with counts; filled as rows are read.
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
            for pick in _picks([place[text] for text in row["completions"]], _order(row, noted))
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
