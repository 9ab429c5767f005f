"""The curve of a reward model's accuracy against the number of labels, and what it says."""

import math
from collections.abc import Sequence

from toolkit.evaluation.reward_groups import prompts_of
from toolkit.evaluation.reward_results import CurvePoint, LabelsNeeded, Outlook
from toolkit.maths.learning_curve import FARTHEST, LearningCurve, learning_curve
from toolkit.scoring.accuracy import best_of_k_accuracy, credit
from toolkit.training.reward.cross_validation import HeldOut

STEP, STEPS = 0.05, 3  # accuracies for which the labels are said: the next multiples of 5 %


def credits_of(judged: Sequence[HeldOut]) -> list[float]:
    """Return whether each comparison's pick is right, from 0 to 1."""
    return [credit(each.raw, each.row["best"], each.row["completions"]) for each in judged]


def curve_point(fraction: float, judged: Sequence[HeldOut]) -> CurvePoint:
    """Make a point of the curve; its labels are the mean of those of the models."""
    trained = {each.fold: each.train_comparisons for each in judged}
    metrics = best_of_k_accuracy(
        [each.raw for each in judged],
        [each.row["best"] for each in judged],
        [each.row["completions"] for each in judged],
        _prompts(judged),
    )
    return CurvePoint(
        fraction=fraction,
        train=round(sum(trained.values()) / len(trained)),
        value=metrics.accuracy,
        low=metrics.accuracy_low,
        high=metrics.accuracy_high,
        loss=metrics.loss,
    )


def _prompts(judged: Sequence[HeldOut]) -> list[str]:
    return prompts_of([each.row for each in judged])


def outlook(
    points: Sequence[CurvePoint], judged: Sequence[Sequence[HeldOut]], target: float | None
) -> Outlook:
    """Say what more labels would give.

    Args:
        points: of the curve, at least two, the last with all labels.
        judged: what each point was made from: the same comparisons in the same order.
        target: accuracy for which the labels are wanted; None for the next steps of 5 %.

    Raises:
        ValueError: the points were not measured on the same comparisons.
    """
    rows = [_prompts(each) for each in judged]
    if any(each != rows[0] for each in rows):
        raise ValueError("outlook: the points were measured on different comparisons")
    folds = [each.fold for each in judged[0]]
    labels = [point.train for point in points]
    curve = learning_curve(labels, [credits_of(each) for each in judged], rows[0], folds)
    now = points[-1].train
    doubling = curve.per_doubling()
    targets = _next_steps(curve.at(now).value) if target is None else [target]
    needed = [_needed(curve, each, now) for each in targets]
    reached = sum(each.labels is not None for each in needed)
    return Outlook(
        most=now,
        at_most=curve.at(now).value,
        doubling=doubling.value,
        doubling_low=doubling.low,
        doubling_high=doubling.high,
        models=len(set(folds)),
        twice=_prediction(curve, now),
        needed=needed[: reached + 1],  # of the accuracies that are too far, only the first
        backtest=backtest(points, judged),
    )


def backtest(points: Sequence[CurvePoint], judged: Sequence[Sequence[HeldOut]]) -> str:
    """Say how well the smaller shares alone foretold the accuracy that all labels then gave.

    The difference is paired: each bootstrap draw takes the same folds and prompts for the line and
    for the accuracy with all labels.

    Args:
        points: of the curve, the last with all labels.
        judged: what each point was made from: the same comparisons in the same order.

    Returns:
        A sentence; empty with fewer than two smaller shares, or if all labels are too far from them
        to be foretold.
    """
    rows, folds = _prompts(judged[0]), [each.fold for each in judged[0]]
    labels, credits = [point.train for point in points], [credits_of(each) for each in judged]
    smaller = len(points) - 1
    if len({*labels[:smaller]}) < 2 or labels[-1] > FARTHEST * labels[-2]:
        return ""

    before = learning_curve(labels[:smaller], credits[:smaller], rows, folds)
    foretold = before.at(labels[-1])

    # A line through two points passes through the second, so there it is the accuracy of each draw.
    ends = [0, len(points) - 1]
    found = learning_curve([labels[i] for i in ends], [credits[i] for i in ends], rows, folds)
    apart = found.minus(before, labels[-1])
    shares = ", ".join(f"{point.fraction:.0%}" for point in points[:smaller])
    return (
        f"A check of such estimates: from {shares} of the labels alone, all {labels[-1]:,} should "
        f"have given {foretold.value:.1%} [{foretold.low:.1%}, {foretold.high:.1%}]. They gave "
        f"{found.at(labels[-1]).value:.1%}, {100 * apart.value:+.1f} points from the estimate "
        f"[{100 * apart.low:+.1f}, {100 * apart.high:+.1f}]."
    )


def _next_steps(accuracy: float) -> list[float]:
    first = math.floor(accuracy / STEP + 1e-9) + 1
    steps = [round(STEP * (first + i), 2) for i in range(STEPS)]
    return [step for step in steps if step < 1]


def _prediction(curve: LearningCurve, now: int) -> str:
    """Say what twice the labels would give."""
    found = curve.at(2 * now)
    return (
        f"With twice as many, {2 * now:,}, the accuracy should be about {found.value:.1%} "
        f"[{found.low:.1%}, {found.high:.1%}]."
    )


def _needed(curve: LearningCurve, target: float, now: int) -> LabelsNeeded:
    """Say how many comparisons an accuracy takes."""
    found = curve.labels_for(target)
    far = round(FARTHEST * now)
    finite = [None if math.isinf(n) else round(n) for n in found]
    labels, low, high = finite

    if labels is not None and labels <= now:
        said = f"For {target:.1%} no more labels are needed: the curve is there at {labels:,}."
    elif not curve.rises():
        said = (
            f"How many labels {target:.1%} takes cannot be told: the curve does not surely rise. "
            "Try other settings first, a larger base or more epochs."
        )
        labels, low, high = None, None, None
    elif labels is None:
        said = (
            f"For {target:.1%} more than {far:,} comparisons to train on are needed. That is over "
            f"{FARTHEST} times as many as were tried, too far to say how many."
        )
        if low is not None:
            said += f" The interval begins at {low:,}."
    else:
        upper = f"more than {far:,}" if high is None else f"{high:,}"
        said = (
            f"For {target:.1%} about {labels:,} comparisons to train on are needed [{low:,} to "
            f"{upper}], {labels - now:,} more than now."
        )
    return LabelsNeeded(target, labels, low, high, said)
