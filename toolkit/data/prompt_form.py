"""Putting text prompts into a form, and splitting prompts into those to train on and the rest."""

import json
import random
from collections.abc import Iterable

from toolkit.data.prompts import NOT_HANDED_ON, TAKEN
from toolkit.data.records import Row


def in_form(row: Row, form: str | None, as_messages: bool) -> Row:
    """Return a row with its text prompt in a form; a prompt of messages stays as it is.

    Args:
        row: has ``prompt``; one that has only a ``text`` is left as it is.
        form: a text with {prompt} in it, in which \\n stands for a new line; None for the bare
            prompt.
        as_messages: make the text the message of a user.
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        return row
    if form is not None:
        prompt = form.replace("\\n", "\n").replace("{prompt}", prompt)
    if as_messages:
        return row | {"prompt": [{"role": "user", "content": prompt.strip()}]}
    return row | {"prompt": prompt}


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
