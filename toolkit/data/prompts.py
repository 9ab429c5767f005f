"""Prompts as PPO and sampling take them: token ids, and the other columns of their rows."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.comparisons import Row, problems_of
from toolkit.data.encoding import Encoder
from toolkit.data.files import read_jsonl
from toolkit.errors import InputError

TAKEN = ("prompt", "prompts", "completion", "completions")  # names that reward functions have


class Prompts(list[list[int]]):
    """Prompts as token ids, and what else their rows held.

    Attributes:
        columns: name -> one value for each prompt; reward functions get them by name.
        messages: the prompts that were messages, by their place.
    """

    def __init__(
        self, ids: Iterable[list[int]] = (), columns: dict[str, list[Any]] | None = None
    ) -> None:
        super().__init__(ids)
        self.columns = columns or {}
        self.messages: dict[int, list[dict[str, str]]] = {}

    def pick(self, indices: Sequence[int]) -> "Prompts":
        """These prompts, with their columns."""
        chosen = Prompts(
            [self[i] for i in indices],
            {name: [values[i] for i in indices] for name, values in self.columns.items()},
        )
        for new, old in enumerate(indices):
            if old in self.messages:
                chosen.messages[new] = self.messages[old]
        return chosen

    def once(self) -> "Prompts":
        """Each prompt at its first place: what is paired by prompt must not count one twice."""
        places: dict[tuple[int, ...], int] = {}
        for i, ids in enumerate(self):
            places.setdefault(tuple(ids), i)
        return self.pick(list(places.values()))


def read_prompts(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    prompt_tokens: int | None = None,
    limit: int | None = None,
    skip: int = 0,
    what: str = "--prompts",
    chat_template: str | None = None,
) -> tuple[Prompts, int]:
    """Prompts with their rows' other columns, and how many were left out.

    Args:
        path: JSONL with ``prompt``, text or messages; with ``prompt_tokens``, ``text`` will do too.
        tokenizer: its own special tokens (a BOS, say) are added to text.
        max_prompt_length: longer prompts are left out and counted.
        prompt_tokens: cut each text to its first so many tokens, BOS included; shorter texts are
            left out and counted.
        limit: stop once this many are kept.
        skip: pass over so many rows first (held-out text in the same file).
        what: the argument that named the file, for messages.
        chat_template: for prompts of messages, as for ``Encoder``.

    Raises:
        InputError: a broken row (file:line), or no prompt left.
    """
    encoder = Encoder(tokenizer, None, chat_template=chat_template)
    kept: list[list[int]] = []
    rows: list[Row] = []
    messages: dict[int, list[dict[str, str]]] = {}
    left_out = 0
    for number, row in itertools.islice(read_jsonl(path, what), skip, None):
        if len(kept) == limit:
            break
        if prompt_tokens and "prompt" not in row:
            row = row | {"prompt": row.get("text")}
        problem = next(iter(problems_of(row, "prompt")), None)
        if problem is None and prompt_tokens and not isinstance(row["prompt"], str):
            problem = "prompt: messages, but prompt_tokens cuts text only"
        if problem:
            hint = "" if prompt_tokens else '; for rows of "text", say --prompt_tokens N'
            raise InputError(f"{path}:{number}: {problem}{hint if 'text' in row else ''}")
        ids = encoder.prompt_ids(row["prompt"])
        if prompt_tokens:
            fits, ids = len(ids) >= prompt_tokens, ids[:prompt_tokens]
        else:
            fits = 0 < len(ids) <= max_prompt_length
        if fits:
            if not isinstance(row["prompt"], str):
                messages[len(kept)] = row["prompt"]
            kept.append(ids)
            rows.append({name: value for name, value in row.items() if name not in TAKEN})
        else:
            left_out += 1
    if not kept and not left_out:
        raise InputError(f"{path}: no row {f'behind the first {skip}' if skip else 'in it'}")
    if not kept:
        raise InputError(
            f"{path}: no prompt left of {left_out} behind the first {skip} "
            f"(max_prompt_length is {max_prompt_length}, prompt_tokens {prompt_tokens})"
        )
    names = sorted(set().union(*rows))
    prompts = Prompts(kept, {name: [row.get(name) for row in rows] for name in names})
    prompts.messages = messages
    return prompts, left_out
