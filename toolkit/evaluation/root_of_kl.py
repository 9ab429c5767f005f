"""Gain over the square root of the KL, as a line through the points of one run."""

import math
from collections.abc import Mapping, Sequence

from toolkit.evaluation.result import ContenderResult, Evaluation
from toolkit.maths.frontier import SqrtFit, sqrt_fit
from toolkit.training.log_rows import LoggedUpdate

FEWEST = 3  # points for a line that can be wrong
Points = list[tuple[float, float]]  # KL in nats, and gain


def series_of(
    result: Evaluation, judge: str, logs: Mapping[str, Sequence[LoggedUpdate]]
) -> dict[str, Points]:
    """Return the points of each series: a run's checkpoints, and its log.

    A log holds the training reward's scores, so only that judge has points of it. They are put on
    the scale of gains by the reference's mean and standard deviation.
    """
    found: dict[str, Points] = {}
    for c in result.contenders:
        if c.kind == "checkpoint" and c.kl is not None:
            name = f"{c.name.rpartition('@')[0]}, checkpoints"
            found.setdefault(name, []).append((c.kl, c.scores[judge].gain))

    reference = _reference(result).scores[judge]
    if judge == result.training_reward and reference.std > 0:
        for name, log in logs.items():
            found[f"{name}, while training"] = [
                (update.kl, (update.scores - reference.mean) / reference.std)
                for update in log
                if update.kl is not None and update.scores is not None
            ]
    return found


def fit_of(points: Points) -> SqrtFit | None:
    """Fit a line over the root of the KL; None for fewer than three different KLs.

    A KL is estimated by samples, so near the start it may come out a little below 0: it counts as 0
    then.
    """
    kl = [max(0.0, kl) for kl, _ in points]
    if len(set(kl)) < FEWEST:
        return None
    return sqrt_fit(kl, [gain for _, gain in points])


def root_lines(
    result: Evaluation, judge: str, logs: Mapping[str, Sequence[LoggedUpdate]]
) -> list[str]:
    """Return a sentence for each series on how its gain grows with the root of the KL."""
    lines = []
    for name, points in series_of(result, judge, logs).items():
        fit = fit_of(points)
        if fit is None or not math.isfinite(fit.r2):
            continue
        lines.append(
            f"{name}: the gain is about {fit.intercept:.2f} {fit.slope:+.2f} √KL (the slope "
            f"± {fit.slope_error:.2f}, R² {fit.r2:.3f}; a line over the KL itself has "
            f"R² {fit.kl_r2:.3f})."
        )
    return lines


def _reference(result: Evaluation) -> ContenderResult:
    return result.contenders[0]
