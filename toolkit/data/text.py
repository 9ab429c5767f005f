"""Prompts and completions as text, and text made safe to show."""

import unicodedata
from collections.abc import Sequence

from toolkit.data.records import Answer, Prompt


def answers(prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Answer]:
    """Completions in TRL's form: an assistant's message if the prompt is messages, else text.

    >>> answers(["Hi.", [{"role": "user", "content": "Hi."}]], [" Ho.", "Ho."])
    [' Ho.', [{'role': 'assistant', 'content': 'Ho.'}]]
    """
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def answer_text(completion: Answer) -> str:
    """The text of a completion in TRL's form."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as people read it: text unchanged, messages as ``role: content``."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def apart(prompt: Prompt, completion: str) -> str:
    """A completion as people read it away from its prompt, in a box or a table of its own.

    There its first space says nothing. But if it goes on with the prompt's last word, that must be
    seen: "xious" after "He was an" would look broken.

    >>> apart("He was an", " owl."), apart("He was an", "xious.")
    ('owl.', '\u2026xious.')
    """
    joined = isinstance(prompt, str) and prompt[-1:].isalnum() and completion[:1].isalnum()
    return f"\u2026{completion}" if joined else completion.removeprefix(" ")


def printable(text: str) -> str:
    """Escape the characters of a text that a terminal would obey or a reader would miss.

    These are control characters except newline and tab (ANSI sequences begin with one), formatting
    characters (bidirectional overrides, zero-width ones) and half characters.

    >>> print(printable("red \x1b[31m, hidden \u202e"))
    red \\x1b[31m, hidden \\u202e
    """
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t" else c
        for c in text
    )


def runs_on(prompt: str, completions: list[str]) -> bool:
    """Whether completions continue the prompt without a space ("cafe.He")."""
    return not prompt[-1].isspace() and all(text[0].isalnum() for text in completions)
