"""Estimate the best score at each KL from many samples of the reference."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from toolkit.evaluation.contenders import Sampling
from toolkit.evaluation.judges import Judge, ScoreJudge, Scores
from toolkit.evaluation.result import BestOfNPoint, Frontier, OptimalPoint
from toolkit.maths.frontier import best_of_n_kl, best_of_n_score, supported_kl, tilt_at_kl
from toolkit.models.actors import REFERENCE

POINTS = 40  # points of the KL-optimal curve
AT_ONCE = 32_768  # completions that are scored in one step


def reference_scores(
    sampling: Sampling, judges: Sequence[ScoreJudge], count: int, each: int, seed: int
) -> dict[str, Tensor]:
    """Return each judge's scores (P, N) of N reference samples of each of the first P prompts.

    Args:
        sampling: base, prompts and rule.
        judges: judges that score.
        count: P.
        each: N.
        seed: seed of the noise; it must differ from the comparison's seed.
    """
    generator = torch.Generator().manual_seed(seed)
    indices = [i for i in range(min(count, len(sampling.prompts))) for _ in range(each)]
    found: dict[str, list[float]] = {judge.name: [] for judge in judges}

    for start in tqdm(range(0, len(indices), AT_ONCE), desc="Sampling the frontier", unit="part"):
        part = indices[start : start + AT_ONCE]
        drawn = sampling.sample(REFERENCE, part, generator, "reference")
        for judge in judges:
            found[judge.name] += judge.score(sampling, drawn, part)
    return {name: torch.tensor(values).view(-1, each) for name, values in found.items()}


def frontier(scores: Tensor, spread: float, by: Tensor | None = None) -> Frontier:
    """Compute gain against KL, the gain in standard deviations of the reference's scores.

    Args:
        scores: (P, N) scores of a judge.
        spread: standard deviation of the reference's scores in the comparison. The gain is
            measured from the mean of ``scores``.
        by: (P, N) scores by which best-of-n picks; by default the judge's own.
    """
    count = scores.shape[1]
    center = scores.double().mean().item()

    def gain(score: float) -> float:
        return (score - center) / spread if spread > 0 else 0.0

    # Points lie closer together where the KL is small, since the curve is steep there.
    farthest = tilt_at_kl(scores, 1e9).kl
    optimal = [OptimalPoint(0.0, 0.0, count)]
    for i in range(1, POINTS + 1):
        tilt = tilt_at_kl(scores, farthest * (i / POINTS) ** 2)
        optimal.append(OptimalPoint(tilt.kl, gain(tilt.score), tilt.effective_samples))

    best = []
    n = 1
    while n <= count // 4:
        best.append(BestOfNPoint(n, best_of_n_kl(n), gain(best_of_n_score(scores, n, by))))
        n *= 2

    return Frontier(
        prompts=scores.shape[0],
        samples=count,
        optimal=optimal,
        supported_kl=supported_kl(scores),
        best_of_n=best,
    )


def optimal_gain(curve: Frontier, kl: float) -> float | None:
    """Interpolate the KL-optimal gain at ``kl`` nats; None beyond the curve's support."""
    if kl > curve.supported_kl:
        return None
    for left, right in zip(curve.optimal, curve.optimal[1:], strict=False):
        if left.kl <= kl <= right.kl:
            width = right.kl - left.kl
            share = (kl - left.kl) / width if width > 0 else 0.0
            return left.gain + share * (right.gain - left.gain)
    return None


def frontiers(
    judges: Sequence[Judge],
    sampling: Sampling,
    scores: dict[str, Scores],
    count: int,
    each: int,
    seed: int,
    picked_by: str | None,
) -> dict[str, Frontier]:
    """Compute the curves of each judge that scores; none if ``count`` is 0.

    Args:
        judges: all judges.
        sampling: base, prompts and rule.
        scores: scores of the contenders, the reference first; its spread is the unit of gain.
        count: number of prompts.
        each: reference samples of each prompt.
        seed: seed of the comparison.
        picked_by: the judge by which best-of-n picks; by default the first.
    """
    scoring = [j for j in judges if isinstance(j, ScoreJudge)]
    if count == 0 or not scoring:
        return {}

    drawn = reference_scores(sampling, scoring, count, each, seed + 1)
    by = drawn[picked_by or scoring[0].name]

    found = {}
    for judge in scoring:
        reference = next(iter(scores[judge.name].values()))
        spread = torch.tensor(reference, dtype=torch.float64).std(correction=0).item()
        found[judge.name] = frontier(drawn[judge.name], spread, by)
    return found
