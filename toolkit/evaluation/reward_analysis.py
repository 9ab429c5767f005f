"""Compute the numbers of the reward model report: can the model be trusted?"""

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from scipy.stats import chisquare, spearmanr

from toolkit.data.chat import Messages
from toolkit.data.files import read_object, write_json
from toolkit.data.records import Row, from_row, to_row
from toolkit.errors import InputError
from toolkit.evaluation.reward_bench import RewardBench
from toolkit.maths.agreement import one_rater_accuracy, split_half_accuracy
from toolkit.maths.calibration import (
    as_table,
    bins,
    confidence,
    expected_calibration_error,
    fit_temperature,
)
from toolkit.maths.lengths import length_line
from toolkit.maths.losses import best_of_k_loss
from toolkit.scoring.accuracy import (
    RewardMetrics,
    Share,
    best_of_k_accuracy,
    credit,
    share,
)

Scores = Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Group(Share):
    """The accuracy on a group of rows, and the accuracy of chance there."""

    group: str
    chance: float


@dataclass(frozen=True)
class People:
    """Agreement between people; each figure is None if the rows do not hold what it needs.

    Attributes:
        one_rater: how often one random rater per candidate leads to the same pick as all raters
            together (who include that rater).
        split_half: how often two halves of the raters pick the same.
        rated_rows: rows with ratings.
        two_labellers: how often two labelers of the same completions pick the same.
    """

    one_rater: float | None = None
    split_half: float | None = None
    rated_rows: int | None = None
    two_labellers: Share | None = None

    @property
    def known(self) -> bool:
        """Whether the rows show anything about agreement."""
        return self.one_rater is not None or self.two_labellers is not None


@dataclass(frozen=True, kw_only=True)
class SureGuesses(Share):
    """The accuracy of guesses with about the same softmax probability."""

    confidence: float


@dataclass(frozen=True)
class CalibrationHalf:
    """Expected calibration error, loss in nats, and the curve, at one temperature."""

    ece: float
    loss: float
    curve: list[SureGuesses]


@dataclass(frozen=True)
class Calibration:
    """One half of the prompts before and after a temperature fitted on the other half."""

    temperature: float
    fitted_on: int
    tested_on: int
    before: CalibrationHalf
    after: CalibrationHalf


@dataclass(frozen=True)
class NotCalibrated:
    """The reason why the calibration was not measured."""

    reason: str


@dataclass(frozen=True)
class Positions:
    """Shares of people's and the model's picks at each position, for comparisons of K completions.

    ``people_p`` and ``model_p`` come from a chi-squared test that picks do not depend on position;
    they are small if people (or the file's author) favored a position.
    """

    k: int
    n: int
    people: list[float]
    model: list[float]
    people_p: float
    model_p: float


@dataclass(frozen=True)
class Correlations:
    """Spearman's correlation of length with the model's scores and with people's picks."""

    model: float
    people: float


@dataclass(frozen=True)
class Shares:
    """A share of the model's picks, and the same share of people's picks."""

    model: Share
    people: Share


@dataclass(frozen=True)
class WithoutLength:
    """What is left of the model's ranking once length is regressed out of its scores.

    Attributes:
        slope: raw score per character, of differences within comparisons.
        explained: share of the scores' variance within comparisons that length explains.
        same_picks: how often the model's pick stays the same.
        accuracy: of the picks that are left.
    """

    slope: float
    explained: float
    same_picks: Share
    accuracy: Share


