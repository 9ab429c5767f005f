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
