"""Reading comparisons from files and checking them as a whole, before anything else.

So a mistake costs no model load. ``data.problems`` says what a good row is, and ``data.layouts``
reads rows that other programs and people wrote.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from toolkit.arguments.layouts import LayoutArguments
from toolkit.data.layouts.named import NamedColumns
from toolkit.data.layouts.reader import LayoutReader
from toolkit.data.problems import problems_of
from toolkit.data.records import Placed, Row
from toolkit.data.tables import read_table
from toolkit.errors import InputError

DIGESTED = ("completions", "best", "ranking", "scores", "margin")


@dataclass
class Comparisons:
    """A source whose every row was checked; it can be iterated any number of times.

    No row is kept in memory, only eight bytes for each (``order``).

    Attributes:
        source: file, folder or Hub dataset.
        wants: which fields were checked (``problems_of``).
        skipped: number of bad rows that are skipped.
        order: uint64 (rows,), a hash of each good row's prompt.
        digest: SHA-256 over prompts, completions and labels, the first 16 digits.
        reader: how the rows are read.
    """

    source: str
    wants: str
    skipped: int
    order: np.ndarray
    digest: str
    reader: LayoutReader

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Placed]:
        """Yield the good rows, each with its place."""
        placed = read_table(self.source, self.source, lambda problem: None)
        for place, row in self.reader.anew().rows(placed):
            if not self.skipped or not problems_of(row, self.wants):
                yield place, row

    def where(self, wanted: np.ndarray) -> Iterator[Placed]:
        """Yield the rows for which ``wanted``, bool (rows,), is True."""
        return itertools.compress(self, wanted)


def open_comparisons(
    source: str | Path,
    wants: str,
    what: str,
    skip_invalid: bool = False,
    layout: LayoutArguments | None = None,
) -> Comparisons:
    """Check every row of a source, with a progress bar.

    Rows of other layouts are read as ``data.layouts.registry`` says, and what was done to them is
    printed. Rows of our own layout are taken as they stand.

    Args:
        source: what ``read_table`` reads.
        wants: as for ``problems_of``.
        what: the argument that named the source, for messages.
        skip_invalid: skip bad rows instead of refusing the source.
        layout: which columns are which, and the like.

    Raises:
        InputError: the source has bad rows (twenty are shown, all are counted) or no rows; or, even
            with ``skip_invalid``, its labels seem to count from 1 (``Numbering``).
    """
    reader = recipe_reader(layout or LayoutArguments(), wants, skip_invalid)
    bad, numbering = reader.bad, reader.numbering
    order = array("Q")
    digest = hashlib.sha256()

    rows = read_table(source, what, bad.add)
    rows = tqdm(rows, desc="Checking", unit="row", mininterval=1)
    for place, row in reader.rows(rows):
        problems = problems_of(row, wants)
        if problems:
            bad.add(*(f"{place}: {problem}" for problem in problems))
            continue

        prompt = _canonical(row["prompt"])
        order.append(_hash(prompt))
        digest.update(prompt)
        digest.update(_canonical([row.get(name) for name in DIGESTED]))
        if row.get("worst") is not None:  # only then, so that other files keep their digest
            digest.update(_canonical({"worst": row["worst"]}))

    # Labels that count from 1 are refused even if bad rows may be skipped: in the other rows each
    # label would stand for the next completion.
    if not skip_invalid:
        bad.refuse(" (--skip_invalid skips them)" if wants != "completions" else "")
    elif shifted := numbering.shifted():
        raise InputError(shifted)
    if not order:
        skipped = f" but {bad.count} bad ones, the first: {bad.shown[0]}" if bad.count else ""
        raise InputError(f"{source}: no rows{skipped} ({what} needs at least one)")

    if bad.count:
        print(f"{source}: {bad.count} bad rows skipped; the first: {bad.shown[0]}")
    if note := numbering.note():
        print(note)
    if other := [form for form in reader.forms if form != "native"]:
        kind = reader.wanted if len(order) > 1 else reader.wanted[:-1]
        print(f"{source}: read as {', '.join(other)}: {len(order):,} {kind}")
        for line in reader.summary():
            print(f"  {line}")
    hashes = np.frombuffer(order, dtype=np.uint64)
    return Comparisons(
        str(source), wants, bad.count, hashes, digest.hexdigest()[:16], reader.anew()
    )


def _canonical(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8")
    return json.dumps(value, sort_keys=True, default=str).encode("ascii")


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def recipe_reader(
    layout: LayoutArguments, wants: str = "best", skip_invalid: bool = False
) -> LayoutReader:
    """Return the reader by which recipes read comparisons; the arguments are as above."""
    return LayoutReader(
        wanted="demonstrations" if wants == "demonstration" else "comparisons",
        columns=NamedColumns(layout.mapping),
        first=layout.first,
        as_messages=layout.as_messages,
        skip_invalid=skip_invalid,
        native_as_is=layout.first is None,
        picked=wants != "completions",
    )


def read_rows(
    source: str | Path,
    wants: str,
    what: str,
    skip_invalid: bool = False,
    layout: LayoutArguments | None = None,
) -> list[Row]:
    """Read all good rows of a source into memory (``open_comparisons``)."""
    return [row for _, row in open_comparisons(source, wants, what, skip_invalid, layout)]
