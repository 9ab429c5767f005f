"""A column for each completion, as spreadsheets have it, and OpenAI's label files."""

import re
from typing import Any

from toolkit.data.dialogues import prompt_of
from toolkit.data.layouts.fields import Reading, by_rank, score_of, texts_of
from toolkit.data.numbering import as_index, is_missing, pick_of
from toolkit.data.records import Row
from toolkit.errors import InputError

OPENAI_PAD = 50259  # vocabulary size + 2, openai/lm-human-preferences language/encodings.py:56
COLUMN = re.compile(r"(?i:completion|sample|response|answer)[_ ]?(\d+)")
# The number or the letter at the end of a header that --columns names, behind what all have.
NUMBER_BEHIND = re.compile(r"(.*?)[ _-]?(\d+)", re.S)
LETTER_BEHIND = re.compile(r"(.*?)(?:[ _-]([A-Za-z])|([A-Z]))", re.S)
LETTERED = re.compile(r"(?i:completion|sample|response|answer)(?:[_ ]([a-z])|[_ ]?([A-Z]))")


def from_columns(row: Row, reading: Reading) -> Row:
    """Convert one completion a column; ``best`` is a column's number, letter or name."""
    columns = reading.completions or columns_of(row)
    known, letters = numbers_of(columns), letters_of(columns)
    prompt, texts = texts_of(prompt_of(row), [row[c] for c in columns], "completions", reading)
    made: Row = {"prompt": prompt, "completions": texts}
    if reading.picked or not is_missing(row.get("best")):
        made["best"] = pick_of(
            row["best"], "best", known, columns, texts, reading.first, letters, reading.labels
        )
    if row.get("mean_rating") is not None:
        made["scores"] = row["mean_rating"]

    ranking: Any = row.get("ranking")
    if not is_missing(ranking):
        if isinstance(ranking, str):
            ranking = re.findall(r"[^\s,;>\[\]'\"]+", ranking)
        made["ranking"] = [
            pick_of(v, "ranking", known, columns, texts, reading.first, letters) for v in ranking
        ]
    elif isinstance(row.get("rank"), list) and len(row["rank"]) == len(columns):
        ranks = [score_of(rank, f"rank[{k}]") for k, rank in enumerate(row["rank"])]
        named = [rank for rank in ranks if rank is not None]
        if len(named) == len(ranks):
            made["ranking"] = by_rank(named)["ranking"]

    if not is_missing(row.get("worst")):
        made["worst"] = pick_of(
            row["worst"], "worst", known, columns, texts, reading.first, letters
        )
    margin = score_of(row.get("margin"), "margin")
    return made if margin is None else made | {"margin": margin}


def from_openai(row: Row, reading: Reading) -> Row:
    """Convert token ids back to text, without padding."""
    assert reading.decode is not None
    texts = {}
    for name in ("query", *columns_of(row)):
        ids = row[name]
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{name}: {ids!r:.40}, but must be a list of token ids")
        texts[name] = reading.decode([i for i in ids if i != OPENAI_PAD])
    return from_columns(row | texts, reading)


def columns_of(row: Row) -> list[str]:
    """Return the columns that hold completions, in the order of their numbers or letters."""
    names = [name for name in row if isinstance(name, str)]
    numbered = {name: int(match[1]) for name in names if (match := COLUMN.fullmatch(name))}
    if numbered:
        if len(set(numbered.values())) < len(numbered):
            raise ValueError(f"two columns have the same number: {', '.join(numbered)}")
        return sorted(numbered, key=numbered.__getitem__)
    matches = [match for name in names if (match := LETTERED.fullmatch(name))]
    lettered = {match[0]: (match[1] or match[2]).upper() for match in matches}
    if len(set(lettered.values())) < len(lettered):
        raise ValueError(f"two columns have the same letter: {', '.join(lettered)}")
    return sorted(lettered, key=lettered.__getitem__)


def numbers_of(columns: list[str]) -> list[int]:
    """Return the numbers in the columns' names; empty if they have none.

    Headers of other names than ours must be alike but for numbers that count from 0 or 1: nobody
    means the 4 of "GPT-4" by the label 4.
    """
    known = [int(match[1]) for name in columns if (match := COLUMN.fullmatch(name))]
    if known:  # "Base" beside "Answer 1" has no number, so none can be told by its number
        return known if len(known) == len(columns) else []

    found = [match for name in columns if (match := NUMBER_BEHIND.fullmatch(name.strip()))]
    numbers = [int(match[2]) for match in found]
    alike = len({match[1] for match in found}) == 1 and len(found) == len(columns)
    counted = sorted(numbers) in ([k + first for k in range(len(columns))] for first in (0, 1))
    return numbers if alike and counted else []


def letters_of(columns: list[str]) -> str:
    """Return the letter at the end of each column's name; empty if they do not all have one."""
    letters = [
        (match[1] or match[2]).upper() for name in columns if (match := LETTERED.fullmatch(name))
    ]
    if len(letters) < len(columns):
        found = [match for name in columns if (match := LETTER_BEHIND.fullmatch(name.strip()))]
        alike = len({match[1] for match in found}) == 1 and len(found) == len(columns)
        letters = [(match[2] or match[3]).upper() for match in found] if alike else []
    return "".join(letters) if len(set(letters)) == len(letters) else ""


def check_pick(row: Row, place: str, first: int | None, completions: list[str]) -> None:
    """Refuse a table in which no row's pick can be read: once, not once for each row.

    Raises:
        InputError: there is no column ``best``, or its numbers could count from 0 or from 1.
    """
    if "best" not in row:
        raise InputError(
            f"{place}: no column is called best; there are {listed(row)} (name the column of the "
            "picks, as in --columns best=HEADER, and the prompt's by prompt=HEADER)",
            "columns",
        )
    try:
        columns = completions or columns_of(row)
    except ValueError as error:
        raise InputError(f"{place}: {error}", "columns") from None
    told = [str(row[name]).strip() for name in columns]
    number = as_index(row["best"])
    ambiguous = first is None and number is not None and not numbers_of(columns)
    if ambiguous and str(row["best"]).strip() not in told:
        ends = "letters" if letters_of(columns) else "names"
        raise InputError(
            f"{place}: best is the number {row['best']}, but the completions have {ends} (pass "
            "--first 1 if the first of them is number 1, or --first 0 if it is number 0)",
            "first",
        )


def listed(row: Row) -> str:
    """Return the names of a row's fields, for a message."""
    return ", ".join(map(str, row))[:120]
