"""The flags that say how completions are sampled."""

from dataclasses import dataclass
from typing import ClassVar

from toolkit.arguments.prompts import PromptLengthArguments
from toolkit.flags import Count, CountOrZero, Finite, Flags, Positive, flag


@dataclass
class CompletionArguments(Flags):
    """How completions come about. Field names are those of TRL 1.12's PPOConfig."""

    HELP_GROUP: ClassVar[str] = "completions"

    response_length: Count = flag(24, "Tokens sampled per completion.")
    temperature: Positive = flag(0.7, "Temperature of sampling, and in training of all log-probs.")
    stop_token: str | None = flag(
        None,
        "End completions at this token; eos for all end tokens of model and chat template, none "
        "for none. By default eos with a chat template, else none.",
    )
    truncate_token: str | None = flag(
        None, "Keep and score only what stands up to this token (say a full stop)."
    )
    truncate_after: CountOrZero = flag(16, "First index at which truncate_token counts.")


@dataclass
class TrainedCompletionArguments(CompletionArguments):
    """How completions come about that a policy is trained on."""

    HELP_GROUP: ClassVar[str] = "completions"

    penalty_reward_value: Finite = flag(-1.0, "Score of a completion without truncate_token there.")


@dataclass
class SamplingArguments(CompletionArguments, PromptLengthArguments):
    """How completions come about, and how long their prompts may be."""
