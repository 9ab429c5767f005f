"""The accuracy of a reward model on groups of comparisons."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from toolkit.data.records import Row, source_of
from toolkit.evaluation.reward_results import Group
from toolkit.scoring.accuracy import Share, share

Scores = Sequence[Sequence[float]]

MOST = 12  # groups by name that are shown; the smaller ones are put together


def top(values: Sequence[float]) -> int:
    """Return the index of the highest value, the first of equal ones."""
    return max(range(len(values)), key=values.__getitem__)


def prompts_of(rows: Sequence[Row]) -> list[str]:
    """Return the rows' prompts, text or messages, in a form that can be compared."""
    return [repr(row["prompt"]) for row in rows]


def share_of(credits: Sequence[float], rows: Sequence[Row]) -> Share:
    """Return the mean of one value for each row, with an interval that knows repeated prompts."""
    return share(credits, prompts_of(rows))


def mean(values: Sequence[float]) -> float:
    """Return the mean, free of rounding in the sum."""
    return math.fsum(values) / len(values)


def margin(row: Row) -> float | None:
    """Return how far people put the best above the second; None if the row does not say."""
    if row.get("scores") is not None:
        first, second, *_ = sorted(row["scores"], reverse=True)
        return first - second
    return row.get("margin")


def mean_length(row: Row) -> float:
    """Return the mean length of a row's completions, in characters."""
    return mean([len(text) for text in row["completions"]])


def by_k(rows: Sequence[Row], right: Sequence[float]) -> list[Group]:
    """Compute the accuracy for each number of completions."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[len(row["completions"])].append(i)
    return [_group(f"{k} completions", of, rows, right) for k, of in sorted(groups.items())]


def by_quarter(
    rows: Sequence[Row], right: Sequence[float], key: Callable[[Row], float | None]
) -> list[Group]:
    """Compute the accuracy in each quarter of the rows by ``key``; empty if no row has one."""
    keyed = sorted((value, i) for i, row in enumerate(rows) if (value := key(row)) is not None)
    groups = []
    for q in range(4):
        part = keyed[len(keyed) * q // 4 : len(keyed) * (q + 1) // 4]
        if part:
            name = f"{part[0][0]:.3g} to {part[-1][0]:.3g}"
            groups.append(_group(name, [i for _, i in part], rows, right))
    return groups


def by_source(rows: Sequence[Row], right: Sequence[float]) -> list[Group]:
    """Compute the accuracy for each source; empty if the rows do not have at least two."""
    return _by_name(rows, right, source_of)


def by_labeler(rows: Sequence[Row], right: Sequence[float]) -> list[Group]:
    """Compute the accuracy on each labeler's picks; empty if there are not at least two."""
    return _by_name(rows, right, lambda row: row.get("labeler") or None)


def _by_name(
    rows: Sequence[Row], right: Sequence[float], name_of: Callable[[Row], str | None]
) -> list[Group]:
    """Compute the accuracy for each name, the largest groups first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[name_of(row) or "not known"].append(i)
    if len(groups) < 2:
        return []

    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    shown, others = largest[:MOST], largest[MOST:]
    if len(others) == 1:  # it needs no more room than a line for the others
        shown, others = largest, []
    found = [_group(name, of, rows, right) for name, of in shown]
    if others:
        together = sorted(i for _, of in others for i in of)
        found.append(_group(f"{len(others)} others together", together, rows, right))
    return found


def _group(name: str, of: list[int], rows: Sequence[Row], right: Sequence[float]) -> Group:
    chosen = [rows[i] for i in of]
    return Group(
        group=name,
        chance=mean([1 / len(row["completions"]) for row in chosen]),
        **vars(share_of([right[i] for i in of], chosen)),
    )
