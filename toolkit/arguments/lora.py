"""The flags of the adapter that is trained."""

from dataclasses import dataclass, field

from peft import LoraConfig

from toolkit.errors import InputError, check_range
from toolkit.models.adapters import lora_config
from toolkit.models.families import LANGUAGE_HEADS


@dataclass
class LoraArguments:
    """The adapter that is trained. Field names are those of TRL's ModelConfig."""

    lora_r: int = field(default=16, metadata={"help": "Rank."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale: the update is alpha/r * B A."})
    lora_target_modules: str = field(
        default="all-linear",
        metadata={"help": "Layers with an adapter: all-linear, or names joined by commas."},
    )

    def __post_init__(self) -> None:
        check_range("lora_r", self.lora_r, low=1)
        check_range("lora_alpha", self.lora_alpha, above=0)
        if not self.lora_target_modules.strip(" ,"):
            raise InputError("lora_target_modules is empty", "lora_target_modules")

    def check_for_trl(self, head: bool = True) -> None:
        """Raise InputError if TRL's trainers would refuse LoRA on the output head."""
        names = {name.strip().rpartition(".")[2] for name in self.lora_target_modules.split(",")}
        if head and names & set(LANGUAGE_HEADS):
            raise InputError(
                "lora_target_modules: TRL's trainers refuse LoRA on the output head (leave it out; "
                "ppo.py trains it)", "lora_target_modules",
            )  # fmt: skip

    def config(self, task_type: str) -> LoraConfig:
        """LoRA for "CAUSAL_LM" or "SEQ_CLS" (``lora_config``)."""
        return lora_config(self.lora_r, self.lora_alpha, self.lora_target_modules, task_type)
