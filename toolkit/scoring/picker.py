"""Pickers say which of K completions is best: people, judges, or the highest score.

``HTTPJudge`` is a picker; ``ScorePicker`` makes one from a scorer. To add one, write one class.
"""

import random
from dataclasses import dataclass
from typing import Protocol

from toolkit.scoring.functions import RewardFunction, as_scorer
from toolkit.scoring.scorer import Completions, Prompt, Scorer

Fields = dict[str, object]


class Picker(Protocol):
    """Says which completions are best."""

    @property
    def cost(self) -> float:
        """Cost of all questions so far."""

    @property
    def refusal(self) -> str:
        """The beginning of the last refused answer."""

    def doubt(self) -> str | None:
        """A line on why its answers are doubtful; None if they are not."""

    def best(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> list[int]:
        """Return the indices of the best: one, several for a tie, none without an answer.

        ``fields`` are the row's other fields.
        """


@dataclass(frozen=True)
class ScorePicker:
    """Picks the completions with the highest score.

    Attributes:
        scorer: a scorer, or a function of TRL's signature.
    """

    scorer: Scorer | RewardFunction
    cost: float = 0.0
    refusal: str = ""

    def doubt(self) -> str | None:
        """Return None, because a scorer does not see the order of completions."""
        return None

    def best(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> list[int]:
        """Return the indices of the highest score.

        Raises:
            InputError: there is not one finite number for each completion.
        """
        scores = scores_of_row(as_scorer(self.scorer), prompt, completions, fields or {})
        return [k for k, score in enumerate(scores) if score == max(scores)]


def scores_of_row(
    scorer: Scorer, prompt: Prompt, completions: list[str], fields: Fields
) -> list[float]:
    """Return the K scores of one row's completions.

    Args:
        scorer: the scorer.
        prompt: the row's prompt, text or messages.
        completions: K texts.
        fields: the row's other fields.

    Raises:
        InputError: there is not one finite number for each completion.
    """
    count = len(completions)
    columns = {name: [value] * count for name, value in fields.items()}
    return scorer.finite_scores(Completions([prompt] * count, completions, columns))


def pick_best(scores: list[float], ties: str, noise: float, rng: random.Random) -> int | None:
    """Return the index of the best score; None for a tie at the top that is dropped.

    Args:
        scores: one for each completion.
        ties: "drop", or "random" for one of the best by ``rng``.
        noise: probability of picking any completion at random instead (a tired labeler).
        rng: always drawn three times a call, so that one row's tie changes no other row.
    """
    careless, lot, tie_break = rng.random(), rng.random(), rng.random()
    if careless < noise:
        return int(lot * len(scores))

    top = max(scores)
    best = [k for k, value in enumerate(scores) if value == top]
    if len(best) > 1 and ties == "drop":
        return None
    return best[int(tie_break * len(best))]
