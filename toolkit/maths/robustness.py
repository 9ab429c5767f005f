"""How far a policy's gain by the reward model it is trained on outruns that by another one.

Two reward models, "train" and "test", are trained on halves of the same comparisons. The policy is
trained against the first. Its checkpoints' samples are scored by both.
Source: arXiv 2204.05862, section 4.2 (robustness experiments).
"""

from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95


class Gaps(NamedTuple):
    """Gains of C checkpoints under two scorers, and their difference, with errors.

    Attributes:
        train, test: (C,) gains over the shared samples' mean.
        gap: (C,) train minus test.
        low, high: (C,) the 95 % interval of each gap.
        sure_low: (C,) like ``low``, but the probability that any of the C true gaps lies below its
            own is 2.5 %, so that the first checkpoint above 0 may be named without a correction.
    """

    train: Tensor
    test: Tensor
    gap: Tensor
    low: Tensor
    high: Tensor
    sure_low: Tensor

    def first(self) -> int | None:
        """The first checkpoint whose gap is surely above 0; None if there is none."""
        above = (self.sure_low > 0).nonzero()
        return int(above[0]) if len(above) else None


def gap_of(
    train: Tensor, test: Tensor, train_mean: float | Tensor, test_mean: float | Tensor
) -> Tensor:
    """Return (train - its mean) - (test - its mean), of scores or of mean scores of any shape.

    The means are those of one shared set of texts: where the zero of a reward model lies says
    nothing, and comparing without this step would take the difference of two zeros for a gap.
    """
    return (train - train_mean) - (test - test_mean)


def robustness_gaps(
    train: Tensor,
    test: Tensor,
    shared_train: Tensor,
    shared_test: Tensor,
    draws: int = 2000,
    seed: int = 0,
) -> Gaps:
    """Compare the gains of C checkpoints on P prompts under two scorers.

    Each scorer's mean over the shared samples is subtracted, and its standard deviation over them
    divides: the paper subtracts only. Two reward models have not only different zeros but also
    different scales, and a scale that is 5 % larger looks like a gap of 5 % of the gain.

    The intervals are a bootstrap over prompts. A draw takes a prompt with all its samples, those of
    the shared set too, so that they know how well means and deviations are known, and that scores
    on one prompt go together. ``sure_low`` is gap - c * error with one c for all checkpoints: the
    97.5 % point of the greatest (draw - gap) / error over the checkpoints.

    Args:
        train, test: (C, P), scores of checkpoint c's completion of prompt p.
        shared_train, shared_test: (S, P), scores of S samples of the reference on these prompts.
        draws: number of bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ValueError: there are fewer than two prompts, or all shared samples have one score.
    """
    parts = [each.double() for each in (train, test, shared_train, shared_test)]
    prompts = parts[0].shape[1]
    if prompts < 2:
        raise ValueError("a bootstrap needs two prompts or more")
    if any(bool(each.std(correction=0) <= 1e-12) for each in parts[2:]):
        raise ValueError("a scorer gives all shared samples the same score")

    def gains(weights: Tensor) -> tuple[Tensor, Tensor]:
        """Gains (D, C) under both, for weights of the prompts (D, P) that sum to 1."""
        found = []
        for own, shared in ((parts[0], parts[2]), (parts[1], parts[3])):
            mean = weights @ shared.mean(dim=0)
            square = weights @ shared.square().mean(dim=0)
            deviation = (square - mean**2).clamp(min=1e-24).sqrt()
            found.append((weights @ own.T - mean.unsqueeze(1)) / deviation.unsqueeze(1))
        return found[0], found[1]

    whole_train, whole_test = gains(torch.full((1, prompts), 1 / prompts, dtype=torch.float64))
    gap = gap_of(whole_train, whole_test, 0.0, 0.0)[0]

    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(prompts, (draws, prompts), generator=generator)
    counts = torch.zeros(draws, prompts, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    one, other = gains(counts / prompts)
    differences = one - other

    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(
        differences, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0
    )
    error = differences.std(dim=0).clamp(min=1e-12)
    greatest = ((differences - gap) / error).amax(dim=1)
    reach = torch.quantile(greatest, 1 - tail)
    return Gaps(whole_train[0], whole_test[0], gap, low, high, gap - reach * error)
