"""What an evaluation of summaries knows beside prompts: the texts, and what people wrote."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.evaluation.contenders import Contender
from toolkit.evaluation.result import Rouge
from toolkit.evaluation.rouge import rouge


@dataclass(frozen=True)
class Summaries:
    """The texts that prompts ask to sum up, and a person's summary of each.

    Attributes:
        sources: one text for each prompt.
        column: the column of the person's summaries; None without any.
        references: the summaries; empty without any.
    """

    sources: Sequence[str]
    column: str | None = None
    references: Sequence[str] = ()

    def rouge_of(self, contender: Contender, texts: Sequence[str]) -> Rouge | None:
        """Return the ROUGE of a contender's texts; None for the person's own, and without any."""
        own = contender.kind == "column" and contender.source == self.column
        return rouge(texts, self.references) if self.references and not own else None
