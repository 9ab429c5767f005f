"""The flags that say which prompts to continue."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.arguments.layouts import ColumnArguments
from toolkit.arguments.lora import PolicyArguments
from toolkit.embedded import embedded, short_name
from toolkit.flags import Count, CountOrZero, Flags, flag

DEMO_PROMPTS = embedded("prompts.jsonl")
HELD_OUT = embedded("prompts.heldout.jsonl")


def prompts_help(demo: str) -> str:
    """Return the help of ``--prompts``; ``demo`` names the embedded model's prompts."""
    return (
        "Prompts: JSONL, Parquet, CSV, a folder, a .txt file with one prompt a line, a dataset on "
        "disk or owner/name:split. Rows have `prompt` or `messages`. The default with the "
        f"embedded model is {short_name(demo)}."
    )


@dataclass
class PromptLengthArguments(Flags):
    """How long prompts may be."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    max_prompt_length: Count = flag(256, "Longest prompt in tokens; longer ones are left out.")
    prompt_tokens: Count | None = flag(
        None, "For rows of `text`: use this many tokens from a text's start as its prompt."
    )


@dataclass
class PromptSourceArguments(ChatArguments, InvalidRowsArguments, ColumnArguments):
    """Where prompts come from."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    prompts: str | None = flag(None, prompts_help(DEMO_PROMPTS))
    limit: Count | None = flag(None, "Use at most this many prompts.")


@dataclass
class SampledPromptArguments(PromptSourceArguments, SeedArguments, OverwriteArguments):
    """Which prompts a model continues, in batches."""

    HELP_GROUP: ClassVar[str] = "model"

    adapter: str | None = flag(None, "Folder of a policy adapter to sample from, on the base.")
    batch_size: Count = flag(256, "Completions sampled in one pass.")


@dataclass
class LaterPromptArguments(SampledPromptArguments):
    """The same, starting further on in the file."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    skip: CountOrZero = flag(0, "Skip this many rows first.")


@dataclass
class PromptArguments(PromptSourceArguments, PromptLengthArguments, PolicyArguments):
    """PPO's prompts, and where the policy starts."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    eval_prompts: str | None = flag(
        None, "Prompts that are not trained on: the policy is measured on them."
    )
    eval_limit: Count | None = flag(128, "Use at most this many held-out prompts.")
    eval_skip: CountOrZero = flag(0, "Skip this many rows of the held-out prompts first.")
    reference: Literal["policy_adapter", "base"] = flag(
        "policy_adapter",
        "With --policy_adapter, the reference: policy_adapter (a frozen copy of it) or base.",
    )
