"""Choosing which comparisons to train on and which to hold out, with no prompt on both sides."""

import numpy as np

from toolkit.arguments.comparisons import Half
from toolkit.errors import InputError

HALVES = 0x48414C56  # a seed of their own, so that no --seed draws the halves again
Split = tuple[np.ndarray, np.ndarray]  # bool (rows,) each: train, held out


def split_by_prompt(
    order: np.ndarray, eval_rows: int, seed: int, train_fraction: float = 1.0
) -> Split:
    """Choose the rows to train on and to hold out, with no prompt in both.

    Prompts are ordered by a hash of their text and the seed. The first are held out, until there
    are ``eval_rows`` rows. A smaller training share is always a part of a larger one.

    Args:
        order: uint64 (rows,) (``Comparisons.order``).
        eval_rows: hold out at least this many rows.
        seed: of the shuffle.
        train_fraction: share of the other rows to train on.

    Returns:
        two bool (rows,): train, held out.

    Raises:
        InputError: no row would be left to train on.
    """
    place = _places(order, seed)
    held_out = place <= np.sort(place)[min(eval_rows, len(place)) - 1]
    if held_out.all():
        raise InputError(
            f"eval_rows is {eval_rows}, which leaves none of {len(order)} rows to train on "
            "(pass a smaller --eval_rows)"
        )
    return share_of_rest(held_out, seed, train_fraction), held_out


def folds_by_prompt(
    order: np.ndarray, eval_rows: int, seed: int, folds: int, train_fraction: float = 1.0
) -> list[Split]:
    """Cut rows into folds, each held out once, with no prompt in two of them.

    The first fold is ``split_by_prompt``, so that a reward model which is trained without those
    rows is one of the models of the cross-validation. The other rows make folds of about equal
    size, in the order of the same hash.

    Args:
        order: uint64 (rows,) (``Comparisons.order``).
        eval_rows: hold out at least this many rows in the first fold.
        seed: of the shuffle.
        folds: how many, at least 2.
        train_fraction: share of a fold's other rows to train on.

    Returns:
        for each fold two bool (rows,): train, held out.

    Raises:
        InputError: there are too few prompts, or no row would be left to train on.
    """
    first = split_by_prompt(order, eval_rows, seed, train_fraction)
    place = _places(order, seed)
    others = np.sort(place[~first[1]])

    # The last place of each of the other folds. Rows of one prompt have one place.
    cuts = [round(len(others) * (i + 1) / (folds - 1)) - 1 for i in range(folds - 1)]
    last = [others[cut] for cut in cuts if cut >= 0]
    if len(set(last)) < folds - 1:
        raise InputError(
            f"folds is {folds}, but there are too few prompts beside those held out for so many "
            f"(they have {len(set(others.tolist()))}; pass fewer --folds, or 0 for none)",
            "folds",
        )

    found = [first]
    below = np.zeros(len(order), dtype=bool) | first[1]
    for end in last:
        held_out = (place <= end) & ~below
        below |= held_out
        found.append((share_of_rest(held_out, seed, train_fraction), held_out))
    return found


def share_of_rest(held_out: np.ndarray, seed: int, fraction: float) -> np.ndarray:
    """Choose a share of the rows that are not held out; a smaller share is part of a larger one.

    Args:
        held_out: bool (rows,), False for some.
        seed: of the lot.
        fraction: above 0; at least one row is chosen.

    Returns:
        bool (rows,).
    """
    rest = np.flatnonzero(~held_out)
    lot = np.argsort(_mix(rest.astype(np.uint64) ^ _salt(seed)), kind="stable")
    chosen = np.zeros(len(held_out), dtype=bool)
    chosen[rest[lot[: max(1, round(fraction * len(rest)))]]] = True
    return chosen


def in_half(order: np.ndarray, half: Half) -> np.ndarray:
    """Choose the rows of one half of the prompts: bool (rows,).

    The first bit of a hash of the prompt decides, so that a prompt stays in its half when rows are
    added, and all rows of a prompt are in one half. The halves are about equal, not exactly.

    Args:
        order: uint64 (rows,) (``Comparisons.order``).
        half: "a" or "b"; together they are all rows.
    """
    first = _places(order, HALVES) >> np.uint64(63) == 0
    return first if half == "a" else ~first


def _places(order: np.ndarray, seed: int) -> np.ndarray:
    """Return each row's place in the shuffled order of the prompts, uint64 (rows,)."""
    return _mix(order ^ _salt(seed))


def _salt(seed: int) -> np.ndarray:
    return _mix(np.array([seed], dtype=np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele, Lea & Flood 2014), elementwise on uint64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
