"""Compare policies with best-of-n at equal KL, and best-of-n with the best that a KL allows.

Best-of-n is nearly optimal by construction, and it needs no training: a policy is worth its
training at least where it gains more at the same KL. The KL of best-of-n, log n - (n - 1) / n, is
an upper bound (arXiv 2401.01879), and too high where scores tie.
"""

import math
from collections.abc import Sequence

from toolkit.evaluation.frontier import optimal_gain
from toolkit.evaluation.result import BestOfNPoint, ContenderResult, Evaluation

POLICIES = ("adapter", "checkpoint", "merged", "model")


def best_of_n_points(result: Evaluation, judge: str) -> list[BestOfNPoint]:
    """Return the known points of best-of-n under a judge, by rising n.

    They are those of the frontier, or else those of the contenders, from n = 1 on.
    """
    curve = result.frontier.get(judge)
    if curve is not None and curve.best_of_n:
        return curve.best_of_n
    points = {1: BestOfNPoint(1, 0.0, 0.0)}
    for c in _best_of_n(result):
        if judge in c.scores and c.kl is not None:
            points[c.n] = BestOfNPoint(c.n, c.kl, c.scores[judge].gain)
    return [points[n] for n in sorted(points)]


def best_of_n_gain(points: Sequence[BestOfNPoint], kl: float) -> float | None:
    """Return the gain of best-of-n at ``kl`` nats; None beyond the largest n.

    Between two n it is on the straight line. A mixture of both reaches that, too: it takes one of
    them for a share of the prompts, and its KL is at most the mean of theirs.
    """
    for left, right in zip(points, points[1:], strict=False):
        if left.kl <= kl <= right.kl:
            share = (kl - left.kl) / (right.kl - left.kl)
            return left.gain + share * (right.gain - left.gain)
    return None


def best_of_n_lines(result: Evaluation, judge: str) -> list[str]:
    """Say whether policies beat best-of-n at equal KL, and how far that is from the optimum.

    There is a sentence for each policy and each best-of-n that took part; none without both, or
    under a judge that gives no scores.
    """
    chosen = [c for c in _best_of_n(result) if judge in c.scores and c.kl is not None]
    policies = [
        c
        for c in result.contenders
        if c.kind in POLICIES and judge in c.scores and c.kl is not None
    ]
    if not chosen or not policies:
        return []
    points = best_of_n_points(result, judge)
    return [_against(result, judge, c, points) for c in policies] + [
        _from_optimum(result, judge, c) for c in chosen
    ]


def _best_of_n(result: Evaluation) -> list[ContenderResult]:
    """The contenders that pick the best of n samples of the reference."""
    return [c for c in result.contenders if c.kind == "best_of_n" and c.source == result.reference]


def _against(
    result: Evaluation, judge: str, policy: ContenderResult, points: Sequence[BestOfNPoint]
) -> str:
    """Say whether a policy gains more than best-of-n at its KL; two standard errors decide."""
    scores, reference = policy.scores[judge], result.contenders[0].scores[judge]
    kl, last = policy.kl or 0.0, points[-1]
    spread = reference.std
    error = math.hypot(scores.error, reference.error) / spread if spread > 0 else 0.0
    own = f"{policy.name} gains {scores.gain:+.2f}"

    best = best_of_n_gain(points, kl)
    if best is not None:
        same = f"{own} and best-of-n {best:+.2f}, both at {kl:.2f} nats"
        if scores.gain - best > 2 * error:
            if (gap := _unmeasured(points, kl)) is not None:
                return (
                    f"Whether {policy.name} beats best-of-n at equal KL is not known: {own} at "
                    f"{kl:.2f} nats, and no best of n between {gap[0]} and {gap[1]} was measured. "
                    f"A mixture of the two gains {best:+.2f} there, and one between them gains "
                    "more (--frontier_prompts and --frontier_samples measure them)."
                )
            return f"{policy.name} beats best-of-n at equal KL: {same}."
        if best - scores.gain > 2 * error:
            return f"{policy.name} does not beat best-of-n at equal KL: {same}."
        return f"{policy.name} and best-of-n cannot be told apart at equal KL: {same}."

    farthest = f"best of {last.n} {last.gain:+.2f} at {last.kl:.2f} nats"
    if last.gain >= scores.gain:
        return (
            f"{policy.name} does not beat best-of-n at equal KL: {own} at {kl:.2f} nats, and "
            f"{farthest} already."
        )
    return (
        f"Whether {policy.name} beats best-of-n at equal KL is not known: {own} at {kl:.2f} nats, "
        f"and {farthest}, which is the largest n that was measured (a higher --frontier_samples "
        "measures larger ones)."
    )


def _unmeasured(points: Sequence[BestOfNPoint], kl: float) -> tuple[int, int] | None:
    """The two n around ``kl`` nats if they are farther apart than by a factor of 2, else None.

    The gain bends towards the KL: on a long line between two n it would be taken for too small.
    """
    for left, right in zip(points, points[1:], strict=False):
        if left.kl <= kl <= right.kl:
            return (left.n, right.n) if right.n > 2 * left.n else None
    return None


def _from_optimum(result: Evaluation, judge: str, chosen: ContenderResult) -> str:
    """Say which share of the KL-optimal gain a best-of-n reaches."""
    curve, kl, gain = result.frontier.get(judge), chosen.kl or 0.0, chosen.scores[judge].gain
    best = None if curve is None else optimal_gain(curve, kl)
    if best is None or best <= 0:
        why = "there is no frontier (--frontier_prompts, --frontier_samples)"
        if curve is not None:
            why = f"its samples support the frontier up to {curve.supported_kl:.2f} nats"
        return f"How far {chosen.name} at {kl:.2f} nats is from the KL optimum is not known: {why}."
    return (
        f"{chosen.name} reaches {gain / best:.0%} of the gain of the KL-optimal policy at its "
        f"{kl:.2f} nats ({gain:+.2f} of {best:+.2f}). Its true KL is lower where scores tie."
    )
