"""The flags that say what is made of prompts before anything is sampled or trained."""

from dataclasses import dataclass
from typing import ClassVar

from toolkit.errors import InputError
from toolkit.flags import Flags, flag


@dataclass
class PromptFormArguments(Flags):
    """The text around each prompt."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    prompt_form: str | None = flag(
        None,
        "Put each prompt, a text or a user's only message, into this text in place of {prompt}; "
        "one that is in it already stays. Backslash n stands for a new line. For summaries: "
        "'{prompt}\\n\\nTL;DR:'.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_form is not None and self.prompt_form.count("{prompt}") != 1:
            raise InputError(
                f"prompt_form: {self.prompt_form!r} must have {{prompt}} in it, once", "prompt_form"
            )


@dataclass
class MessageArguments(Flags):
    """Whether a text is something that a user says."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    as_messages: bool = flag(
        False, "Read a prompt of text as a user's message, for a chat model to answer."
    )
