"""What a reward model is trained to: one small class for each loss of comparisons.

To add one: write its class here, and name it in ``Loss`` and ``LOSSES``.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

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


class RewardLoss(Protocol):
    """A loss of a batch of comparisons, and what it reads of them.

    Attributes:
        wants: "best" or "scores", what it needs of a row (``data.comparisons.problems_of``).
        takes_margin: it has a margin, and a probability that a pick is wrong.
        fixes_zero: it says where 0 is, so that scores cannot be centered.
    """

    @property
    def wants(self) -> str: ...

    @property
    def takes_margin(self) -> bool: ...

    @property
    def fixes_zero(self) -> bool: ...

    def __call__(
        self,
        scores: Tensor,
        mask: Tensor,
        batch: Batch,
        label_smoothing: float = 0.0,
        margin: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, of scores (B, K) where ``mask`` (B, K) has a candidate."""
        ...


@dataclass(frozen=True)
class Pick:
    """The best against the others: all at once (softmax), or in pairs."""

    pairs: bool
    wants: str = "best"
    takes_margin: bool = True
    fixes_zero: bool = False

    def __call__(
        self,
        scores: Tensor,
        mask: Tensor,
        batch: Batch,
        label_smoothing: float = 0.0,
        margin: Tensor | None = None,
    ) -> Tensor:
        function = best_vs_rest_loss if self.pairs else best_of_k_loss
        return function(scores, batch["best"], mask, label_smoothing, margin)


@dataclass(frozen=True)
class Ranking:
    """Successive picks of the best from what is left (Plackett-Luce)."""

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
        return plackett_luce_loss(scores, batch["ranking"], mask)


@dataclass(frozen=True)
class Ratings:
    """Squared errors against scalar ratings: of the scores, or of their differences in a row."""

    differences: bool
    fixes_zero: bool
    wants: str = "scores"
    takes_margin: bool = False

    def __call__(
        self,
        scores: Tensor,
        mask: Tensor,
        batch: Batch,
        label_smoothing: float = 0.0,
        margin: Tensor | None = None,
    ) -> Tensor:
        targets, _ = by_comparison(batch["target_scores"].to(scores), batch["candidates"])
        function = scalar_compare_loss if self.differences else scalar_rating_loss
        return function(scores, targets, mask)


LOSSES: dict[Loss, RewardLoss] = {
    "best_of_k": Pick(pairs=False),
    "best_vs_rest": Pick(pairs=True),
    "plackett_luce": Ranking(),
    "scalar_rating": Ratings(differences=False, fixes_zero=True),
    "scalar_compare": Ratings(differences=True, fixes_zero=False),
}
