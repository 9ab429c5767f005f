"""The rows that the stages hand on: prompts, completions, comparisons; read and validated.

    {"prompt": "I met my aunt at the cafe."}
    {"prompt": "...", "completions": [" The tea was cold.", " We loved it.", ...]}
    {"prompt": "...", "completions": [...], "best": 1}

A file is checked whole before anything is done with it, so a mistake costs no model load.
"""

import itertools
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.data.files import read_jsonl
from toolkit.errors import InputError

Row = dict[str, Any]


def problem_of(row: Row, wants: str) -> str | None:
    """What is wrong with a row, and the cure, or None.

    Args:
        row: as read.
        wants: "prompt", "completions" (and a prompt) or "best" (and both).
    """
    if not isinstance(row.get("prompt"), str):
        return "prompt: missing or not a string (give the text that is to be continued)"
    if problem := _problem_of_text(row["prompt"]):
        return f"prompt: {problem}"
    if wants == "prompt":
        return None
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(c, str) for c in completions):
        return "completions: missing or not a list of strings"
    if len(completions) < 2:
        return f"completions: {len(completions)} of them, but a choice needs at least 2"
    for k, completion in enumerate(completions):
        if problem := _problem_of_text(completion):
            return f"completions[{k}]: {problem}"
    if wants == "completions":
        return None
    best = row.get("best")
    if not isinstance(best, int) or isinstance(best, bool):
        return f"best: {best!r}, but must be the index of the pick, 0 to {len(completions) - 1}"
    if not 0 <= best < len(completions):
        return f"best: {best}, out of range for {len(completions)} completions (count from 0)"
    return None


def _problem_of_text(text: str) -> str | None:
    if not text.strip():
        return "empty (delete the row or give it text)"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a character at {error.start} (a lone surrogate; mend the row's \\u escape)"
    return None


def read_rows(path: str | Path, wants: str, what: str) -> list[Row]:
    """All rows of a JSONL file, validated.

    Args:
        path: the file.
        wants: as for ``problem_of``.
        what: the argument that named the file, for messages.

    Raises:
        InputError: the first problem, as file:line, and how many rows have one; or no rows at all.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for number, row in read_jsonl(path, what):
        problem = problem_of(row, wants)
        if problem:
            problems.append(f"{path}:{number}: {problem}")
        rows.append(row)
    if problems:
        others = f"; {len(problems) - 1} more bad rows" if len(problems) > 1 else ""
        raise InputError(problems[0] + others)
    if not rows:
        raise InputError(f"{path}: no rows ({what} needs at least one)")
    return rows


def read_prompts(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    prompt_tokens: int | None = None,
    limit: int | None = None,
    skip: int = 0,
    what: str = "--prompts",
) -> tuple[list[list[int]], int]:
    """Prompts as token ids, and how many were left out.

    Args:
        path: JSONL with ``prompt``; with ``prompt_tokens``, ``text`` will do too.
        tokenizer: its own special tokens (a BOS, say) are added.
        max_prompt_length: longer prompts are left out and counted.
        prompt_tokens: cut each text to its first so many tokens, BOS included; shorter texts are
            left out and counted.
        limit: stop once this many are kept.
        skip: pass over so many rows first (held-out text in the same file).
        what: the argument that named the file, for messages.

    Raises:
        InputError: a broken row (file:line), or no prompt left.
    """
    kept: list[list[int]] = []
    left_out = 0
    for number, row in itertools.islice(read_jsonl(path, what), skip, None):
        if len(kept) == limit:
            break
        if prompt_tokens and "prompt" not in row:
            row = row | {"prompt": row.get("text")}
        problem = problem_of(row, "prompt")
        if problem:
            hint = "" if prompt_tokens else '; for rows of "text", say --prompt_tokens N'
            raise InputError(f"{path}:{number}: {problem}{hint if 'text' in row else ''}")
        ids = tokenizer(row["prompt"], truncation=False, verbose=False)["input_ids"]
        if prompt_tokens:
            fits, ids = len(ids) >= prompt_tokens, ids[:prompt_tokens]
        else:
            fits = 0 < len(ids) <= max_prompt_length
        if fits:
            kept.append(ids)
        else:
            left_out += 1
    if not kept:
        raise InputError(
            f"{path}: no prompt left of {left_out} behind the first {skip} "
            f"(max_prompt_length is {max_prompt_length}, prompt_tokens {prompt_tokens})"
        )
    return kept, left_out


def encode_candidates(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_length: int
) -> tuple[list[dict[str, Any]], int]:
    """Comparisons as ``{"candidate_ids": [ids of prompt + completion, ...], "best": index}``.

    Rows with a candidate longer than ``max_length`` tokens are left out and counted.

    Raises:
        InputError: a completion ends in the text of the pad token, which the model's pooling would
            take for padding.
    """
    encoded: list[dict[str, Any]] = []
    left_out = 0
    for row in rows:
        texts = [row["prompt"] + completion for completion in row["completions"]]
        candidates = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        if any(ids[-1] == tokenizer.pad_token_id for ids in candidates):
            raise InputError(
                f"a completion of {row['prompt']!r:.60} ends in the pad token "
                f"{tokenizer.pad_token!r} (cut it off)"
            )
        if max(len(ids) for ids in candidates) > max_length:
            left_out += 1
        else:
            encoded.append({"candidate_ids": candidates, "best": row["best"]})
    return encoded, left_out


def split_by_prompt(rows: list[Row], eval_rows: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Train and held-out rows with no prompt in both; at least ``eval_rows`` are held out.

    Raises:
        InputError: nothing would be left to train on.
    """
    import random

    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    random.Random(seed).shuffle(prompts)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["prompt"]] = counts.get(row["prompt"], 0) + 1
    held_out: set[str] = set()
    total = 0
    for prompt in prompts:
        if total >= eval_rows:
            break
        held_out.add(prompt)
        total += counts[prompt]
    train = [row for row in rows if row["prompt"] not in held_out]
    if not train:
        raise InputError(
            f"eval_rows is {eval_rows}, which leaves none of {len(rows)} rows to train on "
            "(pass a smaller --eval_rows)"
        )
    return train, [row for row in rows if row["prompt"] in held_out]
