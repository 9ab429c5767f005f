"""Scores that length does not win: a price for each token, and the slope over length taken out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.maths.lengths import LengthLine, length_line
from toolkit.scoring.scorer import Completions, Scorer, TokenCompletions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from toolkit.models.actors import Actors


class LengthPriced(Scorer):
    """A scorer's scores, less a price for each token that it sees of a completion.

    score - slope * (tokens - mean tokens) - penalty * tokens

    Args:
        scorer: gives the scores.
        penalty: price of a token, in the scores' unit.

    Attributes:
        line: slope and mean tokens, as ``fitted`` found them; None takes no slope out.
    """

    def __init__(self, scorer: Scorer, penalty: float = 0.0) -> None:
        self.scorer, self.penalty = scorer, penalty
        self.line: LengthLine | None = None
        self.name = scorer.name

    @property
    def identity(self) -> object:
        """That of the scorer: a run's settings hold the price, and its state the slope."""
        return self.scorer.identity

    def check(self, prompts: Prompts, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise InputError if the scorer's scores of these completions would mean nothing."""
        self.scorer.check(prompts, tokenizer)

    def prepare(self, actors: "Actors", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Put what the scorer needs on the actors' base."""
        self.scorer.prepare(actors, tokenizer)

    def __call__(self, completions: Completions) -> Tensor:
        """Return the B scores after the price, on the scorer's device and of its type.

        Raises:
            ValueError: the completions are texts without tokens.
        """
        if not isinstance(completions, TokenCompletions):
            raise ValueError("a price for tokens needs completions as token ids")
        return self.priced(self.scorer(completions), completions.ids)

    def priced(self, scores: Tensor, ids: Sequence[list[int]]) -> Tensor:
        """Return the scores (B,) after the price of B completions' token ids."""
        if self.line is None and not self.penalty:
            return scores
        tokens = token_counts(ids).to(scores.device, scores.dtype)
        if self.line is not None:
            scores = scores - self.line.slope * (tokens - self.line.length)
        return scores - self.penalty * tokens


def token_counts(ids: Sequence[list[int]]) -> Tensor:
    """Return the lengths (B,) fp64 of B lists of token ids."""
    return torch.tensor([len(each) for each in ids], dtype=torch.float64)


def fitted(scores: Tensor, tokens: Tensor) -> LengthLine:
    """Fit the line of scores over tokens; what has no score (NaN) is left out.

    Args:
        scores, tokens: (N,), of samples of the untuned model.

    Raises:
        InputError: all samples have the same length, so no slope can be told.
    """
    known = scores.isfinite().cpu()
    line = length_line(tokens.cpu()[known], scores.cpu()[known])
    if line is None:
        raise InputError(
            f"regress_length: all {int(known.sum())} samples that have a score are equally long, "
            "so no slope of the score over length can be told (leave it out, or let completions "
            "end by --stop_token or --truncate_token)",
            "regress_length",
        )
    return line
