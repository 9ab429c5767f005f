"""From comparisons to ILQL's rows: each completion by itself, with its reward."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow
import torch
from torch import Tensor

from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.maths.ilql import standardized
from toolkit.maths.sequences import pad
from toolkit.training.baselines.data import IDS, BaselineData, Shape
from toolkit.training.ilql.config import ILQLConfig

SCHEMA = pyarrow.schema({"prompt_ids": IDS, "completion_ids": IDS, "reward": pyarrow.float64()})


@dataclass(frozen=True)
class Batch:
    """Completions with their rewards.

    Attributes:
        ids, mask: int and bool (B, P + C): prompts padded on the left, completions on the right.
        completion_ids: int (B, C), the last C of ``ids``.
        rewards: fp32 (B,).
    """

    ids: Tensor
    mask: Tensor
    completion_ids: Tensor
    rewards: Tensor

    @property
    def completion_mask(self) -> Tensor:
        """bool (B, C)."""
        return self.mask[:, -self.completion_ids.shape[1] :]


def rewarded(config: ILQLConfig) -> Shape:
    """Return the function that shapes rows of comparisons into rows of ``SCHEMA``."""

    def shape(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            completions = row["completion_ids"]
            for k, completion in enumerate(completions):
                if config.rewards == "scores":
                    reward = float(row["scores"][k])
                else:  # another one of the same tokens was picked, too
                    reward = 1.0 if completion == completions[row["best"]] else -1.0
                yield {
                    "prompt_ids": row["prompt_ids"],
                    "completion_ids": completion,
                    "reward": reward,
                }

    return shape


def with_learned_rewards(data: BaselineData, normalize: bool) -> tuple[list[Row], list[Row], Row]:
    """Read both sides into memory, with the rewards that are learned, and add to the facts.

    Args:
        data: rows of ``SCHEMA``.
        normalize: whether to subtract the training rows' mean from the rewards of both sides, and
            to divide by their standard deviation (n - 1).

    Returns:
        training rows, held-out rows, and the facts with ``reward_mean`` and ``reward_std``.

    Raises:
        InputError: all training rewards are equal.
    """
    train, held_out = (list(side) for side in (data.train, data.held_out))
    given = torch.tensor([row["reward"] for row in train], dtype=torch.float64)
    try:
        learned = standardized(given)
    except ValueError:
        raise InputError(
            "rewards: all completions have the same reward, so there is nothing to learn (give "
            "rows whose scores differ)",
            "rewards",
        ) from None

    mean, std = given.mean().item(), given.std(correction=1).item()
    if normalize:
        train = [row | {"reward": r} for row, r in zip(train, learned.tolist(), strict=True)]
        held_out = [row | {"reward": (row["reward"] - mean) / std} for row in held_out]
    return train, held_out, data.facts | {"reward_mean": mean, "reward_std": std}


def collate(rows: Sequence[Row], pad_id: int, device: torch.device) -> Batch:
    """Make a batch of rows of ``SCHEMA``."""
    prompts, prompt_mask = pad([row["prompt_ids"] for row in rows], pad_id, "left")
    completions, mask = pad([row["completion_ids"] for row in rows], pad_id)
    rewards = torch.tensor([row["reward"] for row in rows], dtype=torch.float32)
    return Batch(
        torch.cat([prompts, completions], dim=1).to(device),
        torch.cat([prompt_mask, mask], dim=1).to(device),
        completions.to(device),
        rewards.to(device),
    )


def order_of(epoch: int, count: int, seed: int) -> list[int]:
    """Return the order of the rows in an epoch, which depends on these three numbers alone."""
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()
