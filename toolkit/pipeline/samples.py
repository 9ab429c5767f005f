"""What is asked of labelers in a round: prompts in turn, and validation items with two sides."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from toolkit.data.files import read_jsonl
from toolkit.data.records import Row

REFERENCE = "reference"
POLICY = "policy"


def draw_prompts(prompts: list[Row], count: int, folder: Path, batch: int) -> list[Row]:
    """The next ``count`` prompts in turn, behind those of all earlier batches and rounds."""
    here = f"{folder.name}/prompts-{batch:02d}.jsonl"
    files = folder.parent.glob("round-*/prompts-*.jsonl")
    earlier = [file for file in files if f"{file.parent.name}/{file.name}" < here]
    used = sum(1 for file in earlier for _ in read_jsonl(file))
    return [prompts[(used + i) % len(prompts)] for i in range(count)]


def with_sides(policy: list[Row], reference: Iterable[Row]) -> list[Row]:
    """The policy's rows, those of the reference's prompts made into validation items.

    Such a row has the reference's two completions, the policy's first two, and ``sides``, which
    says where each came from and is never shown.
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


def adapter_digest(folder: Path) -> str:
    """The first 16 digits of the SHA-256 of an adapter's weights."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
