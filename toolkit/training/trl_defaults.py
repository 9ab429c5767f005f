"""Defaults in which every training by TRL differs from TRL."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from toolkit.flags import Count, Positive, Seed, flag


@dataclass
class TRLDefaults:
    """By default no bf16 and no checkpointing; the adapter is saved once, at the end."""

    HELP_GROUP: ClassVar[str] = "training"
    HELP_GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "output, saving and resuming": ("save_strategy", "logging_steps", "logging_first_step"),
    }
    INHERITED: ClassVar[dict[str, object]] = {"seed": Seed, "gradient_accumulation_steps": Count}

    num_train_epochs: Positive = flag(1.0, "Passes over the rows.")
    bf16: bool | None = flag(False, "Run every pass under bf16 autocast (GPU).")
    activation_checkpointing: bool | None = flag(
        False, "Recompute activations in the backward pass: less memory, more time."
    )
    gradient_checkpointing: bool | None = field(default=None, init=False)  # the old name
    save_strategy: str = flag(
        "no",
        "When to save checkpoints: no, steps or epoch. The adapter is saved at the end anyway.",
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory (GPU)."}
    )
    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    logging_steps: float = flag(10, "Steps between log lines.")
    logging_first_step: bool = flag(True, "Log the first step too.")
