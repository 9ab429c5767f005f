"""Compare contenders on the same prompts: win rates, significance, KL, gaps."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import binomtest

from toolkit.data.records import to_row
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.judges import Scores, Verdicts, pairs_of
from toolkit.evaluation.ratings import rate_pairs
from toolkit.evaluation.result import (
    ContenderResult,
    Gap,
    Length,
    Pair,
    PairCounts,
    PairRating,
    ScoreSummary,
    SeenPrompts,
)
from toolkit.evaluation.summaries import Summaries
from toolkit.evaluation.text_metrics import copying, describe
from toolkit.maths.lengths import LengthLine, length_line
from toolkit.maths.statistics import holm, mean_and_error, wilson_interval

FLIPS = 9_999  # random sign patterns of the paired test: p is known to about 0.002 at 0.05


def compare(
    names: Sequence[str], scores: dict[str, Scores], verdicts: dict[str, Verdicts], seed: int = 0
) -> tuple[list[Pair], dict[str, list[PairRating]]]:
    """Count all pairs under all judges, and rate the contenders by each judge.

    Args:
        names: names of the contenders, the reference first.
        scores: judge -> contender -> a score for each prompt.
        verdicts: judge -> (contender, opponent) -> 1, 0, -1 or None for each prompt.
        seed: seed of the tests and the bootstrap.

    Returns:
        The pairs; and judge -> ratings, the best first, if all contenders met each other.

    Raises:
        InputError: a score is NaN or infinite.
    """
    for judge, of in scores.items():
        for name, values in of.items():
            if not np.isfinite(values).all():
                raise InputError(f"judges: {judge}: a score of {name} is NaN or infinite")

    pairs: list[Pair] = []
    ratings: dict[str, list[PairRating]] = {}
    for judge in [*scores, *verdicts]:
        met = verdicts.get(judge) or _verdicts_of(scores[judge], names)

        counted: list[PairCounts] = []
        for (a, b), said in met.items():
            differences = None
            if judge in scores:
                differences = np.subtract(scores[judge][a], scores[judge][b])
            counted.append(count_pair(said, differences, seed))

        corrected = holm([counts.p_value for counts in counted])
        for (a, b), counts, p_holm in zip(met, counted, corrected, strict=True):
            pairs.append(Pair(judge=judge, a=a, b=b, p_holm=p_holm, **vars(counts)))

        if met and all(counts.judged for counts in counted):
            ratings[judge] = rate_pairs(names, met, seed=seed)
    return pairs, ratings


def _verdicts_of(scores: Scores, names: Sequence[str]) -> Verdicts:
    """Return a scoring judge's verdicts on all pairs: the higher score wins."""
    return {
        (a, b): [int(np.sign(x - y)) for x, y in zip(scores[a], scores[b], strict=True)]
        for a, b in pairs_of(names, "all")
    }


def count_pair(
    said: Sequence[int | None], differences: np.ndarray | None = None, seed: int = 0
) -> PairCounts:
    """Count one contender's wins, ties and losses against another, one verdict per prompt.

    ``win_rate`` is over decided prompts, with Wilson's 95 % interval; ``p_value`` is from the exact
    two-sided sign test, in which each prompt is one pair. If scores are given, their mean
    difference, its standard error and ``p_scores`` are added, the latter from a paired test with
    random signs of the differences (R. A. Fisher, 1935).

    Args:
        said: 1, 0, -1, or None if not judged.
        differences: (prompts,) differences of scores.
        seed: seed of the random signs.
    """
    wins, ties, losses = (sum(v == sign for v in said) for sign in (1, 0, -1))
    decided = wins + losses
    low, high = wilson_interval(wins, decided)

    mean = error = p_scores = None
    if differences is not None:
        mean, error = mean_and_error(differences.tolist())
        p_scores = paired_p_value(differences, seed)

    return PairCounts(
        wins=wins,
        ties=ties,
        losses=losses,
        not_judged=sum(v is None for v in said),
        win_rate=wins / decided if decided else 0.5,
        low=low,
        high=high,
        p_value=float(binomtest(wins, decided).pvalue) if decided else 1.0,
        difference=mean,
        difference_error=error,
        p_scores=p_scores,
    )


