"""Whether a reward model likes long answers, and how good it is at equal length."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import spearmanr

from toolkit.data.records import Row
from toolkit.evaluation.reward_groups import Scores, mean, prompts_of, share_of, top
from toolkit.evaluation.reward_results import Correlations, LengthBias, Shares, WithoutLength
from toolkit.maths.lengths import length_line
from toolkit.scoring.accuracy import Share, credit, share

NEAR = 0.1  # lengths that differ by no more than this share of the longer one count as equal


def length_bias(rows: Sequence[Row], raw: Scores, guesses: Sequence[int]) -> LengthBias:
    """Measure whether the model prefers long completions, and more so than people do.

    ``rank_correlation`` is Spearman's correlation of score and length in characters within a
    comparison, averaged over comparisons. For people, being the pick replaces the score.
    """
    lengths = [[len(text) for text in row["completions"]] for row in rows]
    picked = [[float(k == row["best"]) for k in range(len(row["completions"]))] for row in rows]
    longest = [top(each) for each in lengths]
    best = [row["best"] for row in rows]
    agree = [guess == pick for guess, pick in zip(guesses, best, strict=True)]
    guess_is_longest = [a == b for a, b in zip(guesses, longest, strict=True)]
    pick_is_longest = [a == b for a, b in zip(best, longest, strict=True)]

    pairs = _pairs(rows, raw)
    equal = [pair for pair in pairs if pair.alike]
    return LengthBias(
        Correlations(
            model=_rank_correlation(raw, lengths), people=_rank_correlation(picked, lengths)
        ),
        Shares(model=share_of(guess_is_longest, rows), people=share_of(pick_is_longest, rows)),
        accuracy_if_best_is_longest=_where(agree, pick_is_longest, rows),
        accuracy_if_not=_where(agree, [not b for b in pick_is_longest], rows),
        without_length=without_length(rows, raw, guesses),
        equal_pairs=_pair_share(equal) if equal else None,
        all_pairs=_pair_share(pairs),
    )


class _Pair(NamedTuple):
    prompt: str
    points: float  # 1 if the pick scores higher, 0.5 if both score the same
    alike: bool  # whether both are about equally long


def _pairs(rows: Sequence[Row], raw: Scores) -> list[_Pair]:
    """List the pairs of people's pick and another text, in all comparisons."""
    found = []
    for prompt, row, scores in zip(prompts_of(rows), rows, raw, strict=True):
        best, pick = scores[row["best"]], row["completions"][row["best"]]
        for text, score in zip(row["completions"], scores, strict=True):
            if text == pick:
                continue
            longer = max(len(text), len(pick))
            alike = abs(len(text) - len(pick)) <= NEAR * longer
            found.append(_Pair(prompt, (best > score) + 0.5 * (best == score), alike))
    return found


def _pair_share(pairs: Sequence[_Pair]) -> Share:
    """Return the share of the points, with an interval that knows which pairs share a prompt."""
    return share([pair.points for pair in pairs], [pair.prompt for pair in pairs])


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
    same = [top(scores) == guess for scores, guess in zip(left, guesses, strict=True)]
    return WithoutLength(
        slope=line.slope,
        explained=by_length / varies if varies > 0 else 0.0,
        same_picks=share_of(same, rows),
        accuracy=share_of(right, rows),
    )


def _within(values: Scores) -> torch.Tensor:
    """Return all values (N,) fp64 in a row, each less the mean of its comparison."""
    apart = [value - mean(each) for each in values for value in each]
    return torch.tensor(apart, dtype=torch.float64)


def _where(agree: list[bool], chosen: list[bool], rows: Sequence[Row]) -> Share:
    kept = [i for i, each in enumerate(chosen) if each]
    return share_of([agree[i] for i in kept], [rows[i] for i in kept])


def _rank_correlation(values: Scores, lengths: Scores) -> float:
    each = [
        spearmanr(v, n).statistic
        for v, n in zip(values, lengths, strict=True)
        if len(set(v)) > 1 and len(set(n)) > 1
    ]
    return float(mean(each)) if each else 0.0
