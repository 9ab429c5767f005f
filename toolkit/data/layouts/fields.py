"""What the readers of several layouts need: how scores, ranks and texts are read."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.dialogues import Dropped, from_dialogues, unpacked
from toolkit.data.numbering import is_missing
from toolkit.data.records import Row
from toolkit.data.repeated_prompts import CUT

KEPT = ("labeler", "source", "id", "tools", "chat_template_kwargs")
ALIGNED = ("ratings", "models", "contenders")  # one value for each completion
UNSCORED = ("", "n/a", "na", "nan", "none", "null")
EQUAL = "all answers are equal"


@dataclass
class Reading:
    """What a reader needs besides the row, and what it reports.

    Attributes:
        decode: token ids to text, for ``openai``.
        first: the number of the first completion in ``best`` and ``ranking``; None for the
            layout's own.
        noted: changes to rows that were kept, with counts.
        dropped: reasons why rows, or parts of them, made nothing, with counts.
        labels: how ``best`` was read (number, letter, column, text), with counts.
        completions: the columns of the completions, if --columns names them.
        picked: whether a row must say which completion is the best.
    """

    decode: Callable[[list[int]], str] | None = None
    first: int | None = None
    noted: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    completions: list[str] = field(default_factory=list)
    picked: bool = True


def score_of(value: Any, name: str) -> float | None:
    """Return a score as a number; None for null, NaN, an empty text or N/A."""
    if is_missing(value) or (isinstance(value, str) and value.strip().lower() in UNSCORED):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("inf")
    if isinstance(value, bool) or abs(number) > 1e300:
        raise ValueError(f"{name}: {value!r:.40}, but must be a number")
    return value if isinstance(value, int | float) else number


def aligned(row: Row, kept: list[int], count: int) -> Row:
    """Return the fields with one value for each of ``count`` completions, for those in ``kept``."""
    lists = {name: row[name] for name in ALIGNED if isinstance(row.get(name), list)}
    if len(kept) == count:
        return lists
    return {
        name: [values[k] for k in kept] if len(values) == count else None
        for name, values in lists.items()
    }


def texts_of(
    prompt: object, completions: list[object], name: str, reading: Reading
) -> tuple[object, list[Any]]:
    """Return the prompt, and completions as text; messages become text."""
    completions = [unpacked(completion, name) for completion in completions]
    if not completions or not all(isinstance(c, list | dict) for c in completions):
        return prompt, completions
    names = [f"{name}[{k}]" for k in range(len(completions))]
    prompt, texts, repeated = from_dialogues(prompt, completions, names)
    reading.noted.update({CUT: 1} if repeated else {})
    return prompt, texts


def by_rank(ranks: list[float]) -> Row:
    """Return ``best`` and ``ranking`` for ranks of which the lowest is the best.

    Raises:
        Dropped: two have the same rank.
    """
    if len(set(ranks)) < len(ranks):
        raise Dropped("two replies have the same rank")
    ranking = sorted(range(len(ranks)), key=ranks.__getitem__)
    return {"best": ranking[0], "ranking": ranking}


def best_by_score(scores: Sequence[float | None]) -> Row:
    """Return ``best``, ``scores``, and ``ranking`` if no two scores are equal.

    Raises:
        Dropped: two share the highest score.
    """
    numbers = [float(score) for score in scores]  # type: ignore[arg-type]
    ranking = sorted(range(len(numbers)), key=lambda k: -numbers[k])
    if len(numbers) > 1 and numbers[ranking[0]] == numbers[ranking[1]]:
        raise Dropped("a tie at the top")
    made: Row = {"best": ranking[0], "scores": list(scores)}
    return made | ({"ranking": ranking} if len(set(numbers)) == len(numbers) else {})
