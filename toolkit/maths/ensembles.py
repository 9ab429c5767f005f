"""Scores of several reward models: their combination, and how much the models disagree."""

from typing import Literal

from torch import Tensor

Combining = Literal["mean", "min", "mean_minus_std"]


def combined(scores: Tensor, how: Combining, weight: float = 1.0) -> Tensor:
    """Combine the scores of M models: their mean, their minimum, or mean - weight * std.

    The last two trust a completion only as far as all models like it, so a text that pleases one
    model by that model's own mistake gains little.
    Source: arXiv 2310.02743, section 3 (mean, worst-case and uncertainty-weighted optimization).
    Its third form subtracts the variance. The standard deviation here has the scores' unit, so that
    one weight means the same whatever their scale.

    Args:
        scores: (M, B), on one scale.
        how: "mean", "min" or "mean_minus_std".
        weight: of the standard deviation; only "mean_minus_std" reads it.

    Returns:
        (B,); NaN for a completion that a model cannot score.
    """
    if how == "min":
        return scores.amin(dim=0)
    if how == "mean":
        return scores.mean(dim=0)
    return scores.mean(dim=0) - weight * disagreement(scores)


def disagreement(scores: Tensor) -> Tensor:
    """Return the standard deviation over M models (it divides by M) of scores (M, B): (B,)."""
    return scores.std(dim=0, correction=0)
