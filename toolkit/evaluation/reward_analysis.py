"""Can a reward model be trusted? Everything its report says, as plain numbers."""

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from scipy.stats import chisquare, spearmanr

from toolkit.errors import InputError
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

Row = dict[str, Any]
Scores = Sequence[Sequence[float]]


def analyse(
    rows: Sequence[Row],
    raw: Scores,
    gain: float,
    bias: float,
    baselines: dict[str, Callable[[list[str]], Sequence[float]]] | None = None,
) -> Row:
    """All sections of the report for held-out comparisons.

    Args:
        rows: comparisons; ``scores`` or ``margin``, ``ratings`` and ``labeler`` are used where they
            are there.
        raw: the reward model's scores of each row's completions, before normalisation.
        gain, bias: of the normalisation.
        baselines: by name, functions from completions to numbers whose highest is the guess; the
            longest completion is always among them.

    Raises:
        InputError: a score that is NaN or infinite.
    """
    for row, scores in zip(rows, raw, strict=True):
        if not all(map(math.isfinite, scores)):
            raise InputError(
                f"reward: a score of {row['completions'][0]!r:.60} or of its rivals is not finite "
                "(the reward model's weights are broken, or the precision is too low)"
            )
    best = [row["best"] for row in rows]
    guesses = [_top(scores) for scores in raw]
    texts = [row["completions"] for row in rows]
    right = [credit(s, b, x) for s, b, x in zip(raw, best, texts, strict=True)]
    everyone = {"longest completion": lambda texts: [len(text) for text in texts]}
    metrics = best_of_k_accuracy(raw, best, texts, _prompts(rows))
    report: Row = {
        "metrics": metrics,
        "accuracy": _share(right, rows)  # with the interval that the verdict is about
        | {"low": metrics["accuracy_low"], "high": metrics["accuracy_high"]},
        "chance": math.fsum(1 / len(scores) for scores in raw) / len(raw),
        "pairwise_accuracy": _pairwise(raw, best, texts),
        "baselines": {
            name: _share([credit(guess(x), b, x) for x, b in zip(texts, best, strict=True)], rows)
            for name, guess in (everyone | (baselines or {})).items()
        },
        "people": people(rows),
        "by_k": _by(rows, right, lambda row: len(row["completions"]), "completions"),
        "by_margin": _by_quarter(rows, right, _margin),
        "by_length": _by_quarter(rows, right, _mean_length),
        "calibration": calibration(rows, raw, best),
        "position": position_bias(rows, guesses),
        "length_bias": length_bias(rows, raw, guesses),
        "histogram": {
            "raw": _histogram([s for scores in raw for s in scores]),
            "normalised": _histogram([gain * s + bias for scores in raw for s in scores]),
            "gain": gain, "bias": bias,
        },
        "mistakes": mistakes(rows, raw, guesses, right),
    }  # fmt: skip
    return report


