"""Converting dialogues (messages, or HH's text) to one prompt and its answers."""

import json
import re
from collections.abc import Sequence
from typing import Any

from toolkit.data.problems import MESSAGES_AS_TEXT, problem_of_messages
from toolkit.data.records import Row

ANSWER = ("assistant", "tool")  # roles that may follow the user
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
PROMPTS = ("prompt", "query", "instruction", "question")
SYSTEMS = ("system", "system_prompt")


class Dropped(Exception):
    """Raised for a valid row that makes no comparison; the message names the kind of reason."""


def unpacked(value: object, name: str) -> Any:
    """Return a field of text or messages; messages in JSON text are parsed."""
    if not isinstance(value, str) or not MESSAGES_AS_TEXT.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{name}: messages that a program wrote as text (save the table as JSON Lines or "
            "Parquet)"
        ) from None


def prompt_of(row: Row) -> Any:
    """Find the prompt under any of its names; a separate system text makes it messages.

    Alpaca's ``input`` follows its ``instruction`` after an empty line.
    """
    named = next((name for name in PROMPTS if row.get(name) not in (None, "")), None)
    prompt = None if named is None else unpacked(row[named], named)
    system = next((row[name] for name in SYSTEMS if row.get(name) not in (None, "")), None)
    if named == "instruction" and isinstance(prompt, str) and row.get("input") not in (None, ""):
        prompt = f"{prompt}\n\n{row['input']}"
    if not isinstance(system, str) or not system.strip() or prompt is None:
        return prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    has_one = bool(prompt) and isinstance(prompt[0], dict) and prompt[0].get("role") == "system"
    return prompt if has_one else [{"role": "system", "content": system}, *prompt]


def hh_messages(text: str) -> list[dict[str, str]]:
    """Split HH's dialogue text ("Human: ..., Assistant: ...") into turns."""
    parts = HH_TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def from_dialogues(
    prompt: object, dialogues: list[object], names: list[str]
) -> tuple[list[Row], list[str], bool]:
    """Return the prompt and texts of completions that are messages or whole dialogues.

    A dialogue repeats a prompt of messages if it begins with all of them, or with the last ones. If
    a user speaks in the dialogues, a text prompt is assumed to be in them, as in TRL.

    Args:
        prompt: text, messages or None.
        dialogues: a list of messages, or one message, for each completion.
        names: of their fields, for messages.

    Returns:
        The prompt's messages, the completions' texts, and whether the completions repeated the
        prompt.

    Raises:
        Dropped: the dialogues are valid, but make no comparison.
        ValueError: a message is bad, or only some dialogues repeat the prompt.
    """
    turns = [
        _checked([d] if isinstance(d, dict) else d, n)
        for d, n in zip(dialogues, names, strict=True)
    ]
    if prompt is None or (isinstance(prompt, str) and _hold(prompt, turns)):
        return *split_dialogues(turns), False
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    asked = _checked(prompt, "prompt")

    lengths = [_repeated(asked, dialogue) for dialogue in turns]
    if any(lengths) and not all(lengths):
        raise ValueError(_half(names, lengths))
    answers = [dialogue[n:] for dialogue, n in zip(turns, lengths, strict=True)]
    for name, answer in zip(names, answers, strict=True):
        if answer and asked[-1]["role"] == "user" and answer[0]["role"] not in ANSWER:
            raise ValueError(
                f"{name}[0].role: {answer[0]['role']!r} follows a prompt that ends with the user's "
                "message and is not repeated (give the answer alone, or the whole dialogue)"
            )
    return *split_dialogues([asked + answer for answer in answers]), all(lengths)


def _checked(dialogue: object, name: str) -> list[Row]:
    """Check the messages, of which only the last may be empty, and remove nulls.

    Tables put a null in each field that only other messages have.
    """
    if not isinstance(dialogue, list) or not dialogue:
        raise ValueError(f"{name}: {dialogue!r:.40}, but must be a list of messages")
    last = dialogue[-1]
    empty = isinstance(last, dict) and last.get("content") == "" and not last.get("tool_calls")
    if problem := problem_of_messages(dialogue[:-1] if empty else dialogue, name):
        raise ValueError(problem)
    return [{n: value for n, value in m.items() if value is not None} for m in dialogue]


def _hold(prompt: str, dialogues: list[list[Row]]) -> bool:
    """Whether dialogues contain a text prompt: in its words, or since a user speaks first."""
    return all(
        dialogue[0]["role"] != "assistant"
        or any(
            m["role"] != "assistant" and m["content"].strip() == prompt.strip() for m in dialogue
        )
        for dialogue in dialogues
    )


def _half(names: list[str], repeats: Sequence[int]) -> str:
    some = next(name for name, repeat in zip(names, repeats, strict=True) if repeat)
    other = next(name for name, repeat in zip(names, repeats, strict=True) if not repeat)
    return f"{some} repeats the prompt, but {other} does not (correct one)"


def _same(one: Row, other: Row) -> bool:
    texts = [m["content"].strip() for m in (one, other)]
    return texts[0] == texts[1] and one["role"] == other["role"]


def _repeated(prompt: list[Row], dialogue: list[Row]) -> int:
    """Count the messages of the prompt (or of its end) with which the dialogue begins."""
    for n in range(min(len(prompt), len(dialogue)), 0, -1):
        begins = n < len(dialogue) or dialogue[-1]["role"] != "assistant"
        if begins and all(map(_same, prompt[len(prompt) - n :], dialogue)):
            return n
    return 0


def split_dialogues(dialogues: list[list[Row]]) -> tuple[list[Row], list[str]]:
    """Return the prompt that dialogues share, and the text of each one's last message.

    Raises:
        Dropped: they are not answers to one prompt, or one is empty. A transcript inside an answer
            reads as more turns, so such a pair differs before its last turn.
    """
    first = dialogues[0]
    if all(dialogue == first for dialogue in dialogues):
        raise Dropped("chosen equals rejected" if len(dialogues) == 2 else "all answers are equal")
    if any(dialogue[:-1] != first[:-1] for dialogue in dialogues):
        raise Dropped("the dialogues differ before their last turn")
    if any(not dialogue or dialogue[-1]["role"] != "assistant" for dialogue in dialogues):
        raise Dropped("the last turn is not the assistant's")
    texts = [dialogue[-1]["content"] for dialogue in dialogues]
    if not all(text.strip() for text in texts):
        raise Dropped("an empty completion")
    if not all(message["content"].strip() for message in first[:-1]):
        raise Dropped("an empty turn")
    if first[:-1] and first[-2]["role"] == "assistant":
        raise Dropped("two turns of the assistant in a row")
    return first[:-1], texts
