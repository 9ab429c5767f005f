"""The first rows of a file, shown as they will be read, and why others will not be."""

import itertools
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from toolkit.data.convert import WANTS
from toolkit.data.layouts.reader import LayoutReader
from toolkit.data.problems import problems_of
from toolkit.data.records import Placed, Row
from toolkit.data.repeated_prompts import HEAD
from toolkit.data.tables import read_table
from toolkit.data.text import printable
from toolkit.errors import BadRows

LONGEST = 400  # characters of a text that are shown


class _AllBadRows(BadRows):
    SHOWN = HEAD


def shown(
    source: str | Path | Iterable[Placed],
    reader: LayoutReader,
    count: int,
    finished: Callable[[Row], Row] = lambda row: row,
) -> Iterator[str]:
    """Yield lines that show what the first ``count`` rows are read as, and why others are not.

    The first thousand rows are read, since they decide whether completions repeat their prompts.

    Args:
        source: what ``read_table`` reads, or rows with their places.
        reader: how rows are read.
        count: how many rows of the source are shown.
        finished: what is done to a row after it was read and checked.

    Raises:
        InputError: a layout cannot be told, or does not hold what is wanted.
    """
    bad = reader.bad = _AllBadRows()
    reader.lost = {}
    if isinstance(source, str | Path):
        source = read_table(source, "--input", bad.add)
    head = list(itertools.islice(source, HEAD))

    made: dict[str, list[Row]] = {}
    for place, row in reader.rows(head):
        if problems := problems_of(row, WANTS[reader.wanted]):
            bad.add(*(f"{place}: {problem}" for problem in problems))
        else:
            made.setdefault(place, []).append(finished(row))

    yield f"layout: {', '.join(reader.forms)}; read as {reader.wanted}"
    for place, _ in head[:count]:
        yield ""
        yield place
        told = [line for line in bad.shown if line.startswith(f"{place}: ")]
        for row in made.get(place, []):
            yield from _of_row(row, reader.wanted)
        if place in reader.lost:
            yield f"  left out: {reader.lost[place]}"
        for line in told:
            yield f"  bad: {printable(line.removeprefix(f'{place}: '))}"
        if place not in made and place not in reader.lost and not told:
            yield "  belongs to a row above"

    yield ""
    total = sum(map(len, made.values()))
    yield (
        f"In the first {_counted(len(head), 'row')}: {_counted(total, reader.wanted[:-1])}, "
        f"{_counted(bad.count, 'bad row')}."
    )
    rows = {place for place, _ in head}
    for line in bad.shown:
        if not any(line.startswith(f"{place}: ") for place in rows):
            yield f"  bad: {printable(line)}"
    for line in reader.summary():
        yield f"  {printable(line)}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _of_row(row: Row, wanted: str) -> Iterator[str]:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        yield from _text("prompt", prompt)
    else:
        for message in prompt:
            yield from _text(f"prompt, {message['role']}", message["content"])
    if wanted == "prompts":
        return
    for k, text in enumerate(row["completions"]):
        best = " (best)" if k == row.get("best") and wanted == "comparisons" else ""
        name = "answer" if wanted == "demonstrations" else f"{k}{best}"
        yield from _text(name, text)
    for name in ("ranking", "scores", "margin", "models", "labeler"):
        if row.get(name) is not None:
            yield from _text(name, str(row[name]))


def _text(name: str, text: str) -> Iterator[str]:
    """Yield a text behind its name, in lines that fit the terminal; a space is shown as such."""
    more = f" ... ({len(text):,} characters)" if len(text) > LONGEST else ""
    plain = printable(repr(text[:LONGEST])[1:-1] if text != text.strip() else text[:LONGEST])
    quoted = f'"{plain}"' if text != text.strip() else plain
    width = max(40, shutil.get_terminal_size().columns - 1)
    head = f"  {name}: "
    for i, line in enumerate(f"{quoted}{more}".split("\n")):
        yield from textwrap.wrap(
            line,
            width,
            initial_indent=head if i == 0 else "    ",
            subsequent_indent="    ",
            replace_whitespace=False,
            drop_whitespace=False,
        ) or [head.rstrip() if i == 0 else ""]
