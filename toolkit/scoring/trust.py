"""Nothing is trained on a reward model that is known to be worthless by its metrics.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from toolkit.errors import InputError
from toolkit.scoring.accuracy import Facts, judge

Row = dict[str, object]
FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "chance", "p", "comparisons")


def check_trust(given: Mapping[str, str | None], allowed: bool) -> list[Row]:
    """The verdicts on reward models, before one of them is loaded; each is said, but for a "yes".

    The verdict (``accuracy.judge``) is that of metrics.json in the model's folder, which reward.py
    leaves there. "no" is refused; "not decided" goes on with a warning; a model without such a file
    (another tool's, or one on the Hub) goes on as "not measured".

    Args:
        given: the flag that names a reward model -> its folder or Hub id; None for none.
        allowed: go on with one that is worthless (``--allow_untrusted_reward``).

    Returns:
        for each model, for ``run.json``: model, answer, sentence, p and accuracy (None where nobody
        measured it) and allowed, which says that it was refused but for the flag.

    Raises:
        InputError: the verdict is "no", and that was not allowed.
    """
    found = []
    for flag, model in given.items():
        if model is None:
            continue

        row = _verdict(model)
        row["allowed"] = row["answer"] == "no" and allowed
        if row["answer"] == "no" and not allowed:
            raise InputError(
                f"{flag}: {model}: {row['sentence']} (--allow_untrusted_reward goes on with it all "
                "the same)",
                flag,
            )
        if row["answer"] != "yes":
            print(f"{'warning' if row['allowed'] else 'note'}: {flag}: {model}: {row['sentence']}")
        found.append(row)
    return found


def _verdict(model: str) -> Row:
    """The verdict on one model by what lies in its folder."""
    metrics = _metrics(Path(model) / "metrics.json")
    if metrics is None:
        sentence = (
            "Nobody measured whether it has learned what people pick: there is no metrics.json of "
            "reward.py in its folder."
        )
        return _row(model, "not measured", sentence, None, None)

    verdict = judge(metrics)
    return _row(model, verdict.answer, verdict.sentence, verdict.p, metrics["accuracy"])


def _row(model: str, answer: str, sentence: str, p: float | None, accuracy: float | None) -> Row:
    """What run.json says of a verdict."""
    return {
        "model": model,
        "answer": answer,
        "sentence": sentence,
        "p": p,
        "accuracy": accuracy,
    }


def _metrics(path: Path) -> Facts | None:
    """The figures that a verdict is made of; None unless all of them are there."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(metrics, dict):
        return None
    values = [metrics.get(name) for name in FIGURES]
    whole = all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    return metrics if whole else None


def with_earlier(path: Path, now: list[Row], resumed: bool) -> list[Row]:
    """Verdicts for a run's run.json: those of a run that is taken up again stay, in their order.

    An online run has another reward model in each round, and one of them may have been worthless.
    """
    then: list[Row] = []
    if resumed and path.is_file():
        try:
            then = json.loads(path.read_text(encoding="utf-8")).get("reward_verdicts") or []
        except (ValueError, AttributeError):
            then = []
    return [row for row in then if row not in now] + now
