"""What can be set when a reward model is trained."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from toolkit.errors import InputError
from toolkit.flags import (
    Count,
    Named,
    NotNegative,
    Positive,
    Range,
    check_flags,
    flag,
    other_default,
)
from toolkit.training.reward.losses import LOSSES, Loss
from toolkit.training.trackers import check_trackers
from toolkit.training.trl_configs import RewardConfig
from toolkit.training.trl_defaults import TRLDefaults

# Fields of RewardConfig that the K-way trainer would ignore, with their defaults.
NOT_USED = {
    "chat_template_path": None, "label_smoothing_factor": 0.0, "eos_token": None,
    "hub_model_id": None, "hub_token": None, "push_to_hub": False, "pad_token": None,
    "pad_to_multiple_of": "auto", "model_init_kwargs": None, "resume_from_checkpoint": None,
    "train_sampling_strategy": "random",
}  # fmt: skip


@dataclass
class BestOfKConfig(TRLDefaults, RewardConfig):  # type: ignore[misc]  # as TRL itself
    """TRL's RewardConfig with the paper's habits: no clipping, no weight decay, decay to 0."""

    HELP_GROUP: ClassVar[str] = "training"
    HELP_GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "method": (
            "loss_type",
            "label_smoothing",
            "use_margin",
            "center_rewards_coefficient",
            "source_weights",
        ),
        "prompts and data": ("max_length",),
        "training": ("gradient_accumulation_steps", "seed"),
        "output, saving and resuming": ("report_to",),
    }

    INHERITED: ClassVar[dict[str, object]] = {
        "center_rewards_coefficient": NotNegative,
        "max_length": Count,
    }

    loss_type: Loss = flag(
        "best_of_k",
        "Loss: best_of_k (softmax over all K), best_vs_rest (pairs), plackett_luce (`ranking`, "
        "whole or partial, and `worst`), scalar_rating or scalar_compare (`scores`).",
    )
    label_smoothing: Annotated[float, Range(low=0, high=0.5)] = flag(
        0.0, "Probability that a pick is wrong (best_of_k, best_vs_rest)."
    )
    use_margin: bool = flag(
        False, "Make the best lead by the row's `margin` (best_of_k, best_vs_rest)."
    )
    source_weights: Named = flag(
        [],
        "How much comparisons of each `source` count, as NAME=WEIGHT (harmless=2): a weight of 2 "
        "is like having each of them twice. All sources must be named. Only the ratios matter.",
    )
    output_dir: str | None = flag("outputs/reward", "Folder for the adapter.")
    bf16: bool = other_default(False, TRLDefaults, "bf16")
    learning_rate: Positive = flag(1e-4, "Highest learning rate; it falls linearly to 0.")
    per_device_train_batch_size: Count = flag(32, "Comparisons (each of K texts) in a batch.")
    per_device_eval_batch_size: int = flag(64, "Held-out comparisons in a batch.")
    max_grad_norm: float = flag(0.0, "Clip the gradient's norm to this; 0 for no clipping.")
    adam_epsilon: float = flag(1e-5, "Adam's epsilon.")

    def __post_init__(self) -> None:
        check_flags(self)
        for name in ("label_smoothing", "use_margin"):
            if getattr(self, name) and not LOSSES[self.loss_type].takes_margin:
                raise InputError(f"{name} is not used by the loss {self.loss_type}", name)
        if self.center_rewards_coefficient is not None and LOSSES[self.loss_type].fixes_zero:
            raise InputError(
                f"center_rewards_coefficient is not used by {self.loss_type}, whose ratings fix "
                "where 0 is",
                "center_rewards_coefficient",
            )
        for name, default in NOT_USED.items():
            if getattr(self, name) != default:
                raise InputError(f"{name} is not used for comparisons (leave it out)", name)
        self.weights()
        check_trackers(self.report_to)
        super().__post_init__()

    def weights(self) -> dict[str, float]:
        """Return the weight of each source, as given; empty for none.

        Raises:
            InputError: a word is not NAME=WEIGHT with a weight above 0, or a name occurs twice.
        """
        found: dict[str, float] = {}
        for word in self.source_weights:
            name, equals, number = word.rpartition("=")
            try:
                weight = float(number)
            except ValueError:
                weight = math.nan
            if not (name and equals and 0 < weight < math.inf):
                raise InputError(
                    f"source_weights: {word!r} is not NAME=WEIGHT with a weight above 0 (such as "
                    "harmless=2; leave rows out that should not count)",
                    "source_weights",
                )
            if name in found:
                raise InputError(f"source_weights: {name} occurs twice", "source_weights")
            found[name] = weight
        return found

    @property
    def wants(self) -> str:
        """What the loss needs in a row: "best" or "scores" (``data.comparisons.problems_of``)."""
        return LOSSES[self.loss_type].wants
