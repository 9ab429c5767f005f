"""What a run leaves behind besides its log: the adapters, and the best of them so far."""

import math
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.data.files import atomic_directory, write_json
from toolkit.models.actors import POLICY, Actors
from toolkit.training.run_log import Row


def save_adapters(
    model: Actors, tokenizer: PreTrainedTokenizerBase, folder: Path, facts: Row
) -> None:
    """Write what was trained, with the tokenizer where that is not the base's own.

    Args:
        model: its adapters and heads, in folders by role.
        tokenizer: of the run.
        folder: where to.
        facts: noted in the policy's ``toolkit.json``.
    """
    model.save(folder, **facts)
    if getattr(tokenizer, "beside_base", False):
        tokenizer.save_pretrained(folder / POLICY)


def worth(row: Row) -> float | None:
    """What an evaluation is worth in the search for the best; None if it is no candidate.

    Where the coefficient adapts, a price in it would compare nothing: the score counts, of those
    whose KL keeps to the target within a tenth. Elsewhere it is the score less the KL's price.

    Args:
        row: of the log, with an evaluation in it.
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
    """Put the adapters in the place of the best so far, with the evaluation that they got."""
    with atomic_directory(folder) as aside:
        save_adapters(model, tokenizer, aside, facts)
        found = {name: value for name, value in row.items() if name.startswith("eval/")}
        write_json(aside / "evaluation.json", found | {"update": row["update"]})
