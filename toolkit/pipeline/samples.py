"""Choose a round's prompts, and make its validation items."""

import json
from collections.abc import Iterable
from pathlib import Path

from toolkit.data.files import read_jsonl
from toolkit.data.records import Row

REFERENCE = "reference"
POLICY = "policy"


def draw_prompts(prompts: list[Row], count: int, folder: Path, batch: int) -> list[Row]:
    """Return the next ``count`` prompts in turn, after those of earlier batches and rounds."""
    here = f"{folder.name}/prompts-{batch:02d}.jsonl"
    files = folder.parent.glob("round-*/prompts-*.jsonl")
    earlier = [file for file in files if f"{file.parent.name}/{file.name}" < here]
    used = sum(1 for file in earlier for _ in read_jsonl(file))
    return [prompts[(used + i) % len(prompts)] for i in range(count)]


def mixed(parts: list[list[Row]], names: list[str]) -> list[Row]:
    """Join what several policies wrote for the same prompts into rows with ``models``.

    A prompt for which one of them has no row (its completions did not end) is left out.

    Args:
        parts: each policy's rows, in the prompts' order.
        names: of the policies.
    """
    waiting: list[dict[str, list[Row]]] = []
    for part in parts[1:]:
        by_prompt: dict[str, list[Row]] = {}
        for row in part:
            by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row)
        waiting.append(by_prompt)

    rows = []
    for row in parts[0]:
        theirs = [by_prompt.get(json.dumps(row["prompt"])) for by_prompt in waiting]
        if not all(theirs):
            continue
        written = [row, *(found.pop(0) for found in theirs if found)]
        completions = [text for one in written for text in one["completions"]]
        models = [
            name
            for name, one in zip(names, written, strict=True)
            for _ in range(len(one["completions"]))
        ]
        rows.append(row | {"completions": completions, "models": models})
    return rows


def with_sides(policy: list[Row], reference: Iterable[Row]) -> list[Row]:
    """Turn the policy's rows into validation items if the reference has the same prompt.

    A validation item has two completions of the reference, the policy's first two, and ``sides``,
    which names the source of each completion and is never shown.
    """
    waiting: dict[str, list[list[str]]] = {}
    for row in reference:
        waiting.setdefault(json.dumps(row["prompt"]), []).append(row["completions"])

    rows = []
    for row in policy:
        theirs = waiting.get(json.dumps(row["prompt"]))
        if theirs:
            both = theirs.pop(0)[:2] + row["completions"][:2]
            row = row | {"completions": both, "sides": [REFERENCE] * 2 + [POLICY] * 2}
        rows.append(row)
    return rows
