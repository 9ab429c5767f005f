"""The pretraining mix (PTX): the policy also learns plain text, so that it forgets less.

objective = E[reward] + ptx_coef * E[log pi(x)], x from the text. At each optimizer step the
gradient of the language model's loss, times ``ptx_coef``, is added to PPO's. Source: InstructGPT,
arXiv 2203.02155 section 3.5 and appendix C.4: 8 rows of text for each episode, both gradients
accumulated, then one step. Its coefficient of 27.8 belongs to rewards that are not whitened.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.ppo.inputs import hash_of


class PretrainingText:
    """Rows of text, taken in order, and again from the first when all were taken.

    Args:
        rows: token ids of each text, two or more.
        ratio: rows for each episode.

    Attributes:
        used: the number of rows that were taken so far; it is in a checkpoint.
    """

    def __init__(self, rows: list[list[int]], ratio: int) -> None:
        self.rows, self.ratio, self.used = rows, ratio, 0

    @cached_property
    def digest(self) -> str:
        """A hash of the rows; each checkpoint notes it, so it is made once."""
        return hash_of(self.rows)

    def take(self, episodes: int, steps: int) -> list[list[list[int]]]:
        """Take the rows of an update, and share them evenly over its optimizer steps.

        Args:
            episodes: of the update, in all processes.
            steps: optimizer steps of the update; at most ``ratio * episodes``.

        Returns:
            the rows of each step.
        """
        count = self.ratio * episodes
        places = [(self.used + i) % len(self.rows) for i in range(count)]
        self.used += count
        bounds = [count * step // steps for step in range(steps + 1)]
        return [
            [self.rows[place] for place in places[start:stop]]
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
        ]


def as_pretraining_text(
    rows: Sequence[Sequence[int]] | None, args: PPOConfig
) -> PretrainingText | None:
    """Check the rows of text; None if the run has no pretraining mix.

    Raises:
        InputError: there are rows without a coefficient, or a coefficient without rows; or a row
            has fewer than two tokens.
    """
    if not args.ptx_coef:
        if rows is not None:
            raise InputError("ptx_dataset is given, but ptx_coef is 0 (give both)", "ptx_coef")
        return None
    if not rows:
        raise InputError(
            "ptx_coef needs text (name a file by --ptx_data, or pass ptx_dataset)", "ptx_coef"
        )
    short = next((i for i, row in enumerate(rows) if len(row) < 2), None)
    if short is not None:
        raise InputError(f"ptx_dataset: row {short} has fewer than two tokens")
    return PretrainingText([list(row) for row in rows], args.ptx_ratio)


def text_loss(logprobs: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """Negative log-likelihood of some rows' tokens, divided by the number of all rows' tokens.

    The sum over all micro-batches and processes is the mean over tokens: a long text counts for
    more than a short one.

    Args:
        logprobs: (B, T - 1), of every token but the first.
        mask: bool (B, T - 1), True = real token.
        tokens: predicted tokens in all rows.
    """
    return -(logprobs * mask).sum() / tokens


def add_gradients(first: Tensor | None, second: Tensor, coefficient: float) -> Tensor:
    """first + coefficient * second; a gradient that is None is 0."""
    scaled = coefficient * second
    return scaled if first is None else first + scaled


def total_norm(gradients: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """The norm of all these gradients together; 0 for none."""
    known = [gradient for gradient in gradients if gradient is not None]
    if not known:
        return torch.zeros((), device=device)
    return torch.nn.utils.get_total_norm(known).to(device)
