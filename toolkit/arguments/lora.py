"""The flags of the adapter that is trained, and of the one it starts from."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

from toolkit.arguments.common import OverwriteArguments
from toolkit.errors import InputError
from toolkit.flags import Count, Flags, Range, flag


@dataclass
class LoraArguments(Flags):
    """The adapter that is trained. Field names are those of TRL's ModelConfig."""

    HELP_GROUP: ClassVar[str] = "LoRA adapter"

    lora_r: Count = flag(16, "Rank of the adapter.")
    lora_alpha: Annotated[int, Range(above=0)] = flag(32, "Scale: an adapter adds alpha/r * B A.")
    lora_target_modules: str = flag(
        "all-linear", "Layers that get an adapter: all-linear, or names joined by commas."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lora_target_modules.strip(" ,"):
            raise InputError("lora_target_modules is empty", "lora_target_modules")


@dataclass
class StartedLoraArguments(LoraArguments):
    """The adapter that is trained, if it may start as a copy of another one.

    Attributes:
        given_defaults: the LoRA flags that were given; the start may not contradict them.
    """

    lora_r: Count = flag(
        cast(int, None), "Rank of the adapter: 16 unless given, or that of --start_adapter."
    )
    lora_alpha: Annotated[int, Range(above=0)] = flag(
        cast(int, None),
        "Scale: an adapter adds alpha/r * B A. 32 unless given, or that of --start_adapter.",
    )
    lora_target_modules: str = flag(
        cast(str, None),
        "Layers that get an adapter: all-linear, or names joined by commas. all-linear unless "
        "given, or those of --start_adapter.",
    )
    start_adapter: str | None = flag(
        None,
        "Policy adapter that the reward model starts from as a copy (that of preftune sft, say). "
        "The scores are then normalized on its samples, so give preftune ppo the same adapter as "
        "--policy_adapter.",
    )

    def __post_init__(self) -> None:
        plain = {f.name: f.default for f in dataclasses.fields(LoraArguments)}
        self.given_defaults = {name for name in plain if getattr(self, name) is not None}
        for name in plain.keys() - self.given_defaults:
            setattr(self, name, plain[name])
        super().__post_init__()


@dataclass
class PolicyArguments(OverwriteArguments):
    """Where the policy starts."""

    HELP_GROUP: ClassVar[str] = "model"

    policy_adapter: str | None = flag(
        None, "Adapter that the policy starts from (for example that of preftune sft)."
    )


@dataclass
class StartArguments(PolicyArguments):
    """Where fine-tuning on completions starts, and how texts end."""

    HELP_GROUP: ClassVar[str] = "completions"

    stop_token: str | None = flag(
        None,
        "Token that closes each text: eos for the end token, none for no token, or a token's text. "
        "By default eos with a chat template (its end of turn), else none.",
    )
