"""A run's results besides its log: the adapters, and the best adapters so far."""

import math
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.data.files import atomic_directory, write_json
from toolkit.models.actors import POLICY, Actors
from toolkit.training.run_log import Row


def save_adapters(
    model: Actors, tokenizer: PreTrainedTokenizerBase, folder: Path, facts: Row
) -> None:
    """Write what was trained, with the tokenizer if it is not the base's own."""
    model.save(folder, **facts)
    if getattr(tokenizer, "beside_base", False):
        tokenizer.save_pretrained(folder / POLICY)


def worth(row: Row) -> float | None:
    """Return an evaluation's value in the search for the best; None if it is not a candidate.

    If the coefficient adapts, subtracting the KL would make values incomparable. Then the score
    counts, among evaluations whose KL is at most a tenth above the target. Otherwise it is the
    score minus kl_coef times the KL.
    """
    score, target = row["eval/scores"], row["objective/kl_target"]
    if target is None:
        value = row["eval/rlhf_reward"]
    elif row["eval/kl"] > 1.1 * target:
        return None
    else:
        value = score
    return value if math.isfinite(score) and math.isfinite(value) else None


def save_best(
    model: Actors,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    row: Row,
    facts: Row,
) -> None:
    """Replace the best adapters so far by the current ones, with their evaluation."""
    with atomic_directory(folder) as aside:
        save_adapters(model, tokenizer, aside, facts)
        found = {name: value for name, value in row.items() if name.startswith("eval/")}
        write_json(aside / "evaluation.json", found | {"update": row["update"]})
