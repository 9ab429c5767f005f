"""Who says which of K completions is best: people, judges, or whoever has the highest score.

``HTTPJudge`` is a picker; ``ScorePicker`` makes one of a scorer. A new one is one class.
"""

import random
from dataclasses import dataclass
from typing import Protocol

from toolkit.scoring.functions import RewardFunction, as_scorer
from toolkit.scoring.scorer import Completions, Prompt, Scorer

Fields = dict[str, object]


class Picker(Protocol):
    """Who knows which completions are best."""

    @property
    def cost(self) -> float:
        """What asking has cost so far."""

    @property
    def refusal(self) -> str:
        """How the last answer began that was none."""

    def doubt(self) -> str | None:
        """A line on why its answers are to be doubted; None where nothing speaks against them."""

    def best(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> list[int]:
        """Indices of the best: one, several for a tie, none if no answer was given.

        ``fields`` are the further ones of the row.
        """


@dataclass(frozen=True)
class ScorePicker:
    """The best are those of the highest score.

    Attributes:
        scorer: a scorer, or a function of TRL's signature.
    """

    scorer: Scorer | RewardFunction
    cost: float = 0.0
    refusal: str = ""

    def doubt(self) -> str | None:
        """None: a scorer does not see where completions stand."""
        return None

    def best(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> list[int]:
        """Indices of the highest score.

        Raises:
            InputError: not one finite number for each completion.
        """
        scores = scores_of_row(as_scorer(self.scorer), prompt, completions, fields or {})
        return [k for k, score in enumerate(scores) if score == max(scores)]


def scores_of_row(
    scorer: Scorer, prompt: Prompt, completions: list[str], fields: Fields
) -> list[float]:
    """The K scores of one row's completions.

    Args:
        scorer: who scores.
        prompt: the row's, text or messages.
        completions: K texts.
        fields: the row's further ones.

    Raises:
        InputError: not one finite number for each completion.
    """
    count = len(completions)
    columns = {name: [value] * count for name, value in fields.items()}
    return scorer.finite_scores(Completions([prompt] * count, completions, columns))


def pick_best(scores: list[float], ties: str, noise: float, rng: random.Random) -> int | None:
    """Index of the best score; None for a tie at the top that is to be dropped.

    Args:
        scores: one for each completion.
        ties: "drop", or "random" for one of the best by ``rng``.
        noise: probability of picking one of all completions by lot instead (a tired labeler).
        rng: three draws a call, whatever comes of them, so one row's tie shifts no other's luck.
    """
    careless, lot, tie_break = rng.random(), rng.random(), rng.random()
    if careless < noise:
        return int(lot * len(scores))

    top = max(scores)
    best = [k for k, value in enumerate(scores) if value == top]
    if len(best) > 1 and ties == "drop":
        return None
    return best[int(tie_break * len(best))]
