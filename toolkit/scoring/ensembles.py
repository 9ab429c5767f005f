"""Several reward adapters on one base as one scorer: their scores combined into one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.maths.ensembles import Combining, combined, disagreement
from toolkit.models.actors import Actors
from toolkit.models.reading import reading_of
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import read_facts
from toolkit.scoring.reward_models import RewardAdapter
from toolkit.scoring.scorer import Completions, Scorer

DISAGREEMENT = "disagreement"  # what ``Completions.noted`` calls it


class RewardEnsemble(Scorer):
    """Scores with several reward adapters on the actors' base, each with its own gain and bias.

    The standard deviation of the models' scores of each completion is noted as "disagreement".
    Source: arXiv 2310.02743.

    Args:
        members: the reward adapters, each with a folder.
        how: how their scores become one (``combined``).
        weight: of the standard deviation in "mean_minus_std".
        title: its name in messages.

    Raises:
        InputError: an adapter's scores are not normalized, so that they have a scale of their own;
            or its gain turns its order around.
    """

    name = "reward models"

    def __init__(
        self,
        members: Sequence[RewardAdapter],
        how: Combining = "mean",
        weight: float = 1.0,
        title: str = "reward models",
    ) -> None:
        self.members, self.how, self.weight = list(members), how, weight
        self._title = title
        for member in self.members:
            _check_normalized(member)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self._title

    @property
    def identity(self) -> list[object]:
        """How it combines, and each member's weights, gain, bias and end token."""
        how = [self.how, self.weight] if self.how == "mean_minus_std" else [self.how]
        return ["reward models", *how, *map(_identity_of, self.members)]

    def check(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise InputError if a member's scores of completions of these prompts mean nothing."""
        for member in self.members:
            member.check(prompts, tokenizer)

    def prepare(self, actors: Actors, tokenizer: PreTrainedTokenizerBase) -> None:
        """Put all members on the base, and make the first one the reward.

        Raises:
            InputError: the actors do not share one base.
        """
        if not isinstance(actors, Roles):
            raise InputError("several reward adapters need Roles on one base")
        for member in [*self.members, self.members[0]]:
            reading = reading_of(member.folder, tokenizer, member.end_token)
            actors.use_reward(member.folder, reading)

    def __call__(self, completions: Completions) -> Tensor:
        """Return the combined scores of the B completions: (B,) fp32, on the actors' device."""
        scores = torch.stack([member(completions) for member in self.members])
        completions.noted[DISAGREEMENT] = disagreement(scores)
        return combined(scores, self.how, self.weight)


def _check_normalized(member: RewardAdapter) -> None:
    facts = read_facts(member.folder)
    if "gain" not in facts or "bias" not in facts or facts.get("samples") == 0:
        raise InputError(
            f"{member.title}: {member.folder} has no gain and bias in its toolkit.json, so its "
            "scores cannot be put beside those of other reward models (train it by preftune "
            "reward, with --normalize_samples)",
            "reward_adapter",
        )
    if facts["gain"] <= 0:
        raise InputError(
            f"{member.title}: {member.folder} has the gain {facts['gain']:g}, so a better text "
            "gets a lower score",
            "reward_adapter",
        )


def _identity_of(member: RewardAdapter) -> str:
    content = (Path(member.folder) / "adapter_model.safetensors").read_bytes()
    facts = read_facts(member.folder)
    weights = hashlib.sha256(content).hexdigest()[:16]
    return f"{weights} {facts['gain']} {facts['bias']} {member.end_token}"
