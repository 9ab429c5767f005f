"""Dialogues, as messages or as HH's text, to one prompt and the answers to it."""

import json
import re
from collections.abc import Sequence
from typing import Any

from toolkit.data.comparisons import MESSAGES_AS_TEXT, problem_of_messages
from toolkit.data.records import Row

ANSWER = ("assistant", "tool")  # who may speak after the user
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
PROMPTS = ("prompt", "query", "instruction", "question")
SYSTEMS = ("system", "system_prompt")


class Dropped(Exception):
    """A sound row that makes no comparison; the message says why, the same for all of a kind."""


def unpacked(value: object, name: str) -> Any:
    """A field of text or messages; messages that came as JSON text, as messages."""
    if not isinstance(value, str) or not MESSAGES_AS_TEXT.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{name}: messages that some program wrote as text (save the table as JSON Lines or "
            "Parquet)"
        ) from None


def prompt_of(row: Row) -> Any:
    """The prompt by whichever of its names; a system text of its own makes it messages."""
    named = next((name for name in PROMPTS if row.get(name) not in (None, "")), None)
    prompt = None if named is None else unpacked(row[named], named)
    system = next((row[name] for name in SYSTEMS if row.get(name) not in (None, "")), None)
    if named == "instruction" and row.get("input") not in (None, ""):
        raise ValueError("input: beside instruction (join them as prompt)")
    if not isinstance(system, str) or not system.strip() or prompt is None:
        return prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    has_one = bool(prompt) and isinstance(prompt[0], dict) and prompt[0].get("role") == "system"
    return prompt if has_one else [{"role": "system", "content": system}, *prompt]


def hh_messages(text: str) -> list[dict[str, str]]:
    """The turns of a dialogue as HH writes it: "Human: ..., Assistant: ..."."""
    parts = HH_TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def from_dialogues(
    prompt: object, dialogues: list[object], names: list[str]
) -> tuple[list[Row], list[str], bool]:
    """Prompt and texts of completions that are messages, or whole dialogues.

    A dialogue repeats a prompt of messages if it begins with all of them, or with the last ones. A
    prompt that is text beside dialogues in which a user speaks is held to be in them, as TRL does.

    Args:
        prompt: text, messages or None.
        dialogues: a list of messages, or one message, for each completion.
        names: of their fields, for messages.

    Returns:
        The prompt's messages, the completions' texts, and whether the completions repeated the
        prompt.

    Raises:
        Dropped: sound dialogues that make no comparison.
        ValueError: a bad message, or a prompt that one repeats and another does not.
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
                f"{name}[0].role: {answer[0]['role']!r} behind a prompt that ends with the user's "
                "message, which it does not repeat (give the answer alone, or the whole dialogue)"
            )
    return *split_dialogues([asked + answer for answer in answers]), all(lengths)


def _checked(dialogue: object, name: str) -> list[Row]:
    """The messages, of which only the last may be empty, without the nulls of other messages.

    Tables put a null in each field that some other message has.
    """
    if not isinstance(dialogue, list) or not dialogue:
        raise ValueError(f"{name}: {dialogue!r:.40}, but must be a list of messages")
    last = dialogue[-1]
    empty = isinstance(last, dict) and last.get("content") == "" and not last.get("tool_calls")
    if problem := problem_of_messages(dialogue[:-1] if empty else dialogue, name):
        raise ValueError(problem)
    return [{n: value for n, value in m.items() if value is not None} for m in dialogue]


def _hold(prompt: str, dialogues: list[list[Row]]) -> bool:
    """Whether dialogues hold a text prompt: a user, or a system's text, speaks first or says it."""
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
    return f"{some} repeats the prompt, but {other} does not (mend one)"


def _same(one: Row, other: Row) -> bool:
    texts = [m["content"].strip() for m in (one, other)]
    return texts[0] == texts[1] and one["role"] == other["role"]


def _repeated(prompt: list[Row], dialogue: list[Row]) -> int:
    """How many messages of the prompt, or of its end, the dialogue begins with."""
    for n in range(min(len(prompt), len(dialogue)), 0, -1):
        begins = n < len(dialogue) or dialogue[-1]["role"] != "assistant"
        if begins and all(map(_same, prompt[len(prompt) - n :], dialogue)):
            return n
    return 0


def split_dialogues(dialogues: list[list[Row]]) -> tuple[list[Row], list[str]]:
    """The prompt that dialogues share, and the text of each one's last message.

    Raises:
        Dropped: they are no answers to one prompt, or one is empty. A transcript within an answer
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
        raise Dropped("two of the assistant's turns running")
    return first[:-1], texts