@dataclass(frozen=True)
class LengthBias:
    """Whether the model likes long answers more than people do.

    ``without_length`` is None if the completions of a comparison are always equally long, and in
    old files.
    """

    rank_correlation: Correlations
    picks_longest: Shares
    accuracy_if_best_is_longest: Share
    accuracy_if_not: Share
    without_length: WithoutLength | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in equal bins from ``low`` on, with mean and standard deviation."""

    low: float
    width: float
    counts: list[int]
    mean: float
    std: float


@dataclass(frozen=True)
class Histograms:
    """The scores as trained, and as gain x raw + bias."""

    raw: Histogram
    normalised: Histogram
    gain: float
    bias: float


@dataclass(frozen=True)
class Mistake:
    """A wrong guess, with the softmax's probabilities of it and of people's pick."""

    prompt: str | Messages
    model_pick: str
    people_pick: str
    confidence: float
    people_probability: float
    labeler: str | None


@dataclass(frozen=True)
class Analysis:
    """All sections of the report.

    Attributes:
        metrics: the metrics of metrics.json.
        accuracy: accuracy with the interval that the verdict uses.
        chance: accuracy of random guesses.
        pairwise_accuracy: share of (best, other) pairs in which the best scores higher.
        baselines: accuracies by the baseline's name.
        people: agreement between people.
        by_k, by_margin, by_length: accuracy on groups of rows; empty if no row can be grouped.
        reward_bench: what RewardBench 2 says; None if it was not asked.
    """

    metrics: RewardMetrics
    accuracy: Share
    chance: float
    pairwise_accuracy: float
    baselines: dict[str, Share]
    people: People
    by_k: list[Group]
    by_margin: list[Group]
    by_length: list[Group]
    calibration: Calibration | NotCalibrated
    position: list[Positions]
    length_bias: LengthBias
    histogram: Histograms
    mistakes: list[Mistake]
    reward_bench: RewardBench | None = None


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy, its interval and the loss after training on a share of the labels."""

    fraction: float
    train: int
    value: float
    low: float
    high: float
    loss: float | None


@dataclass(frozen=True)
class RewardReport:
    """The result of reward_report.py, stored in reward_report.json.

    Attributes:
        label_curve: accuracy against labels, the smallest share first; empty if not measured.
        run: run.json of the model.
        verdict: the verdict in a sentence.
    """

    analysis: Analysis
    label_curve: list[CurvePoint] = field(default_factory=list)
    run: Row = field(default_factory=dict)
    verdict: str = ""

    @classmethod
    def read(cls, path: Path, what: str) -> "RewardReport":
        """Read reward_report.json.

        Raises:
            InputError: the file is missing or malformed.
        """
        return from_row(RewardReport, read_object(path, what), str(path))

    def write(self, path: Path) -> None:
        """Write reward_report.json atomically."""
        write_json(path, to_row(self))


def analyze(
    rows: Sequence[Row],
    raw: Scores,
    gain: float,
    bias: float,
    baselines: dict[str, Callable[[list[str]], Sequence[float]]] | None = None,
) -> Analysis:
    """Compute all sections of the report on held-out comparisons.

    Args:
        rows: comparisons; ``scores`` or ``margin``, ``ratings`` and ``labeler`` are optional.
        raw: the reward model's scores of each row's completions, before normalization.
        gain, bias: the normalization.
        baselines: functions by name that score completions; the highest score is the guess. The
            longest completion is always added.

    Raises:
        InputError: a score is NaN or infinite.
    """
    for row, scores in zip(rows, raw, strict=True):
        if not all(map(math.isfinite, scores)):
            raise InputError(
                f"reward: a score in the comparison of {row['completions'][0]!r:.60} is NaN or "
                "infinite (the reward model's weights are broken, or the precision is too low)"
            )

    best = [row["best"] for row in rows]
    guesses = [_top(scores) for scores in raw]
    texts = [row["completions"] for row in rows]
    right = [credit(s, b, x) for s, b, x in zip(raw, best, texts, strict=True)]
    metrics = best_of_k_accuracy(raw, best, texts, _prompts(rows))

    everyone = {"longest completion": lambda texts: [len(text) for text in texts]}
    found = {}
    for name, guess in (everyone | (baselines or {})).items():
        found[name] = _share(
            [credit(guess(x), b, x) for x, b in zip(texts, best, strict=True)], rows
        )

    return Analysis(
        metrics=metrics,
        accuracy=replace(_share(right, rows), low=metrics.accuracy_low, high=metrics.accuracy_high),
        chance=math.fsum(1 / len(scores) for scores in raw) / len(raw),
        pairwise_accuracy=_pairwise(raw, best, texts),
        baselines=found,
        people=people(rows),
        by_k=_by_k(rows, right),
        by_margin=_by_quarter(rows, right, _margin),
        by_length=_by_quarter(rows, right, _mean_length),
        calibration=calibration(rows, raw, best),
        position=position_bias(rows, guesses),
        length_bias=length_bias(rows, raw, guesses),
        histogram=Histograms(
            raw=_histogram([s for scores in raw for s in scores]),
            normalised=_histogram([gain * s + bias for scores in raw for s in scores]),
            gain=gain,
            bias=bias,
        ),
        mistakes=mistakes(rows, raw, guesses, right),
    )


