"""Checking a saved reward adapter: another process loads it with plain peft and scores.

    python -m toolkit.models.reload < request.json

The lines that load it (``load_plain``) are those in the README. An adapter saved without its head,
or a base that reloads differently, gives other scores: that is an error here rather than a riddle
in PPO.
"""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor

from toolkit.errors import InputError
from toolkit.models.families import trunk_of
from toolkit.models.loading import way_to_load

# Relative to the largest probe score. fp32 and 4-bit on a CPU repeat to the last bits; in bf16
# plain peft rounds the head to bf16 (8 bits of mantissa), which the toolkit does not.
TOLERANCE = {"exact": 1e-5, "rounded": 0.05}


def load_plain(
    folder: str | Path, base: str, precision: str, revision: str = "main", trust: bool = False
) -> Any:
    """Load the adapter on its base with peft and transformers alone."""
    way = way_to_load(base, precision, PartialState().device, revision, trust, score_head=True)
    model = way.load(base)
    way.settle(model)
    if way.on_trunk:
        head = model.get_output_embeddings().weight
        model.score = torch.nn.Linear(head.shape[1], 1, bias=False).to(head.device)
    return PeftModel.from_pretrained(model, str(folder)).eval()


@torch.no_grad()
def plain_scores(model: Any, rows: list[list[int]]) -> list[float]:
    """Score rows of token ids, one at a time, so that nothing is padded."""
    device = next(model.parameters()).device
    below: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not type(below).__name__.endswith("ForSequenceClassification"):  # a head on the trunk
        return [_score_on_trunk(below, torch.tensor([row], device=device)) for row in rows]

    config = model.config.get_text_config()
    # Nothing is padded here: without a pad token the score is read on the last token, whatever it
    # is.
    before, config.pad_token_id = config.pad_token_id, None
    try:
        return [
            model(input_ids=torch.tensor([row], device=device), use_cache=False)
            .logits.float()
            .item()
            for row in rows
        ]
    finally:
        config.pad_token_id = before


def _score_on_trunk(model: Any, ids: Tensor) -> float:
    """Return the score head's output at the last of these tokens (1, T)."""
    states = trunk_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    score: float = model.score(states[:, -1].float()).item()
    return score


def verify_reload(
    folder: str | Path,
    base: str,
    precision: str,
    rows: list[list[int]],
    scores: list[float],
    revision: str = "main",
    trust_remote_code: bool = False,
) -> float:
    """Load the adapter in a clean process and compare its scores with those from training.

    Args:
        folder: the saved adapter.
        base, precision, revision, trust_remote_code: the base that it was trained on.
        rows: token ids of probe texts.
        scores: raw scores (without gain and bias) of the model that was saved.

    Returns:
        the largest absolute difference.

    Raises:
        InputError: the adapter does not load, or gives other scores.
    """
    request = {
        "folder": str(folder),
        "base": base,
        "precision": precision,
        "revision": revision,
        "trust": trust_remote_code,
        "rows": rows,
    }

    child = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "toolkit.models.reload",
        ],  # -P: do not import from the working folder
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{folder} was saved, but plain peft cannot load it: {last}")

    again = json.loads(child.stdout.splitlines()[-1])
    difference = max(abs(a - b) for a, b in zip(again, scores, strict=True))
    on_cpu = PartialState().device.type == "cpu"
    exact = precision == "fp32" or (precision == "4bit" and on_cpu)
    allowed = TOLERANCE["exact" if exact else "rounded"] * max(1.0, *map(abs, scores))
    finite = all(map(math.isfinite, [*again, *scores]))  # max ignores a NaN that is not the first

    if not (finite and difference <= allowed):
        raise InputError(
            f"{folder}: reloaded in a clean process, its scores differ by up to {difference:.3g} "
            f"(allowed are {allowed:.3g}): the saved adapter is not what was trained"
        )
    return difference


def _answer() -> None:
    request = json.loads(sys.stdin.read())
    rows = request.pop("rows")
    print(json.dumps(plain_scores(load_plain(**request), rows)))


if __name__ == "__main__":
    _answer()
