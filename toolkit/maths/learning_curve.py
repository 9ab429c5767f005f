"""How accuracy grows with the number of labels, and how many more it would take.

    accuracy(n) = a + b log2(n)

Every doubling of the labels adds the same b. Source: arXiv 2009.01325 section 4.3, where doubling
the comparisons adds 1.1 points to a reward model's accuracy over a range of 8,000 to 64,000. No
accuracy grows so for ever, and none falls below chance for small n. So the line is not followed
further than ``FARTHEST`` times the most labels that were tried.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FARTHEST = 4  # times the most labels that were tried
DRAWS = 1000
TAIL = 0.025  # on each side of a 95 % interval


class Estimate(NamedTuple):
    """A figure with its 95 % interval; infinite where the line does not reach."""

    value: float
    low: float
    high: float


class LearningCurve(NamedTuple):
    """The line through the accuracies, and the lines through those of each bootstrap draw.

    Attributes:
        most: most labels that were tried.
        at_most: accuracy of the line there, then of each draw: (1 + DRAWS,) fp64.
        doubling: what twice the labels add, in the same order.
    """

    most: float
    at_most: Tensor
    doubling: Tensor

    def per_doubling(self) -> Estimate:
        """Return what twice the labels add to the accuracy."""
        return _estimate(self.doubling)

    def rises(self) -> bool:
        """Whether the accuracy surely grows with the labels."""
        return self.per_doubling().low > 0

    def at(self, labels: float) -> Estimate:
        """Return the accuracy with so many labels.

        Raises:
            ValueError: they are more than ``FARTHEST`` times the most that were tried.
        """
        if labels > FARTHEST * self.most:
            raise ValueError(f"{labels:.0f} labels are too far from {self.most:.0f}")
        line = self.at_most + self.doubling * math.log2(labels / self.most)
        return _estimate(line.clamp(0, 1))

    def minus(self, other: "LearningCurve", labels: float) -> Estimate:
        """Return how much higher this line is than another one, with so many labels.

        Both must be of the same comparisons in the same folds, so that a draw is the same for both.
        """
        lines = [
            each.at_most + each.doubling * math.log2(labels / each.most) for each in (self, other)
        ]
        return _estimate(lines[0] - lines[1])

    def labels_for(self, accuracy: float) -> Estimate:
        """Return how many labels the accuracy takes; infinite beyond ``FARTHEST`` times the most.

        Where a line does not rise, the number is infinite, unless the line is there already.
        """
        missing = accuracy - self.at_most
        doublings = torch.where(
            self.doubling > 0, missing / self.doubling, torch.where(missing <= 0, 0.0, math.inf)
        )
        doublings = torch.where(doublings > math.log2(FARTHEST) + 1e-9, math.inf, doublings)
        return _estimate(self.most * 2**doublings)


def _estimate(values: Tensor) -> Estimate:
    """Return the first of the values, and an interval of the others, which may be infinite."""
    draws = values[1:].sort().values
    edge = int(TAIL * len(draws))
    return Estimate(values[0].item(), draws[edge].item(), draws[-1 - edge].item())


def learning_curve(
    labels: Sequence[float],
    credits: Sequence[Sequence[float]],
    prompts: Sequence[Hashable],
    folds: Sequence[int],
) -> LearningCurve:
    """Fit the line by least squares, and again on each of ``DRAWS`` bootstrap draws.

    A draw takes folds with replacement, and in each of them prompts with replacement. So it shows
    how the line depends on which comparisons were held out and, if there are several folds, on
    which were trained on and how the training went. All points of the curve share a draw.

    Args:
        labels: number that each of the P points was trained on, at least two different ones.
        credits: for each point, whether each of the R comparisons was picked right (0 to 1).
        prompts: of each comparison.
        folds: of each comparison, the number of the model that it was held out from.
    """
    table = torch.tensor(credits, dtype=torch.float64).T  # (R, P)
    doublings = torch.tensor([math.log2(n / max(labels)) for n in labels], dtype=torch.float64)
    parts = [_clusters(table, prompts, folds, fold) for fold in dict.fromkeys(folds)]

    means = [table.mean(dim=0)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        chosen = torch.randint(len(parts), (len(parts),), generator=generator).tolist()
        drawn = [_drawn(*parts[int(i)], generator) for i in chosen]
        right = torch.stack([sums for sums, _ in drawn]).sum(dim=0)
        means.append(right / torch.stack([rows for _, rows in drawn]).sum())

    slope, intercept = _line(doublings, torch.stack(means))
    return LearningCurve(max(labels), intercept, slope)


def _clusters(
    table: Tensor, prompts: Sequence[Hashable], folds: Sequence[int], fold: int
) -> tuple[Tensor, Tensor]:
    """Return a fold's sums of credits for each prompt (C, P), and its number of rows (C,)."""
    rows: dict[Hashable, list[int]] = {}
    for i, (prompt, of) in enumerate(zip(prompts, folds, strict=True)):
        if of == fold:
            rows.setdefault(prompt, []).append(i)
    sums = torch.stack([table[each].sum(dim=0) for each in rows.values()])
    return sums, torch.tensor([float(len(each)) for each in rows.values()], dtype=torch.float64)


def _drawn(sums: Tensor, sizes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw as many prompts with replacement; return the sum of credits (P,) and of rows ()."""
    chosen = torch.randint(len(sizes), (len(sizes),), generator=generator)
    return sums[chosen].sum(dim=0), sizes[chosen].sum()


def _line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and value at x = 0 of the least-squares lines through x (P,) and y (D, P)."""
    apart = x - x.mean()
    slope = (y * apart).sum(dim=1) / apart.square().sum()
    return slope, y.mean(dim=1) - slope * x.mean()
