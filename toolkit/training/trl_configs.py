"""The configs of transformers and TRL, imported without peft: a help text does not need it."""

from toolkit.late import training_arguments_without_peft

training_arguments_without_peft()

from transformers import TrainingArguments  # noqa: E402  # after the line above
from trl import DPOConfig, KTOConfig, RewardConfig, RLOOConfig, SFTConfig  # noqa: E402

__all__ = [
    "DPOConfig",
    "KTOConfig",
    "RLOOConfig",
    "RewardConfig",
    "SFTConfig",
    "TrainingArguments",
]
