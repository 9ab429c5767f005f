"""The types of what one stage hands on to the next."""

from typing import Any

Row = dict[str, Any]  # a JSON object: a line of JSON Lines, a row of a table
Placed = tuple[str, Row]  # a row, and before it where it stood: file:line, or name:index
Messages = list[dict[str, Any]]  # {"role": ..., "content": ...} each
Prompt = str | Messages
Answer = str | Messages  # a completion in TRL's form: messages (one) where the prompt is messages
