"""The flags that say how completions are sampled."""

from dataclasses import dataclass
from typing import ClassVar

from toolkit.arguments.prompts import PromptLengthArguments
from toolkit.flags import Count, CountOrZero, Finite, Flags, Positive, flag


@dataclass
class CompletionArguments(Flags):
    """How completions are sampled. Field names are those of TRL 1.12's PPOConfig."""

    HELP_GROUP: ClassVar[str] = "completions"

    response_length: Count = flag(24, "Tokens to sample per completion.")
    temperature: Positive = flag(0.7, "Sampling temperature; training scales log-probs by it too.")
    stop_token: str | None = flag(
        None,
        "Token that ends completions: eos for all end tokens of model and chat template, none for "
        "no token, or a token's text. By default eos with a chat template, else none.",
    )
    truncate_token: str | None = flag(
        None, "Keep and score completions only up to this token (for example a full stop)."
    )
    truncate_after: CountOrZero = flag(
        16, "Tokens at the start of a completion among which truncate_token does not count."
    )


@dataclass
class TrainedCompletionArguments(CompletionArguments):
    """How the completions that a policy is trained on are sampled."""

    HELP_GROUP: ClassVar[str] = "completions"

    penalty_reward_value: Finite = flag(-1.0, "Score of a completion that lacks truncate_token.")


@dataclass
class SamplingArguments(CompletionArguments, PromptLengthArguments):
    """How completions are sampled, and how long their prompts may be."""
