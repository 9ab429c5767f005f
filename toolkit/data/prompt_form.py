"""Putting text prompts into a form, and splitting prompts into those to train on and the rest."""

import json
import random
from collections.abc import Iterable

from toolkit.data.prompts import NOT_HANDED_ON, TAKEN
from toolkit.data.records import Row


def in_form(row: Row, form: str | None, as_messages: bool) -> Row:
    """Return a row with its prompt in a form, and as messages.

    A prompt that is in the form already stays, so that a file may be read twice. So do dialogues of
    several messages.

    Args:
        row: has ``prompt``; one that has only a ``text`` is left as it is.
        form: a text with {prompt} in it, in which \\n stands for a new line; None for the bare
            prompt.
        as_messages: make a text the message of a user.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        if as_messages:
            content = _formed(prompt.strip(), form, message=True)
            return row | {"prompt": [{"role": "user", "content": content}]}
        return row | {"prompt": _formed(prompt, form)}

    only = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else {}
    if form is not None and only.get("role") == "user" and isinstance(only.get("content"), str):
        return row | {"prompt": [only | {"content": _formed(only["content"], form, message=True)}]}
    return row


def _formed(text: str, form: str | None, message: bool = False) -> str:
    """The text within the form; a message has no space or line end at either side of it."""
    if form is None:
        return text
    form = form.replace("\\n", "\n")
    before, _, after = (form.strip() if message else form).partition("{prompt}")
    fits = len(text) >= len(before) + len(after)
    return (
        text if fits and text.startswith(before) and text.endswith(after) else before + text + after
    )


def canonical(prompt: object) -> str:
    """A text that is the same for the same prompt, in whatever order its messages' fields stand."""
    return json.dumps(prompt, sort_keys=True)


def once_each(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with different prompts or texts, without fields about other completions."""
    found: dict[str, Row] = {}
    for row in rows:
        asked = "prompt" if "prompt" in row else "text"
        key = json.dumps(row.get(asked))
        kept = {
            name: value
            for name, value in row.items()
            if name == asked or name not in (*TAKEN, *NOT_HANDED_ON, "messages")
        }
        found.setdefault(key, kept)
    return list(found.values())


def split_prompts(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into those to train on and those to hold out, both in the order of ``rows``.

    Args:
        rows: with different prompts.
        share: of them to hold out, but at least 2 and at most all but 2.
        seed: of the draw.
    """
    count = min(max(2, round(share * len(rows))), len(rows) - 2)
    chosen = set(random.Random(seed).sample(range(len(rows)), max(0, count)))
    kept = [row for i, row in enumerate(rows) if i not in chosen]
    return kept, [row for i, row in enumerate(rows) if i in chosen]
