"""How much of a score is length: the line of scores over lengths, and scores at equal length."""

import math
from typing import NamedTuple

from torch import Tensor


class LengthLine(NamedTuple):
    """The least-squares line of scores over lengths in some samples.

    Attributes:
        slope: score per unit of length.
        error: standard error of the slope; NaN for fewer than three samples.
        length: mean length of the samples.
    """

    slope: float
    error: float
    length: float

    def at_equal_length(self, score: float, length: float) -> float:
        """Return the score that a text of ``length`` would have at the samples' mean length.

        score - slope * (length - mean length)
        """
        return score - self.slope * (length - self.length)


def length_line(lengths: Tensor, scores: Tensor) -> LengthLine | None:
    """Fit scores = a + slope * length by least squares.

    Args:
        lengths: (N,), in tokens or another unit.
        scores: (N,), finite.

    Returns:
        None if all lengths are equal, because the slope could then be anything.
    """
    lengths, scores = lengths.double(), scores.double()
    if not len(lengths):
        return None
    apart = lengths - lengths.mean()
    spread = apart.square().sum()
    if not bool(spread > 0):
        return None

    slope = (apart * scores).sum() / spread
    left = scores - scores.mean() - slope * apart
    freedom = len(scores) - 2
    error = (left.square().sum() / freedom / spread).sqrt().item() if freedom > 0 else math.nan
    return LengthLine(slope.item(), error, lengths.mean().item())
