"""What can be set when a reward model is trained."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from trl import RewardConfig

from toolkit.errors import InputError, check_choice, check_range, check_seed
from toolkit.training.trackers import check_trackers

LOSSES = ("best_of_k", "best_vs_rest", "plackett_luce", "scalar_rating", "scalar_compare")
# Fields of RewardConfig that the K-way trainer would silently ignore, with their defaults.
NOT_USED = {
    "chat_template_path": None, "label_smoothing_factor": 0.0, "eos_token": None,
    "hub_model_id": None, "hub_token": None, "push_to_hub": False, "pad_token": None,
    "pad_to_multiple_of": "auto", "model_init_kwargs": None, "resume_from_checkpoint": None,
    "train_sampling_strategy": "random",
}  # fmt: skip


@dataclass
class BestOfKConfig(RewardConfig):
    """TRL's RewardConfig with the paper's habits: no clipping, no weight decay, decay to 0."""

    HELP_FIELDS: ClassVar[tuple[str, ...]] = (
        "center_rewards_coefficient", "gradient_accumulation_steps", "output_dir",
        "num_train_epochs", "per_device_train_batch_size", "learning_rate", "max_length", "seed",
        "report_to",
    )  # fmt: skip

    loss_type: str = field(
        default="best_of_k",
        metadata={
            "help": "best_of_k (softmax over all K), best_vs_rest (pairs), plackett_luce "
            "(`ranking`, whole or in part), scalar_rating or scalar_compare (`scores`)."
        },
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "Probability that a pick is wrong (best_of_k, best_vs_rest)."},
    )
    use_margin: bool = field(
        default=False,
        metadata={"help": "The best must lead by the row's `margin` (best_of_k, best_vs_rest)."},
    )
    output_dir: str | None = field(
        default="outputs/reward", metadata={"help": "Folder for the adapter."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the comparisons."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Comparisons (each of K texts) in a batch."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "The same, held out."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bf16 (GPU)."})
    activation_checkpointing: bool | None = field(default=False, metadata={"help": "Save memory."})
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]  # the old name
        default=None, init=False
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: gradients are not clipped."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Adam's epsilon."})
    save_strategy: str = field(default="no", metadata={"help": "The adapter is saved at the end."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches (GPU)."}
    )
    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first, near ln K."})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_choice("loss_type", self.loss_type, LOSSES)
        check_range("label_smoothing", self.label_smoothing, low=0, high=0.5)
        for name in ("label_smoothing", "use_margin"):
            if getattr(self, name) and self.loss_type not in ("best_of_k", "best_vs_rest"):
                raise InputError(f"{name} is not used by the loss {self.loss_type}", name)
        if self.center_rewards_coefficient is not None and self.loss_type == "scalar_rating":
            raise InputError(
                "center_rewards_coefficient is not used by scalar_rating, whose ratings fix where "
                "0 is", "center_rewards_coefficient",
            )  # fmt: skip
        check_range("center_rewards_coefficient", self.center_rewards_coefficient, low=0)
        for name, default in NOT_USED.items():
            if getattr(self, name) != default:
                raise InputError(f"{name} is not used for comparisons (leave it out)", name)
        for name in ("num_train_epochs", "learning_rate"):
            check_range(name, getattr(self, name), above=0)
        for name in ("per_device_train_batch_size", "max_length", "gradient_accumulation_steps"):
            check_range(name, getattr(self, name), low=1)
        check_trackers(self.report_to)
        super().__post_init__()

    @property
    def wants(self) -> str:
        """What the loss needs of a row: "best" or "scores" (``data.comparisons.problems_of``)."""
        return "scores" if self.loss_type.startswith("scalar_") else "best"
