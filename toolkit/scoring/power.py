"""What a test on held-out comparisons can show at all: said before a reward model is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import bdtrc

from toolkit.maths.statistics import tail_probability
from toolkit.scoring.accuracy import SURE

OFTEN = 0.8  # the probability with which a reward model of accuracy ``likely`` passes


@dataclass(frozen=True)
class Power:
    """How good a reward model must be for a verdict of "yes" (``accuracy.judge``).

    Attributes:
        comparisons: number held out.
        chance: share of right picks by luck.
        right: fewest right picks that luck alone reaches with a probability below ``SURE``; None if
            luck reaches even all of them more often.
        accuracy: ``right`` as a share.
        likely: the true accuracy at which a reward model gets as many with probability ``OFTEN``.
        repeated: whether some comparisons have the same prompt.
    """

    comparisons: int
    chance: float
    right: int | None = None
    accuracy: float | None = None
    likely: float | None = None
    repeated: bool = False

    def sentence(self, folds: int = 0) -> str:
        """Say what the test can show.

        Args:
            folds: number of folds of a cross-validation, by which all are held out; 0 for none.
        """
        held = f"{self.comparisons:,} comparisons are held out"
        if folds:
            held = f"In {folds} folds, {self.comparisons:,} comparisons are held out once each"
        guess = f"{held}; a guess is right in {self.chance:.1%} of them."
        if self.right is None:
            return f"{guess} These are too few: even if all are right, the verdict cannot be yes."

        needed = (
            f"{guess} For a verdict of yes, {self.right:,} must be right ({self.accuracy:.1%})."
        )
        if self.likely is not None:
            needed += (
                f" A reward model that is right {self.likely:.1%} of the time in the long run "
                "passes four times out of five."
            )
        if self.repeated:
            needed += " Some of them share a prompt, so it may take a few more."
        return needed


def power_of(chances: Sequence[float], prompts: int | None = None) -> Power:
    """Return what a test on comparisons can show.

    It takes each comparison as a trial of its own. Where prompts are repeated, it takes more right
    picks, by how much comparisons of one prompt are right or wrong together.

    Args:
        chances: each comparison's probability of a right pick by luck, 1 / K.
        prompts: number of different prompts; None if each comparison has its own.
    """
    n = len(chances)
    repeated = prompts is not None and prompts < n
    if not n:
        return Power(0, 0.0)
    chance = math.fsum(chances) / n

    low, high = 0, n + 1  # luck reaches ``low`` often, and never ``high``
    while high - low > 1:
        middle = (low + high) // 2
        if _luck(middle, chances) < SURE:
            high = middle
        else:
            low = middle
    if high > n:
        return Power(n, chance)
    return Power(n, chance, high, high / n, _accuracy_that_reaches(high, n), repeated)


def _luck(right: int, chances: Sequence[float]) -> float:
    """Return the probability of at least so many right picks by luck."""
    if len(set(chances)) == 1:
        return float(bdtrc(right - 1, len(chances), chances[0]))
    return tail_probability(right, chances)


def _accuracy_that_reaches(right: int, n: int) -> float | None:
    """Return the accuracy with which at least ``right`` of n are right, with probability OFTEN."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if float(bdtrc(right - 1, n, middle)) < OFTEN:
            low = middle
        else:
            high = middle
    return high if high < 1 else None
