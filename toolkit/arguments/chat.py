"""The flags that say how messages become text, and which arguments a chat template takes."""

import json
from dataclasses import dataclass
from typing import ClassVar

from toolkit.errors import InputError
from toolkit.flags import Flags, flag

# Names that apply_chat_template or the toolkit sets itself, and those of special tokens.
NOT_TOLD = (
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "bos_token", "eos_token",
    "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


@dataclass
class ChatArguments(Flags):
    """How a recipe turns messages into text."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    chat_template: str | None = flag(
        None, "Chat template for messages: plain, or a Jinja file. By default the tokenizer's own."
    )
    chat_template_kwargs: dict[str, object] | str | None = flag(
        None,
        "Arguments for the chat template as JSON: '{\"enable_thinking\": false}'. A row's own "
        "chat_template_kwargs override them, key by key.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chat_template_kwargs = read_kwargs(self.chat_template_kwargs)


def problem_of_kwargs(kwargs: object) -> str | None:
    """What is wrong with the arguments for a chat template; None if nothing is."""
    if not isinstance(kwargs, dict):
        return f"{kwargs!r:.40}, but must be an object"

    taken = next((name for name in kwargs if name in NOT_TOLD), None)
    if taken is not None:
        return f"{taken!r} is set by the toolkit itself (leave it out)"

    odd = next((name for name in kwargs if not isinstance(name, str)), None)
    return None if odd is None else f"the key {odd!r} is not text"


def read_kwargs(given: object) -> dict[str, object] | None:
    """Read the run's ``chat_template_kwargs``: JSON from a command line, a mapping from YAML.

    Raises:
        InputError: it is not a mapping, or it has a name that the toolkit sets itself.
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
