"""The flags that say how messages become text, and what a chat template may be told."""

import json
from dataclasses import dataclass
from typing import ClassVar

from toolkit.errors import InputError
from toolkit.flags import Flags, flag

# What apply_chat_template and the stages set themselves, and the tokenizer's special tokens.
NOT_TOLD = (
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "bos_token", "eos_token",
    "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


@dataclass
class ChatArguments(Flags):
    """How a recipe makes text of messages."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    chat_template: str | None = flag(
        None, "For prompts of messages: plain, a Jinja file, or the tokenizer's own."
    )
    chat_template_kwargs: dict[str, object] | str | None = flag(
        None,
        "What the template is told, as JSON: '{\"enable_thinking\": false}'. A row's own "
        "chat_template_kwargs go over it, key by key.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chat_template_kwargs = read_kwargs(self.chat_template_kwargs)


def problem_of_kwargs(kwargs: object) -> str | None:
    """What is wrong with what a chat template is told beside the messages; None for nothing."""
    if not isinstance(kwargs, dict):
        return f"{kwargs!r:.40}, but must be an object"

    taken = next((name for name in kwargs if name in NOT_TOLD), None)
    if taken is not None:
        return f"{taken!r} is not the template's to be told: it is set here (leave it out)"

    odd = next((name for name in kwargs if not isinstance(name, str)), None)
    return None if odd is None else f"{odd!r} is no name"


def read_kwargs(given: object) -> dict[str, object] | None:
    """The run's ``chat_template_kwargs``: JSON from a command line, a mapping from YAML.

    Raises:
        InputError: no mapping, or one of names that a template cannot be told.
    """
    if given is None:
        return None

    found: object
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        found = given

    problem = problem_of_kwargs(found)
    if problem is None and isinstance(found, dict):
        return dict(found)
    cure = "" if isinstance(found, dict) else " (write it as '{\"enable_thinking\": false}')"
    raise InputError(f"chat_template_kwargs: {problem}{cure}", "chat_template_kwargs")
