"""Pairs of a chosen and a rejected answer: TRL's, HH's dialogue text, and RewardBench 2's sets."""

import hashlib
import os
from typing import Any

from toolkit.data.dialogues import (
    HH_TURN,
    Dropped,
    from_dialogues,
    hh_messages,
    prompt_of,
    split_dialogues,
    unpacked,
)
from toolkit.data.layouts.fields import EQUAL, Reading, score_of
from toolkit.data.layouts.single import sharegpt_messages
from toolkit.data.records import Row
from toolkit.data.repeated_prompts import CUT


def from_pairs(row: Row, reading: Reading) -> Row:
    """Convert TRL's pairs: with or without a prompt; text, dialogue text or messages.

    A hash of the texts decides which of the two comes first, so that position reveals nothing.
    """
    if isinstance(row.get("conversations"), list):  # ShareGPT's dialogue is the prompt
        row = row | {"prompt": sharegpt_messages(row["conversations"], "conversations")}
    prompt = prompt_of(row)
    chosen, rejected = (_answer(row[name], name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("chosen and rejected: one is text and the other is not")
    if isinstance(chosen, str):
        if prompt is None and HH_TURN.match(chosen) and HH_TURN.match(rejected):
            return _pair(*split_dialogues([hh_messages(chosen), hh_messages(rejected)]), row)
        if prompt is None:
            shared = os.path.commonprefix([chosen, rejected])
            cut = max(shared.rfind(" "), shared.rfind("\n"))
            if cut <= 0:
                raise ValueError("prompt: missing, and chosen and rejected begin differently")
            prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        return _pair(prompt, [chosen, rejected], row)
    prompt, texts, repeated = from_dialogues(prompt, [chosen, rejected], ["chosen", "rejected"])
    reading.noted.update({CUT: 1} if repeated else {})
    return _pair(prompt, texts, row)


def _answer(value: object, name: str) -> Any:
    """Return a chosen or rejected answer: text, or messages, of which ShareGPT's get our names."""
    value = unpacked(value, name)
    messages = [value] if isinstance(value, dict) else value
    if isinstance(messages, list) and messages and "from" in messages[0]:
        return sharegpt_messages(messages, name)
    return value


def _pair(prompt: object, texts: list[str], row: Row) -> Row:
    chosen, rejected = texts
    digest = hashlib.blake2b(f"{chosen}\0{rejected}".encode("utf-8", "replace"), digest_size=1)
    best = digest.digest()[0] & 1
    completions = [rejected, chosen] if best else [chosen, rejected]
    made: Row = {"prompt": prompt, "completions": completions, "best": best}
    margin = score_of(row.get("margin"), "margin")
    if margin is None:
        high, low = (score_of(row.get(name), name) for name in ("score_chosen", "score_rejected"))
        margin = None if high is None or low is None else high - low
    return made if margin is None else made | {"margin": margin}


def from_reward_bench(row: Row, reading: Reading) -> Row:
    """Convert RewardBench 2's row of one right answer and several wrong ones.

    A hash of the texts decides where the right one stands. A row with several right answers (the
    subset Ties) has no single pick.

    Source: allenai/reward-bench-2, whose fields scripts/run_v2.py of allenai/reward-bench reads.
    """
    right, wrong = row["chosen"], row["rejected"]
    if not right or not wrong:
        raise ValueError("chosen and rejected: must hold one answer or more each")
    if len(right) > 1:
        raise Dropped("several answers are right (RewardBench 2's Ties)")
    if set(wrong) == set(right):
        raise Dropped(EQUAL)
    digest = hashlib.blake2b("\0".join([*right, *wrong]).encode("utf-8", "replace"), digest_size=4)
    best = int.from_bytes(digest.digest()) % (1 + len(wrong))
    completions = [*wrong[:best], *right, *wrong[best:]]
    made: Row = {"prompt": prompt_of(row), "completions": completions, "best": best}
    return made if row.get("subset") is None else made | {"subset": row["subset"]}
