"""How much score a KL can buy: curves estimated from many samples of the reference."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from toolkit.evaluation.contenders import Sampling
from toolkit.evaluation.judges import Judge, ScoreJudge
from toolkit.maths.frontier import (
    best_of_n_kl,
    best_of_n_score,
    supported_kl,
    tilt_at_kl,
)
from toolkit.models.actors import REFERENCE

Row = dict[str, Any]
POINTS = 40  # of the KL-optimal curve
AT_ONCE = 32_768  # completions that are scored in one go


def reference_scores(
    sampling: Sampling, judges: Sequence[ScoreJudge], count: int, each: int, seed: int
) -> dict[str, Tensor]:
    """Scores (P, N) of N reference samples for each of the first P prompts, under each judge.

    Args:
        sampling: base, prompts and rule.
        judges: who score.
        count: P.
        each: N.
        seed: of the noise; not that of the comparison.
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


def frontier(scores: Tensor, spread: float, by: Tensor | None = None) -> Row:
    """Curves of gain against KL, the gain in standard deviations of the reference's scores.

    Args:
        scores: (P, N) under a judge.
        spread: standard deviation of the reference's scores in the comparison. The gain is from
            the mean of ``scores``, which are of these prompts.
        by: (P, N), by what best-of-n picks; the judge itself by default.

    Returns:
        ``optimal``: points of the KL-optimal policy (kl, gain, and the effective samples of the
        prompt that has fewest); ``supported_kl``, up to which these are ten or more;
        ``best_of_n``: points n, kl, gain.
    """

    center = scores.double().mean().item()

    def gain(score: float) -> float:
        return (score - center) / spread if spread > 0 else 0.0

    farthest = tilt_at_kl(scores, 1e9).kl
    optimal = []
    for i in range(1, POINTS + 1):
        tilt = tilt_at_kl(scores, farthest * (i / POINTS) ** 2)
        optimal.append({
            "kl": tilt.kl, "gain": gain(tilt.score), "effective_samples": tilt.effective_samples,
        })  # fmt: skip
    best = []
    n = 1
    while n <= scores.shape[1] // 4:
        best.append({
            "n": n, "kl": best_of_n_kl(n), "gain": gain(best_of_n_score(scores, n, by)),
        })  # fmt: skip
        n *= 2
    return {
        "prompts": scores.shape[0], "samples": scores.shape[1],
        "optimal": [{"kl": 0.0, "gain": 0.0, "effective_samples": scores.shape[1]}, *optimal],
        "supported_kl": supported_kl(scores), "best_of_n": best,
    }  # fmt: skip


def optimal_gain(curve: Row, kl: float) -> float | None:
    """The KL-optimal gain at ``kl`` nats, between the curve's points; None beyond its support."""
    if kl > curve["supported_kl"]:
        return None
    points = curve["optimal"]
    for left, right in zip(points, points[1:], strict=False):
        if left["kl"] <= kl <= right["kl"]:
            width = right["kl"] - left["kl"]
            share = (kl - left["kl"]) / width if width > 0 else 0.0
            return left["gain"] + share * (right["gain"] - left["gain"])
    return None


def frontiers(
    judges: Sequence[Judge], sampling: Sampling, scores: dict[str, dict[str, list[float]]],
    count: int, each: int, seed: int, picked_by: str | None,
) -> dict[str, Row]:  # fmt: skip
    """The curves of each judge that scores; none if ``count`` is 0.

    Args:
        judges: all of them.
        sampling: base, prompts and rule.
        scores: of the contenders, the reference first: its spread is 1.
        count: prompts.
        each: reference samples of each.
        seed: of the comparison.
        picked_by: the judge that best-of-n picks by; by default the first.
    """
    scoring = [j for j in judges if isinstance(j, ScoreJudge)]
    if count == 0 or not scoring:
        return {}
    drawn = reference_scores(sampling, scoring, count, each, seed + 1)
    by = drawn[picked_by or scoring[0].name]
    found = {}
    for judge in scoring:
        of = torch.tensor(next(iter(scores[judge.name].values())), dtype=torch.float64)
        found[judge.name] = frontier(drawn[judge.name], of.std(correction=0).item(), by)
    return found
