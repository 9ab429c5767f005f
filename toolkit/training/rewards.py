"""Who scores a completion: a reward model among the roles, Python functions, or a weighted sum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.data.prompts import Prompts
from toolkit.data.text import answers, decode_pair
from toolkit.errors import InputError
from toolkit.maths.sequences import length_sorted_batches, pad
from toolkit.models.actors import Actors
from toolkit.scoring.functions import (
    Columns,
    RewardFunction,
    call_reward_function,
    function_name,
)


@dataclass
class Rewards:
    """A weighted sum of scores.

    Attributes:
        parts: functions ``fn(prompts, completions, **columns) -> scores``, called with what
            ``as_asked`` gives; None stands for the reward model among the roles.
        weights: one for each part.
    """

    parts: Sequence[RewardFunction | None]
    weights: Sequence[float]

    def names(self) -> list[str]:
        """What each part is called, for logs."""
        return ["reward model" if part is None else function_name(part) for part in self.parts]

    def identity(self) -> list[Any]:
        """What makes them these, for a run that is resumed."""
        return [
            ["reward model" if part is None else _identity_of(part), weight]
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]

    def __call__(
        self,
        actors: Actors,
        prompts: list[list[int]],
        completion_ids: Tensor,
        visible: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns | None = None,
        batch_size: int = 256,
    ) -> Tensor:
        """The sum for each completion, (B,) fp32; NaN where any part cannot score it.

        Args:
            actors: with a reward model, if that is a part.
            prompts: B lists of token ids.
            completion_ids: (B, C).
            visible: bool (B, C), the tokens that scorers see.
            tokenizer: functions read text.
            columns: further columns of the prompts' rows, for the functions.
            batch_size: completions that the reward model scores in one pass.
        """
        total = torch.zeros(len(prompts), device=actors.device)
        kept = [ids[keep].tolist() for ids, keep in zip(completion_ids, visible, strict=True)]
        asked: tuple[list[Any], list[Any]] | None = None
        for part, weight in zip(self.parts, self.weights, strict=True):
            if part is None:
                scores = model_scores(actors, prompts, kept, tokenizer, batch_size)
            else:
                asked = asked or as_asked(prompts, kept, tokenizer)
                values = call_reward_function(part, *asked, columns or {}, all_scored=False)
                scores = torch.tensor(values, device=actors.device)
            total = total + weight * scores
        return total


def as_asked(
    prompts: Sequence[list[int]], kept: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Any], list[Any]]:
    """Prompts and completions as functions, judges and people get them, in TRL's form.

    Strings, or, where a prompt is messages, these and a list with the assistant's message.

    Args:
        prompts: token ids; ``Prompts`` know how they were given.
        kept: token ids of what is seen of each completion.
        tokenizer: of both.
    """
    known = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    shown = [known.shown(i, tokenizer) for i in range(len(known))]
    texts = [decode_pair(tokenizer, p, c)[1] for p, c in zip(prompts, kept, strict=True)]
    return shown, answers(shown, texts)


@torch.no_grad()
def model_scores(
    actors: Actors, prompts: list[list[int]], kept: list[list[int]],
    tokenizer: PreTrainedTokenizerBase, batch_size: int,
) -> Tensor:  # fmt: skip
    """The reward model's scores (B,), rows of like length together.

    Args:
        actors: with a reward model.
        prompts, kept: token ids of B prompts, and what is seen of their completions.
        tokenizer: its pad token.
        batch_size: rows in one pass.
    """
    rows = actors.reading.rows(tokenizer, prompts, kept)
    scores = torch.empty(len(rows), device=actors.device)
    for batch in length_sorted_batches([len(row) for row in rows], batch_size):
        chosen = batch.tolist()
        ids, mask = pad([rows[i] for i in chosen], tokenizer.pad_token_id)
        scores[chosen] = actors.scores(ids.to(actors.device), mask.to(actors.device))
    return scores


@torch.no_grad()
def score(
    actors: Actors,
    prompts: list[list[int]],
    completion_ids: Tensor,
    visible: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    reward_function: RewardFunction | None = None,
    columns: Columns | None = None,
) -> Tensor:
    """Scores (B,) by one scorer: the function, or the reward model if it is None.

    Arguments as for Rewards.

    Raises:
        InputError: a completion was not scored (NaN).
    """
    rewards = Rewards([reward_function], [1.0])
    scores = rewards(actors, prompts, completion_ids, visible, tokenizer, columns)
    unscored = torch.nonzero(scores.isnan())
    if len(unscored):
        i = int(unscored[0])
        _, text = decode_pair(tokenizer, prompts[i], completion_ids[i][visible[i]].tolist())
        raise InputError(f"{rewards.names()[0]}: scored {text!r:.60} as nan")
    return scores


def _identity_of(function: Any) -> str:
    known = getattr(function, "identity", None)
    if known is not None:
        return str(known)
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"
