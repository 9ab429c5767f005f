"""One answer to each prompt, or none: demonstrations to learn from, and prompts.

Nobody picked among several answers, so these rows make no comparison. ``sft --demonstrations``
learns their answers, and ``ppo --prompts`` answers their prompts anew.
"""

from toolkit.data.dialogues import Dropped, prompt_of, unpacked
from toolkit.data.layouts.fields import Reading
from toolkit.data.records import Row

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def sharegpt_messages(turns: object, name: str) -> list[Row]:
    """Return ShareGPT's turns, ``{"from": "human", "value": text}``, as messages.

    Raises:
        ValueError: a turn is none, or its speaker is unknown.
    """
    if not isinstance(turns, list):
        raise ValueError(f"{name}: {turns!r:.40}, but must be a list of turns")
    messages = []
    for i, turn in enumerate(turns):
        if isinstance(turn, dict) and "role" in turn and "content" in turn:
            messages.append({"role": turn["role"], "content": turn["content"]})
            continue
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise ValueError(
                f'{name}[{i}]: {turn!r:.40}, but must be {{"from": ..., "value": text}}'
            )
        speaker = str(turn["from"]).lower()
        if speaker == "function_call":
            raise ValueError(
                f"{name}[{i}].from: a function_call, which is no text (write the call as text, or "
                "delete the row)"
            )
        if speaker not in SPEAKERS:
            raise ValueError(f"{name}[{i}].from: {turn['from']!r:.40}, not one of {(*SPEAKERS,)}")
        messages.append({"role": SPEAKERS[speaker], "content": turn["value"]})
    return messages


def dialogue_of(row: Row) -> list[Row]:
    """Return the messages of a row of ShareGPT, or of TRL's language modeling with messages."""
    if "conversations" in row:
        messages = sharegpt_messages(
            unpacked(row["conversations"], "conversations"), "conversations"
        )
    else:
        messages = unpacked(row["messages"], "messages")
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def from_dialogue(row: Row, reading: Reading) -> list[Row]:
    """Convert a dialogue to a demonstration for each answer of the assistant.

    Left out and counted are an answer before any other message, one that follows another of the
    assistant's, an empty one, and one behind an empty turn.
    """
    messages = dialogue_of(row)
    found: list[Row] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if message.get("tool_calls") and not message.get("content"):
            raise ValueError(f"messages[{i}]: tool_calls without text (write the call as text)")
        if i == 0:
            reading.noted["answers before any other message left out"] += 1
        elif messages[i - 1]["role"] == "assistant":
            reading.noted["answers behind another one of the assistant left out"] += 1
        elif not str(message["content"]).strip():
            reading.noted["empty answers left out"] += 1
        elif not all(str(before["content"]).strip() for before in messages[:i]):
            reading.noted["answers behind an empty turn left out"] += 1
        else:
            found.append({"prompt": messages[:i], "completions": [message["content"]], "best": 0})
    if not found:
        raise Dropped("no answer of the assistant")
    return found


def prompt_of_dialogue(row: Row) -> list[Row]:
    """Return a dialogue without its last answer."""
    messages = dialogue_of(row)
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def from_alpaca(row: Row, reading: Reading) -> list[Row]:
    """Convert Alpaca's instruction, its input and the output.

    The input follows the instruction after an empty line. Earlier turns (``history``, pairs of
    texts) make the prompt messages.

    Source: tatsu-lab/stanford_alpaca, README.md; ``history`` as in hiyouga/LLaMA-Factory.
    """
    prompt = prompt_of(row)
    if isinstance(row.get("history"), list) and row["history"]:
        earlier = [
            {"role": role, "content": text}
            for turn in row["history"]
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        system = [message for message in asked if message["role"] == "system"]
        prompt = [*system, *earlier, *asked[len(system) :]]
    return [_demonstration(prompt, row["output"])]


def from_prompt_completion(row: Row, reading: Reading) -> list[Row]:
    """Convert TRL's prompt and completion; of rows with a ``label``, only the good ones.

    Source: TRL's docs, dataset_formats.
    """
    if "label" in row:
        if row["label"] not in (True, False):
            raise ValueError(f"label: {row['label']!r:.40}, but must be true or false")
        if not row["label"]:
            raise Dropped("the label is false")
    prompt, completion = prompt_of(row), unpacked(row["completion"], "completion")
    if isinstance(completion, dict):
        completion = [completion]
    if isinstance(completion, list):
        if len(completion) != 1 or completion[0].get("role") != "assistant":
            raise ValueError("completion: must be one message of the assistant")
        completion = completion[0]["content"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
    return [_demonstration(prompt, completion)]


def _demonstration(prompt: object, answer: object) -> Row:
    if isinstance(answer, str) and not answer.strip():
        raise Dropped("an empty answer")
    return {"prompt": prompt, "completions": [answer], "best": 0}