def _top(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _prompts(rows: Sequence[Row]) -> list[str]:
    return [repr(row["prompt"]) for row in rows]


def _share(credits: Sequence[float], rows: Sequence[Row]) -> Row:
    return share(credits, _prompts(rows))


def _pairwise(raw: Scores, best: Sequence[int], texts: Sequence[list[str]]) -> float:
    """Share of (best, other) pairs in which the best scores higher; half a point for equal ones."""
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


def people(rows: Sequence[Row]) -> Row:
    """How far people agree, where the rows tell: by ratings, and by several labels of one item.

    ``one_rater``: a rater drawn for each candidate against the pick that all made together (which
    counts that rater too). ``split_half``: two halves of the raters against each other.
    ``two_labellers``: two different labellers of the same completions.
    """
    found: Row = {}
    rated = [row for row in rows if _has_ratings(row)]
    if rated:
        rng = random.Random(0)
        found["one_rater"] = _mean([one_rater_accuracy(r["ratings"], r["best"]) for r in rated])
        found["split_half"] = _mean([split_half_accuracy(r["ratings"], rng) for r in rated])
        found["rated_rows"] = len(rated)
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
    if equal:
        found["two_labellers"] = share(equal, range(len(equal)))
    return found


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
    """By how much people put the best above the second."""
    if row.get("scores") is not None:
        first, second, *_ = sorted(row["scores"], reverse=True)
        return first - second
    return row.get("margin")


def _mean_length(row: Row) -> float:
    return _mean([len(text) for text in row["completions"]])


def _by(rows: Sequence[Row], right: Sequence[float], key: Callable[[Row], Any], what: str) -> list:
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[key(row)].append(i)
    return [
        {"group": f"{name} {what}", "chance": _mean([1 / len(rows[i]["completions"]) for i in g])}
        | _share([right[i] for i in g], [rows[i] for i in g])
        for name, g in sorted(groups.items())
    ]


def _by_quarter(
    rows: Sequence[Row], right: Sequence[float], key: Callable[[Row], float | None]
) -> list[Row]:
    """Accuracy in each quarter of the rows, ordered by ``key``; empty where no row has one."""
    keyed = sorted((value, i) for i, row in enumerate(rows) if (value := key(row)) is not None)
    groups = []
    for q in range(4):
        part = keyed[len(keyed) * q // 4 : len(keyed) * (q + 1) // 4]
        if part:
            groups.append(
                {
                    "group": f"{part[0][0]:.3g} to {part[-1][0]:.3g}",
                    "chance": _mean([1 / len(rows[i]["completions"]) for _, i in part]),
                }
                | _share([right[i] for _, i in part], [rows[i] for _, i in part])
            )
    return groups


def calibration(rows: Sequence[Row], raw: Scores, best: Sequence[int]) -> Row:
    """ECE and loss on one half of the prompts, before and after a temperature from the other."""
    halves: tuple[list[int], list[int]] = ([], [])
    for i, row in enumerate(rows):
        digest = hashlib.blake2b(json.dumps(row["prompt"]).encode(), digest_size=1).digest()
        halves[digest[0] & 1].append(i)
    fit, test = halves
    if min(len(fit), len(test)) < 10:
        return {"reason": f"{len(rows)} held-out comparisons are too few (two halves of 10)"}
    temperature = fit_temperature([raw[i] for i in fit], [best[i] for i in fit])
    tested, picks = [raw[i] for i in test], [best[i] for i in test]
    right = [
        credit(s, b, rows[i]["completions"]) for s, b, i in zip(tested, picks, test, strict=True)
    ]
    found: Row = {"temperature": temperature, "fitted_on": len(fit), "tested_on": len(test)}
    for name, t in (("before", 1.0), ("after", temperature)):
        sure = confidence(tested, t)
        found[name] = {
            "ece": expected_calibration_error(sure, right),
            "loss": _loss(tested, picks, t),
            "curve": [
                {"confidence": _mean([sure[i] for i in group])}
                | _share([right[i] for i in group], [rows[test[i]] for i in group])
                for group in bins(sure)
                if group
            ],
        }
    return found


def position_bias(rows: Sequence[Row], guesses: Sequence[int]) -> list[Row]:
    """For each K, how often each position is people's pick and the model's.

    ``p``: of chi-squared against picks that do not depend on position; small where people (or the
    file's author) favoured one.
    """
    found = []
    for k in sorted({len(row["completions"]) for row in rows}):
        chosen = [i for i, row in enumerate(rows) if len(row["completions"]) == k]
        people_at, model_at = [0] * k, [0] * k
        for i in chosen:
            people_at[rows[i]["best"]] += 1
            model_at[guesses[i]] += 1
        found.append({
            "k": k, "n": len(chosen), "people": [c / len(chosen) for c in people_at],
            "model": [c / len(chosen) for c in model_at],
            "people_p": float(chisquare(people_at).pvalue),
            "model_p": float(chisquare(model_at).pvalue),
        })  # fmt: skip
    return found


def length_bias(rows: Sequence[Row], raw: Scores, guesses: Sequence[int]) -> Row:
    """Does the model just like long answers, and more so than people do?

    ``rank_correlation`` is Spearman's between score and length in characters, within a comparison,
    averaged (for people: between being the pick and length, the same way).
    """
    lengths = [[len(text) for text in row["completions"]] for row in rows]
    picked = [[float(k == row["best"]) for k in range(len(row["completions"]))] for row in rows]
    longest = [_top(each) for each in lengths]
    best = [row["best"] for row in rows]
    agree = [guess == pick for guess, pick in zip(guesses, best, strict=True)]
    is_longest = [a == b for a, b in zip(best, longest, strict=True)]
    return {
        "rank_correlation": {
            "model": _rank_correlation(raw, lengths), "people": _rank_correlation(picked, lengths),
        },
        "picks_longest": {
            "model": _share([a == b for a, b in zip(guesses, longest, strict=True)], rows),
            "people": _share(is_longest, rows),
        },
        "accuracy_if_best_is_longest": _where(agree, is_longest, rows),
        "accuracy_if_not": _where(agree, [not b for b in is_longest], rows),
    }  # fmt: skip


def _where(agree: list[bool], chosen: list[bool], rows: Sequence[Row]) -> Row:
    kept = [i for i, each in enumerate(chosen) if each]
    return _share([agree[i] for i in kept], [rows[i] for i in kept])


def _rank_correlation(values: Scores, lengths: Scores) -> float:
    each = [
        spearmanr(v, n).statistic
        for v, n in zip(values, lengths, strict=True)
        if len(set(v)) > 1 and len(set(n)) > 1
    ]
    return float(_mean(each)) if each else 0.0


def _histogram(values: Sequence[float], count: int = 40) -> Row:
    low, high = min(values), max(values)
    width = (high - low) / count or 1.0
    counts = [0] * count
    for value in values:
        counts[min(count - 1, int((value - low) / width))] += 1
    mean = _mean(values)
    std = math.sqrt(_mean([(v - mean) ** 2 for v in values]))
    return {"low": low, "width": width, "counts": counts, "mean": mean, "std": std}


def mistakes(
    rows: Sequence[Row],
    raw: Scores,
    guesses: Sequence[int],
    right: Sequence[float],
    count: int = 10,
) -> list[Row]:
    """The wrong guesses that the softmax was surest of."""
    sure = confidence(raw)
    wrong = [i for i, each in enumerate(right) if each == 0]
    worst = sorted(wrong, key=lambda i: -sure[i])[:count]
    return [
        {
            "prompt": rows[i]["prompt"],
            "model_pick": rows[i]["completions"][guesses[i]],
            "people_pick": rows[i]["completions"][rows[i]["best"]],
            "confidence": sure[i],
            "people_probability": sure[i] * math.exp(raw[i][rows[i]["best"]] - raw[i][guesses[i]]),
            "labeler": rows[i].get("labeler"),
        }
        for i in worst
    ]
