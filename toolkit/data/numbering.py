"""Which completion a label names: by number (from 0 or 1), by letter, by column, or by its text."""

import numbers
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from toolkit.data.records import Row

WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")


def is_missing(value: object) -> bool:
    """Whether a field is missing: null, an empty text, or pandas' NaN."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def as_index(value: object) -> int | None:
    """Convert 1, 1.0, numpy's integers, "1" or "1.0" to an integer; None for all else."""
    if type(value) is int:
        return value
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, str):
        text = value.strip()
        return int(text.split(".")[0]) if WHOLE.fullmatch(text) else None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return int(number) if number.is_integer() else None
    return None


def with_whole_numbers(row: Row) -> Row:
    """Return the row with labels as integers where they spell integers."""
    for name in ("best", "worst"):
        index = as_index(row.get(name))
        if index is not None and type(row[name]) is not int:
            row = row | {name: index}
    ranking = row.get("ranking")
    if isinstance(ranking, list) and any(type(value) is not int for value in ranking):
        indices = [as_index(value) for value in ranking]
        row = row | {
            "ranking": [v if i is None else i for v, i in zip(ranking, indices, strict=True)]
        }
    return row


class Numbering:
    """Notices files whose labels count from another number than expected.

    A label that is one too high suggests that, unless labels of the first completion outnumber
    these (a file that counts from 1 has none, or calls a tie 0); in larger files they must do so by
    four to one. Labels that are one too low are treated likewise. If only the rows that are out of
    range were skipped, the labels of the others would be shifted.

    Attributes:
        SUSPECT: rows that make a file a larger one; from then on, a file in which nobody picked the
            first completion is worth a note.
    """

    SUSPECT = 20

    def __init__(self) -> None:
        self.files: dict[str, dict[str, int]] = {}
        self.firsts: dict[str, int] = {}

    def see(self, place: str, labels: Iterable[int | None], first: int, count: int) -> None:
        """Count a row's labels.

        Args:
            place: of the row.
            labels: the numbers in ``best`` and ``ranking``; None if there is no number.
            first: the number that the first completion is taken to have.
            count: number of completions.
        """
        file = file_of(place)
        self.firsts[file] = first
        seen = self.files.setdefault(
            file, dict.fromkeys(("low", "first", "last", "high", "all"), 0)
        )
        found = [label for label in labels if label is not None]
        seen["low"] += first - 1 in found
        seen["first"] += first in found
        seen["last"] += first + count - 1 in found
        seen["high"] += first + count in found
        seen["all"] += bool(found)

    def shifted(self) -> str | None:
        """Return what is wrong with the first file whose labels are shifted; None if none are."""
        for file, seen in self.files.items():
            first = self.firsts[file]
            share = 4 if seen["all"] >= self.SUSPECT else 1
            if share * seen["high"] > seen["first"] and first == 0:
                other, count, which = first + 1, seen["high"], "one more than the last completion's"
            elif share * seen["low"] > seen["last"] and first in (1, 2):
                other, count, which = first - 1, seen["low"], "one less than the first completion's"
            else:
                continue
            return (
                f"{file}: {count} of {seen['all']} rows have a label that is {which}, as if labels "
                f"counted from {other}, not from {first} (run preftune convert --first "
                f"{other}; or, if only these rows are wrong, preftune convert --first {first} "
                "--skip_invalid)"
            )
        return None

    def note(self) -> str | None:
        """Return a note on the first file in which nobody picked the first completion, or None."""
        for file, seen in self.files.items():
            first = self.firsts[file]
            if seen["all"] >= self.SUSPECT and not seen["first"] and first == 0:
                return (
                    f"{file}: the first completion (number {first}) is picked in none of "
                    f"{seen['all']} rows; if labels count from {first + 1}, run preftune convert "
                    f"--first {first + 1}"
                )
        return None


def file_of(place: str) -> str:
    """The file or dataset in a row's place."""
    return place.rpartition(":")[0] or place


def pick_of(
    value: object,
    name: str,
    known: list[int],
    columns: list[str],
    texts: Sequence[object],
    first: int | None,
    letters: str = "",
    read: Counter[str] | None = None,
) -> int:
    """Return the index of the completion that a label names.

    Args:
        value: its number, letter, column, or text.
        name: of the field, for messages.
        known: the numbers of the completions, unless ``first`` is given.
        columns: the columns of the completions, if they have any.
        texts: the completions.
        first: the number of the first completion; None to use ``known``.
        letters: the letter of each completion; by default A is the first.
        read: counts how labels were read: as number, letter, column or text.

    Raises:
        ValueError: it names no completion, or may name two.
    """
    if is_missing(value):
        raise ValueError(f"{name} is missing")
    number = as_index(value)
    if first is not None:
        known = list(range(first, first + len(texts)))
    letters = letters or string.ascii_uppercase[: len(texts)]

    # All completions that the label may name, and how.
    found: list[tuple[int, str]] = []
    if number in known:
        found.append((known.index(number), "number"))
    if isinstance(value, str):
        text = value.strip()
        lower = text.lower()
        found += [(k, "column") for k, c in enumerate(columns) if c.strip().lower() == lower]
        if len(text) == 1 and text.upper() in letters:
            found.append((letters.index(text.upper()), "letter"))
        found += [
            (k, "text")
            for k, completion in enumerate(texts)
            if isinstance(completion, str) and completion.strip() == text
        ]
    if len({k for k, _ in found}) > 1:
        one, other = found[0], next(each for each in found if each[0] != found[0][0])
        raise ValueError(
            f"{name}: {value!r:.40} is the {one[1]} of one completion and the {other[1]} of another"
        )
    if found:
        if read is not None:
            read[found[0][1]] += 1
        return found[0][0]

    if number is not None and not known:
        raise ValueError(
            f"{name}: {value!r:.40}, but the columns have no numbers (pass --first 1 if the first "
            "completion is number 1, or --first 0)"
        )
    if number is not None:
        cure = ""
        if first is None and number == known[-1] + 1 and known[0] == 0:
            cure = " (if they are numbered from 1, pass --first 1)"
        elif first is None and number == known[0] - 1 in (0, 1):
            cure = f" (if they are numbered from {number}, pass --first {number})"
        raise ValueError(f"{name}: {value!r:.40}, but the completions are {known}{cure}")

    wanted = "number, letter, column or text" if columns else "number, letter or text"
    raise ValueError(f"{name}: {value!r:.40}, but must be the {wanted} of a completion")
