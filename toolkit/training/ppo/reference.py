"""What is measured on samples of the reference before the first update."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.data.prompts import Prompts
from toolkit.maths.lengths import LengthLine
from toolkit.models.actors import REFERENCE, Actors
from toolkit.models.sampling import SamplingRule
from toolkit.scoring.ensembles import DISAGREEMENT
from toolkit.scoring.lengths import fitted, token_counts
from toolkit.scoring.scorer import Scorer, TokenCompletions


@dataclass(frozen=True)
class AtStart:
    """What the scorers made of the reference's samples.

    Attributes:
        disagreement: mean over samples of the standard deviation between several reward models;
            None for one.
        line: of the scores over the tokens that the scorer sees; None if nobody asked for it.
    """

    disagreement: float | None = None
    line: LengthLine | None = None

    def to_json(self) -> dict[str, Any] | None:
        """Return it as a checkpoint holds it; None if nothing was measured."""
        if self == AtStart():
            return None
        line = None if self.line is None else list(self.line)
        return {"disagreement": self.disagreement, "line": line}

    @classmethod
    def from_json(cls, row: dict[str, Any] | None) -> "AtStart":
        """Read what ``to_json`` gave; None for a checkpoint without it."""
        row = row or {}
        line = None if row.get("line") is None else LengthLine(*row["line"])
        return cls(row.get("disagreement"), line)

    def grown(self, disagreement: float | None) -> float | None:
        """Return how many times as large as here a disagreement is; None if neither is known."""
        if disagreement is None or not self.disagreement:
            return None
        return disagreement / self.disagreement


def said_of(found: AtStart, count: int) -> list[str]:
    """Return a line for each thing that was measured on ``count`` samples."""
    lines = []
    if found.disagreement is not None:
        lines.append(
            f"On {count} samples of the reference, the reward models' scores of a completion have "
            f"a standard deviation of {found.disagreement:.3f} between the models."
        )
    if found.line is not None:
        lines.append(
            f"On {count} samples of the reference, a token is worth {found.line.slope:+.4f} ± "
            f"{found.line.error:.4f} of the score (their mean length is {found.line.length:.1f} "
            "tokens); this is taken out of every score."
        )
    return lines


@torch.no_grad()
def measure(
    actors: Actors,
    prompts: Prompts,
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Scorer,
    count: int,
    seed: int,
    batch_size: int,
    with_line: bool,
) -> AtStart:
    """Sample the reference by the run's own rule, and score what the scorer sees.

    Args:
        actors: the roles.
        prompts: used in turn until there are enough samples.
        rule: sampling and truncation.
        tokenizer: for scorers that read text.
        rewards: the scorers, without a price for length.
        count: number of samples.
        seed: of the noise, which nothing else uses.
        batch_size: samples in one pass.
        with_line: whether to fit the line of scores over length.

    Raises:
        InputError: the line was asked for, but all samples are equally long.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [i % len(prompts) for i in range(count)]
    scores, tokens, apart = [], [], []

    for start in range(0, count, batch_size):
        batch = prompts.pick(chosen[start : start + batch_size])
        _, sampled = rule.sample(actors.step(REFERENCE), batch, generator, actors.device)
        visible, valid = rule.visible(sampled)
        seen = TokenCompletions.seen(
            batch, sampled.completion_ids, visible, tokenizer, actors, batch_size
        )
        found = rewards(seen).to("cpu", torch.float64)
        # A completion without its truncation token gets a penalty in place of a score.
        scores.append(found.masked_fill(~valid.cpu(), torch.nan))
        tokens.append(token_counts(seen.ids))
        if DISAGREEMENT in seen.noted:
            apart.append(seen.noted[DISAGREEMENT].cpu())

    return AtStart(
        torch.cat(apart).nanmean().item() if apart else None,
        fitted(torch.cat(scores), torch.cat(tokens)) if with_line else None,
    )