def _top(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _prompts(rows: Sequence[Row]) -> list[str]:
    return [repr(row["prompt"]) for row in rows]


def _share(credits: Sequence[float], rows: Sequence[Row]) -> Share:
    return share(credits, _prompts(rows))


def _pairwise(raw: Scores, best: Sequence[int], texts: Sequence[list[str]]) -> float:
    """Share of (best, other) pairs in which the best scores higher; equal scores count half."""
    points = [
        (scores[b] > s) + 0.5 * (scores[b] == s)
        for scores, b, x in zip(raw, best, texts, strict=True)
        for k, s in enumerate(scores)
        if x[k] != x[b]
    ]
    return sum(points) / len(points)


def _loss(raw: Scores, best: Sequence[int], temperature: float = 1.0) -> float:
    table, mask, picks = as_table(raw, best)
    return best_of_k_loss(table / temperature, picks, mask).item()


def people(rows: Sequence[Row]) -> People:
    """Compute how far people agree, from ratings and from several labels of one item."""
    found = People()
    rated = [row for row in rows if _has_ratings(row)]
    if rated:
        rng = random.Random(0)
        found = People(
            one_rater=_mean([one_rater_accuracy(r["ratings"], r["best"]) for r in rated]),
            split_half=_mean([split_half_accuracy(r["ratings"], rng) for r in rated]),
            rated_rows=len(rated),
        )

    picks: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.get("labeler"):
            item = json.dumps([row["prompt"], sorted(row["completions"])])
            picks[item][row["labeler"]] = row["completions"][row["best"]]
    equal = [
        a == b
        for by_labeler in picks.values()
        for i, a in enumerate(by_labeler.values())
        for b in list(by_labeler.values())[i + 1 :]
    ]
    return replace(found, two_labellers=share(equal, range(len(equal)))) if equal else found


def _has_ratings(row: Row) -> bool:
    ratings = row.get("ratings")
    if not isinstance(ratings, list) or len(ratings) != len(row["completions"]):
        return False
    return all(
        isinstance(each, list) and len(each) > 1 and all(isinstance(r, int | float) for r in each)
        for each in ratings
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _margin(row: Row) -> float | None:
    """Return how far people put the best above the second; None if the row does not say."""
    if row.get("scores") is not None:
        first, second, *_ = sorted(row["scores"], reverse=True)
        return first - second
    return row.get("margin")


def _mean_length(row: Row) -> float:
    return _mean([len(text) for text in row["completions"]])


def _by_k(rows: Sequence[Row], right: Sequence[float]) -> list[Group]:
    """Compute the accuracy for each number of completions."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[len(row["completions"])].append(i)
    return [_group(f"{k} completions", of, rows, right) for k, of in sorted(groups.items())]


def _by_quarter(
    rows: Sequence[Row], right: Sequence[float], key: Callable[[Row], float | None]
) -> list[Group]:
    """Compute the accuracy in each quarter of the rows by ``key``; empty if no row has one."""
    keyed = sorted((value, i) for i, row in enumerate(rows) if (value := key(row)) is not None)
    groups = []
    for q in range(4):
        part = keyed[len(keyed) * q // 4 : len(keyed) * (q + 1) // 4]
        if part:
            name = f"{part[0][0]:.3g} to {part[-1][0]:.3g}"
            groups.append(_group(name, [i for _, i in part], rows, right))
    return groups


def _group(name: str, of: list[int], rows: Sequence[Row], right: Sequence[float]) -> Group:
    chosen = [rows[i] for i in of]
    return Group(
        group=name,
        chance=_mean([1 / len(row["completions"]) for row in chosen]),
        **vars(_share([right[i] for i in of], chosen)),
    )


def calibration(
    rows: Sequence[Row], raw: Scores, best: Sequence[int]
) -> Calibration | NotCalibrated:
    """Compute ECE and loss on half of the prompts, before and after a temperature from the rest."""
    # Split by the prompt's digest, so that all rows of a prompt are in the same half.
    halves: tuple[list[int], list[int]] = ([], [])
    for i, row in enumerate(rows):
        digest = hashlib.blake2b(json.dumps(row["prompt"]).encode(), digest_size=1).digest()
        halves[digest[0] & 1].append(i)
    fit, test = halves
    if min(len(fit), len(test)) < 10:
        return NotCalibrated(f"{len(rows)} held-out comparisons are too few (two halves of 10)")

    temperature = fit_temperature([raw[i] for i in fit], [best[i] for i in fit])
    tested = [raw[i] for i in test]
    chosen = [rows[i] for i in test]
    return Calibration(
        temperature=temperature,
        fitted_on=len(fit),
        tested_on=len(test),
        before=_at_temperature(1.0, chosen, tested),
        after=_at_temperature(temperature, chosen, tested),
    )


def _at_temperature(temperature: float, rows: Sequence[Row], raw: Scores) -> CalibrationHalf:
    picks = [row["best"] for row in rows]
    right = [credit(s, b, r["completions"]) for s, b, r in zip(raw, picks, rows, strict=True)]
    sure = confidence(raw, temperature)
    curve = [
        SureGuesses(
            confidence=_mean([sure[i] for i in group]),
            **vars(_share([right[i] for i in group], [rows[i] for i in group])),
        )
        for group in bins(sure)
        if group
    ]
    error = expected_calibration_error(sure, right)
    return CalibrationHalf(error, _loss(raw, picks, temperature), curve)


def position_bias(rows: Sequence[Row], guesses: Sequence[int]) -> list[Positions]:
    """Count for each K how often people and the model pick each position."""
    found = []
    for k in sorted({len(row["completions"]) for row in rows}):
        chosen = [i for i, row in enumerate(rows) if len(row["completions"]) == k]
        people_at, model_at = [0] * k, [0] * k
        for i in chosen:
            people_at[rows[i]["best"]] += 1
            model_at[guesses[i]] += 1
        found.append(
            Positions(
                k=k,
                n=len(chosen),
                people=[count / len(chosen) for count in people_at],
                model=[count / len(chosen) for count in model_at],
                people_p=float(chisquare(people_at).pvalue),
                model_p=float(chisquare(model_at).pvalue),
            )
        )
    return found


def length_bias(rows: Sequence[Row], raw: Scores, guesses: Sequence[int]) -> LengthBias:
    """Measure whether the model prefers long completions, and more so than people do.

    ``rank_correlation`` is Spearman's correlation of score and length in characters within a
    comparison, averaged over comparisons. For people, being the pick replaces the score.
    """
    lengths = [[len(text) for text in row["completions"]] for row in rows]
    picked = [[float(k == row["best"]) for k in range(len(row["completions"]))] for row in rows]
    longest = [_top(each) for each in lengths]
    best = [row["best"] for row in rows]
    agree = [guess == pick for guess, pick in zip(guesses, best, strict=True)]
    guess_is_longest = [a == b for a, b in zip(guesses, longest, strict=True)]
    pick_is_longest = [a == b for a, b in zip(best, longest, strict=True)]

    return LengthBias(
        Correlations(
            model=_rank_correlation(raw, lengths), people=_rank_correlation(picked, lengths)
        ),
        Shares(model=_share(guess_is_longest, rows), people=_share(pick_is_longest, rows)),
        accuracy_if_best_is_longest=_where(agree, pick_is_longest, rows),
        accuracy_if_not=_where(agree, [not b for b in pick_is_longest], rows),
        without_length=without_length(rows, raw, guesses),
    )


def without_length(
    rows: Sequence[Row], raw: Scores, guesses: Sequence[int]
) -> WithoutLength | None:
    """Regress scores on length within comparisons, and rank by what is left.

    Only differences within a comparison rank, so scores and lengths are taken from their means in
    it. Then score = slope * length, by least squares over all completions.

    Args:
        rows: comparisons.
        raw: the model's scores of their completions.
        guesses: the model's picks.

    Returns:
        None if lengths never differ within a comparison.
    """
    lengths = [[float(len(text)) for text in row["completions"]] for row in rows]
    scored, long = _within(raw), _within(lengths)
    line = length_line(long, scored)
    if line is None:
        return None

    left = [
        [score - line.slope * length for score, length in zip(scores, each, strict=True)]
        for scores, each in zip(raw, lengths, strict=True)
    ]
    varies = scored.square().sum().item()
    by_length = line.slope**2 * long.square().sum().item()
    best, texts = [row["best"] for row in rows], [row["completions"] for row in rows]
    right = [credit(s, b, x) for s, b, x in zip(left, best, texts, strict=True)]
    same = [_top(scores) == guess for scores, guess in zip(left, guesses, strict=True)]
    return WithoutLength(
        slope=line.slope,
        explained=by_length / varies if varies > 0 else 0.0,
        same_picks=_share(same, rows),
        accuracy=_share(right, rows),
    )


def _within(values: Scores) -> torch.Tensor:
    """Return all values (N,) fp64 in a row, each less the mean of its comparison."""
    apart = [value - _mean(each) for each in values for value in each]
    return torch.tensor(apart, dtype=torch.float64)


def _where(agree: list[bool], chosen: list[bool], rows: Sequence[Row]) -> Share:
    kept = [i for i, each in enumerate(chosen) if each]
    return _share([agree[i] for i in kept], [rows[i] for i in kept])


def _rank_correlation(values: Scores, lengths: Scores) -> float:
    each = [
        spearmanr(v, n).statistic
        for v, n in zip(values, lengths, strict=True)
        if len(set(v)) > 1 and len(set(n)) > 1
    ]
    return float(_mean(each)) if each else 0.0


def _histogram(values: Sequence[float], count: int = 40) -> Histogram:
    low, high = min(values), max(values)
    width = (high - low) / count or 1.0
    counts = [0] * count
    for value in values:
        counts[min(count - 1, int((value - low) / width))] += 1

    mean = _mean(values)
    std = math.sqrt(_mean([(v - mean) ** 2 for v in values]))
    return Histogram(low, width, counts, mean, std)


def mistakes(
    rows: Sequence[Row],
    raw: Scores,
    guesses: Sequence[int],
    right: Sequence[float],
    count: int = 10,
) -> list[Mistake]:
    """Return the wrong guesses with the highest softmax probability."""
    sure = confidence(raw)
    wrong = [i for i, each in enumerate(right) if each == 0]
    worst = sorted(wrong, key=lambda i: -sure[i])[:count]

    found = []
    for i in worst:
        row, guess = rows[i], guesses[i]
        behind = raw[i][row["best"]] - raw[i][guess]  # the difference is in log-odds
        found.append(
            Mistake(
                prompt=row["prompt"],
                model_pick=row["completions"][guess],
                people_pick=row["completions"][row["best"]],
                confidence=sure[i],
                people_probability=sure[i] * math.exp(behind),
                labeler=row.get("labeler"),
            )
        )
    return found