def paired_p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p of the mean difference under random signs; zeros change nothing."""
    d = differences[differences != 0]
    if not len(d):
        return 1.0

    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(FLIPS, len(d)), dtype=np.int8) * 2 - 1
    by_chance = np.abs(signs @ d)

    # Sums that differ only by rounding count as equal.
    reached = (by_chance >= abs(d.sum()) * (1 - 1e-12)).sum()
    return float(1 + reached) / (FLIPS + 1)


def contender_results(
    contenders: Sequence[Contender],
    outputs: dict[str, Outputs],
    scores: dict[str, Scores],
    prompts: Sequence[str],
    trained: dict[str, SeenPrompts],
    tokens: dict[str, list[int]] | None = None,
    summaries: Summaries | None = None,
) -> list[ContenderResult]:
    """Summarize each contender: KL with its error, scores under each judge, text measures.

    The KL of best-of-n is the KL of its source plus the bound ln n - (n - 1) / n, which is exact
    without ties.

    Args:
        contenders: the reference first, since gains are measured against its scores.
        outputs, scores: each contender's; no scores before anybody judged.
        prompts: prompts as texts.
        trained: the result of ``trained_prompts.trained_on``.
        tokens: contender -> the tokens of each completion that a scorer sees; None if they were
            not counted.
        summaries: what the prompts ask to sum up, and people's texts; None for other tasks.
    """
    first = contenders[0].name
    texts = prompts if summaries is None else summaries.sources
    lines = {} if tokens is None else length_lines(first, scores, tokens)
    results = []
    for c in contenders:
        written = outputs[c.name]
        kl = kl_error = None
        if written.measured_kls is not None:
            mean, kl_error = mean_and_error(written.measured_kls)
            kl = mean + written.kl_of_picking

        length = None
        if tokens is not None:
            length = math.fsum(tokens[c.name]) / len(tokens[c.name])
        results.append(
            ContenderResult(
                name=c.name,
                kind=c.kind,
                source=c.source,
                adapter=c.adapter,
                n=c.n,
                tokens=math.fsum(written.tokens) / len(written.tokens),
                kl=kl,
                kl_error=kl_error,
                scores={
                    judge: _summary(of[c.name], of[first], length, lines.get(judge))
                    for judge, of in scores.items()
                },
                length=length,
                rouge=None if summaries is None else summaries.rouge_of(c, written.texts),
                copying=None if summaries is None else copying(texts, written.texts),
                **to_row(trained[c.name]),
                **to_row(describe(texts, written.texts)),
            )
        )
    return results


def length_lines(
    reference: str, scores: dict[str, Scores], tokens: dict[str, list[int]]
) -> dict[str, Length]:
    """Fit each judge's scores of the reference's completions over their length.

    Args:
        reference: its name.
        scores: judge -> contender -> a score for each prompt.
        tokens: contender -> the tokens of each completion.

    Returns:
        By judge; empty if the reference's completions are all equally long.
    """
    found = {}
    for judge, of in scores.items():
        line = length_line(_doubles(tokens[reference]), _doubles(of[reference]))
        if line is not None:
            found[judge] = Length(*line)
    return found


def _doubles(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _summary(
    scores: Sequence[float],
    reference: Sequence[float],
    length: float | None,
    line: Length | None,
) -> ScoreSummary:
    mean, error = mean_and_error(scores)
    center, spread = np.mean(reference), np.std(reference)
    gain = float((mean - center) / spread) if spread > 0 else 0.0

    at_equal_length = None
    if line is not None and length is not None and spread > 0:
        fair = LengthLine(line.slope, line.error, line.length).at_equal_length(mean, length)
        at_equal_length = float((fair - center) / spread)
    return ScoreSummary(mean, error, gain, float(np.std(scores)), at_equal_length)


def gaps(results: Sequence[ContenderResult], pairs: Sequence[Pair], training: str) -> list[Gap]:
    """Compare the training reward's gains with those of the other judges.

    ``gap`` is the difference of the gains. ``alarm`` is set if the training reward finds the
    contender better than the reference (p < 0.05) and the other judge does not, or finds it worse.

    Args:
        results: the result of ``contender_results``, the reference first.
        pairs: the pairs of ``compare``.
        training: the judge that the policies were trained on.
    """
    reference = results[0].name
    against = {(pair.judge, pair.a): pair for pair in pairs if pair.b == reference}

    found = []
    for result in results[1:]:
        trained = result.scores[training].gain
        liked = against[training, result.name].surely_scores_higher
        for judge, summary in result.scores.items():
            if judge == training:
                continue
            confirmed = against[judge, result.name].surely_scores_higher
            found.append(
                Gap(
                    name=result.name,
                    judge=judge,
                    trained_gain=trained,
                    gain=summary.gain,
                    gap=trained - summary.gain,
                    alarm=liked and not confirmed,
                )
            )
    return found
