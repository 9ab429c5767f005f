"""The flags that say which base model to use, and how to load it."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from toolkit.embedded import embedded
from toolkit.flags import Flags, flag

Precision = Literal["4bit", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MergedDtype = Literal["bf16", "fp32"]
DEMO_MODEL = embedded("model")


@dataclass
class ModelArguments(Flags):
    """Which base model, and how it is loaded. Field names are those of TRL's ModelConfig."""

    HELP_GROUP: ClassVar[str] = "model"

    model_name_or_path: str = flag(DEMO_MODEL, "Hub id or folder of the base model.")
    model_revision: str = flag("main", "Branch, tag or commit of the model on the Hub.")
    precision: Precision = flag(
        "4bit", "How the base is held in memory: 4bit (NF4, double quantized), bf16 or fp32."
    )
    plain_scales: bool | None = flag(
        None,
        "Hold the scales of 4-bit weights in fp32: the same weights, a tenth more memory, "
        "and fewer launches on a GPU. By default only on a GPU, in PPO, if it has room.",
    )
    tokenizer_name_or_path: str | None = flag(
        None,
        "Hub id or folder of the tokenizer, if it is not the model's (an adapter may have been "
        "trained with new tokens). By default the policy adapter's, if it has one.",
    )
    trust_remote_code: bool = flag(False, "Run Python code that the model's repository ships.")
