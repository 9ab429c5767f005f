"""Scorers say how good a completion is: their input, their output, and weighted sums.

    asked = TokenCompletions(prompts, tokenizer, ids, actors=roles)
    scores = WeightedSum([RewardAdapter(), Lexicon("words.txt")], [1.0, 0.1])(asked)  # (B,)

PPO, RLOO, labeling, evaluation and best-of-n all use this interface. To add one, write a class.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolkit.data.encoding import Encoder
from toolkit.data.prompts import Messages, Prompts
from toolkit.data.records import Answer
from toolkit.data.text import answers
from toolkit.data.tokens import decode_pair
from toolkit.errors import InputError
from toolkit.maths.sequences import real_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from toolkit.models.actors import Actors

Prompt = str | Messages
Columns = dict[str, list[object]]


class Completions:
    """B completions of B prompts, as text.

    Args:
        prompts: B prompts as given, each text or messages.
        texts: B texts.
        columns: name -> B values: the other fields of the prompts' rows.

    Attributes:
        noted: what scorers measured beside their scores, by name: each (B,).
    """

    def __init__(
        self, prompts: Sequence[Prompt], texts: Sequence[str], columns: Columns | None = None
    ) -> None:
        self._prompts: Sequence[Prompt] | None = prompts
        self._texts: Sequence[str] | None = texts
        self.columns = columns or {}
        self.noted: dict[str, Tensor] = {}

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The B prompts as functions, judges and people see them."""
        return list(self._prompts or [])

    @cached_property
    def texts(self) -> list[str]:
        """The B texts, each of which continues its prompt."""
        return list(self._texts or [])

    @cached_property
    def answers(self) -> list[Answer]:
        """The B completions in TRL's form: text, or an assistant's message after messages."""
        return answers(self.prompts, self.texts)


class TokenCompletions(Completions):
    """B completions of B prompts as token ids; text is decoded when it is needed.

    Args:
        prompt_ids: B lists of token ids; ``Prompts`` also know their given form and columns.
        tokenizer: of these ids.
        ids: B lists of token ids: what a scorer sees of each completion, without a stop token. If
            they are missing, they are made from ``texts`` as the base would read them.
        texts: B texts, if they are known.
        actors: the models in use; a reward adapter shares their base.
        batch_size: completions in one pass of these models.
    """

    def __init__(
        self,
        prompt_ids: Sequence[list[int]],
        tokenizer: "PreTrainedTokenizerBase",
        ids: Sequence[list[int]] | None = None,
        texts: Sequence[str] | None = None,
        actors: "Actors | None" = None,
        batch_size: int = 256,
    ) -> None:
        known = prompt_ids if isinstance(prompt_ids, Prompts) else Prompts(prompt_ids)
        super().__init__([], [], known.columns)

        self.prompt_ids = known
        self.tokenizer = tokenizer
        self.actors = actors
        self.batch_size = batch_size
        self._ids = ids
        self._texts = texts

    @classmethod
    def seen(
        cls,
        prompt_ids: Sequence[list[int]],
        completion_ids: Tensor,
        visible: Tensor,
        tokenizer: "PreTrainedTokenizerBase",
        actors: "Actors | None" = None,
        batch_size: int = 256,
    ) -> "TokenCompletions":
        """Make completions from what ``visible`` (B, C) shows of ``completion_ids`` (B, C)."""
        ids = real_tokens(completion_ids, visible)
        return cls(prompt_ids, tokenizer, ids, actors=actors, batch_size=batch_size)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The B prompts as functions, judges and people see them."""
        return [self.prompt_ids.shown(i, self.tokenizer) for i in range(len(self.prompt_ids))]

    @cached_property
    def texts(self) -> list[str]:
        """The B texts, each of which continues its prompt."""
        if self._texts is not None:
            return list(self._texts)
        pairs = zip(self.prompt_ids, self.ids, strict=True)
        return [decode_pair(self.tokenizer, prompt, ids)[1] for prompt, ids in pairs]

    @cached_property
    def ids(self) -> list[list[int]]:
        """The B completions' token ids."""
        if self._ids is not None:
            return list(self._ids)

        # The text has another model's tokens, or is from a file: encode it as the base would.
        encoder = Encoder(self.tokenizer, None, chat=self.prompt_ids.chat)
        found = []
        for i, (prompt, text) in enumerate(zip(self.prompts, self.texts, strict=True)):
            asked = encoder.prompt_text(prompt, self.prompt_ids.row(i))
            is_chat = not isinstance(prompt, str)
            found.append(encoder.completion_ids(self.prompt_ids[i], asked, text, is_chat))
        return found


class Scorer(ABC):
    """Says how good completions are, with a number for each.

    Attributes:
        name: its name in logs and metrics.
        title: its name in messages.
        cure: what to do if it gives no finite score, for messages.
    """

    name: str
    cure = ""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.name

    @property
    @abstractmethod
    def identity(self) -> object:
        """What identifies the scorer, for JSON; a run is resumed only with the same."""

    @abstractmethod
    def __call__(self, completions: Completions) -> Tensor:
        """Return scores (B,) of any float type, on any device; NaN for a completion without one.

        Raises:
            InputError: it fails, or does not return scores.
        """

    def check(self, prompts: Prompts, tokenizer: "PreTrainedTokenizerBase") -> None:  # noqa: B027
        """Raise InputError if its scores of completions of these prompts would mean nothing."""

    def prepare(  # noqa: B027
        self, actors: "Actors", tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        """Put what it needs on the actors' base, before a run begins."""

    def finite_scores(self, completions: Completions) -> list[float]:
        """Return the B scores, all of them finite.

        Raises:
            InputError: a completion has no finite score.
        """
        scores: list[float] = self(completions).tolist()
        for value, text in zip(scores, completions.texts, strict=True):
            if not math.isfinite(value):
                raise InputError(f"{self.title} scored {text!r:.60} as {value}{self.cure}")
        return scores


def refuse_infinite(title: str, scores: Sequence[float], completions: Sequence[object]) -> None:
    """Raise InputError if one of B scores is infinite, which is always a mistake.

    Args:
        title: the scorer's name.
        scores: its B scores.
        completions: the B completions, to name the one with the infinite score.
    """
    for value, completion in zip(scores, completions, strict=True):
        if math.isinf(value):
            raise InputError(f"{title} scored {completion!r:.60} as {value}")


class WeightedSum(Scorer):
    """The sum of scores, each times its weight; NaN if any part cannot score.

    Args:
        parts: the scorers.
        weights: one for each part.
        dtype: type of the sum.
    """

    def __init__(
        self,
        parts: Sequence[Scorer],
        weights: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parts = parts
        self.weights = weights
        self.dtype = dtype
        self.name = "+".join(part.name for part in parts)

    @property
    def identity(self) -> list[list[object]]:
        """The parts' identities, each with its weight."""
        return [
            [part.identity, weight] for part, weight in zip(self.parts, self.weights, strict=True)
        ]

    def __call__(self, completions: Completions) -> Tensor:
        """Return the sums (B,), of type ``dtype``, on the CPU."""
        total = torch.zeros((), dtype=self.dtype)
        for part, weight in zip(self.parts, self.weights, strict=True):
            total = total + weight * part(completions).to("cpu", self.dtype)
        return total

    def check(self, prompts: Prompts, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise InputError if a part's scores of these completions would mean nothing."""
        for part in self.parts:
            part.check(prompts, tokenizer)

    def prepare(self, actors: "Actors", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Put what its parts need on the actors' base."""
        for part in self.parts:
            part.prepare(actors, tokenizer)
