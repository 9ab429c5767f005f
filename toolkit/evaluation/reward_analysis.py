"""Compute the numbers of the reward model report: can the model be trusted?"""

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from scipy.stats import chisquare

from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.evaluation.reward_groups import (
    Scores,
    by_k,
    by_labeler,
    by_quarter,
    by_source,
    margin,
    mean,
    mean_length,
    prompts_of,
    share_of,
    top,
)
from toolkit.evaluation.reward_lengths import length_bias
from toolkit.evaluation.reward_results import (
    Analysis,
    Calibration,
    CalibrationHalf,
    Histogram,
    Histograms,
    Mistake,
    NotCalibrated,
    People,
    Positions,
    SureGuesses,
)
from toolkit.maths.agreement import one_rater_accuracy, split_half_accuracy
from toolkit.maths.calibration import (
    as_table,
    bins,
    confidence,
    expected_calibration_error,
    fit_temperature,
)
from toolkit.maths.losses import best_of_k_loss
from toolkit.scoring.accuracy import best_of_k_accuracy, credit, share
from toolkit.scoring.power import power_of


def analyze(
    rows: Sequence[Row],
    raw: Scores,
    gain: float,
    bias: float,
    baselines: dict[str, Callable[[list[str]], Sequence[float]]] | None = None,
    own: Sequence[int] | None = None,
) -> Analysis:
    """Compute all sections of the report on comparisons, held out if they can be.

    Args:
        rows: comparisons; ``scores`` or ``margin``, ``ratings`` and ``labeler`` are optional.
        raw: the reward model's scores of each row's completions, before normalization.
        gain, bias: the normalization.
        baselines: functions by name that score completions; the highest score is the guess. The
            longest completion is always added.
        own: in a cross-validation, the indices of the rows that the adapter itself scored. Another
            model's scores are on another scale, so the histogram shows only these; None for all.

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
    guesses = [top(scores) for scores in raw]
    texts = [row["completions"] for row in rows]
    right = [credit(s, b, x) for s, b, x in zip(raw, best, texts, strict=True)]
    metrics = best_of_k_accuracy(raw, best, texts, prompts_of(rows))

    everyone = {"longest completion": lambda texts: [len(text) for text in texts]}
    found = {}
    for name, guess in (everyone | (baselines or {})).items():
        found[name] = share_of(
            [credit(guess(x), b, x) for x, b in zip(texts, best, strict=True)], rows
        )

    accuracy = share_of(right, rows)
    seen = range(len(raw)) if own is None else own
    flat = [score for i in seen for score in raw[i]]
    return Analysis(
        metrics=metrics,
        accuracy=replace(accuracy, low=metrics.accuracy_low, high=metrics.accuracy_high),
        chance=math.fsum(1 / len(scores) for scores in raw) / len(raw),
        pairwise_accuracy=_pairwise(raw, best, texts),
        baselines=found,
        people=people(rows),
        by_k=by_k(rows, right),
        by_margin=by_quarter(rows, right, margin),
        by_length=by_quarter(rows, right, mean_length),
        by_source=by_source(rows, right),
        by_labeler=by_labeler(rows, right),
        power=power_of([1 / len(scores) for scores in raw], accuracy.prompts),
        calibration=calibration(rows, raw, best),
        position=position_bias(rows, guesses),
        length_bias=length_bias(rows, raw, guesses),
        histogram=Histograms(
            raw=_histogram(flat),
            normalised=_histogram([gain * score + bias for score in flat]),
            gain=gain,
            bias=bias,
        ),
        mistakes=mistakes(rows, raw, guesses, right),
    )


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
            one_rater=mean([one_rater_accuracy(r["ratings"], r["best"]) for r in rated]),
            split_half=mean([split_half_accuracy(r["ratings"], rng) for r in rated]),
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
            confidence=mean([sure[i] for i in group]),
            **vars(share_of([right[i] for i in group], [rows[i] for i in group])),
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


def _histogram(values: Sequence[float], count: int = 40) -> Histogram:
    low, high = min(values), max(values)
    width = (high - low) / count or 1.0
    counts = [0] * count
    for value in values:
        counts[min(count - 1, int((value - low) / width))] += 1

    middle = mean(values)
    std = math.sqrt(mean([(v - middle) ** 2 for v in values]))
    return Histogram(low, width, counts, middle, std)


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
