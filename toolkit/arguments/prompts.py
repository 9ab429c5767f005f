"""The flags that say which prompts are continued."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.arguments.lora import PolicyArguments
from toolkit.embedded import embedded, short_name
from toolkit.flags import Count, CountOrZero, Flags, flag

DEMO_PROMPTS = embedded("prompts.jsonl")
HELD_OUT = embedded("prompts.heldout.jsonl")


def prompts_help(demo: str) -> str:
    """The help of ``--prompts`` where ``demo`` is what the embedded model continues."""
    return (
        "Prompts: JSONL, Parquet, CSV, a folder, a .txt with one a line, a dataset on disk or "
        "owner/name:split; rows of `prompt` or `messages`. With the embedded model by default "
        f"{short_name(demo)}."
    )


@dataclass
class PromptLengthArguments(Flags):
    """How long prompts may be."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    max_prompt_length: Count = flag(256, "Leave out prompts of more tokens.")
    prompt_tokens: Count | None = flag(
        None, "Cut prompts out of text: its first so many tokens (rows of `text`)."
    )


@dataclass
class PromptSourceArguments(ChatArguments, InvalidRowsArguments):
    """Where prompts come from."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    prompts: str | None = flag(None, prompts_help(DEMO_PROMPTS))
    limit: Count | None = flag(None, "Use only so many prompts.")


@dataclass
class SampledPromptArguments(PromptSourceArguments, SeedArguments, OverwriteArguments):
    """Which prompts a model continues, in batches."""

    HELP_GROUP: ClassVar[str] = "model"

    adapter: str | None = flag(None, "A policy adapter's folder.")
    batch_size: Count = flag(256, "Completions in one pass.")


@dataclass
class LaterPromptArguments(SampledPromptArguments):
    """The same for prompts that lie further on in a file."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    skip: CountOrZero = flag(0, "Pass over so many rows first.")


@dataclass
class PromptArguments(PromptSourceArguments, PromptLengthArguments, PolicyArguments):
    """PPO's prompts, and where the policy starts."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    eval_prompts: str | None = flag(None, "Held-out prompts: evaluated every --eval_every updates.")
    eval_limit: Count | None = flag(128, "Use only so many of these.")
    eval_skip: CountOrZero = flag(0, "Pass over so many of their rows first.")
    reference: Literal["policy_adapter", "base"] = flag(
        "policy_adapter",
        "With --policy_adapter: policy_adapter (a frozen copy of it), or base.",
    )
