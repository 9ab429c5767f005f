"""The losses of a reward model: one small function for each loss of comparisons.

To add one: write its function here, and name it in ``Loss`` and ``LOSSES``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from toolkit.data.collators import by_comparison
from toolkit.maths.losses import (
    best_of_k_loss,
    best_vs_rest_loss,
    plackett_luce_loss,
    scalar_compare_loss,
    scalar_rating_loss,
)

Loss = Literal["best_of_k", "best_vs_rest", "plackett_luce", "scalar_rating", "scalar_compare"]
Batch = dict[str, Tensor]  # of ``ComparisonCollator``


class Marked(NamedTuple):
    """A batch's comparisons, with everything that a loss may read.

    Attributes:
        scores: (B, K).
        mask: bool (B, K), True where there is a candidate.
        batch: from ``ComparisonCollator``; ``target_scores`` (N,).
        label_smoothing: the probability that a pick is wrong.
        margin: (B,), by which the best must lead; None for no margin.
        weights: (B,), how much each comparison counts; None for equal weights.
    """

    scores: Tensor
    mask: Tensor
    batch: Batch
    label_smoothing: float
    margin: Tensor | None
    weights: Tensor | None


def _best_of_k(m: Marked) -> Tensor:
    return best_of_k_loss(m.scores, m.batch["best"], m.mask, m.label_smoothing, m.margin, m.weights)


def _best_vs_rest(m: Marked) -> Tensor:
    return best_vs_rest_loss(
        m.scores, m.batch["best"], m.mask, m.label_smoothing, m.margin, m.weights
    )


def _plackett_luce(m: Marked) -> Tensor:
    return plackett_luce_loss(m.scores, m.batch["ranking"], m.mask, m.batch.get("worst"), m.weights)


def _scalar_rating(m: Marked) -> Tensor:
    return scalar_rating_loss(m.scores, _targets(m), m.mask, m.weights)


def _scalar_compare(m: Marked) -> Tensor:
    return scalar_compare_loss(m.scores, _targets(m), m.mask, m.weights)


def _targets(m: Marked) -> Tensor:
    """Return the ratings (B, K) that the scores should match."""
    return by_comparison(m.batch["target_scores"].to(m.scores), m.batch["candidates"])[0]


@dataclass(frozen=True)
class RewardLoss:
    """A loss of a batch of comparisons, and what it needs.

    Attributes:
        of: the loss, a scalar.
        wants: "best" or "scores", the label that it needs (``data.comparisons.problems_of``).
        takes_margin: whether it uses a margin, and a probability that a pick is wrong.
        fixes_zero: whether it determines the zero, so that scores cannot be centered.
    """

    of: Callable[[Marked], Tensor]
    wants: str = "best"
    takes_margin: bool = False
    fixes_zero: bool = False

    def __call__(
        self,
        scores: Tensor,
        mask: Tensor,
        batch: Batch,
        label_smoothing: float = 0.0,
        margin: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of scores (B, K) where ``mask`` (B, K) has a candidate.

        Comparisons count by ``batch["weight"]`` (B,), if it is there.
        """
        weights = batch.get("weight")
        return self.of(Marked(scores, mask, batch, label_smoothing, margin, weights))


LOSSES: dict[Loss, RewardLoss] = {
    "best_of_k": RewardLoss(_best_of_k, takes_margin=True),
    "best_vs_rest": RewardLoss(_best_vs_rest, takes_margin=True),
    "plackett_luce": RewardLoss(_plackett_luce),
    "scalar_rating": RewardLoss(_scalar_rating, wants="scores", fixes_zero=True),
    "scalar_compare": RewardLoss(_scalar_compare, wants="scores"),
}
